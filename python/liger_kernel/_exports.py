"""What each operator exports: one row an operator, which the three packages that hand the names out follow.

`liger_kernel.ops`, `liger_kernel.transformers` and `liger_kernel.transformers.functional` offer what stands here and import
a name at its first use, so that a program loads the operators that it uses.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exports:
    """The names of one operator, separated by blanks.

    ops         in `liger_kernel.ops.<operator>`: its Functions and their helpers
    modules     in `liger_kernel.transformers.<operator>`: what stands in `liger_kernel.transformers` too
    functional  in the same file: what stands in `liger_kernel.transformers.functional` too
    disable     its other names in LIGER_DISABLE

    Modules and functions of an operator in a folder of its own may be left out: they are offered there.
    """

    ops: str
    modules: str
    functional: str
    disable: str = ""


OPERATORS = {
    "attn_res": Exports(
        "LigerAttnResFunction attn_res_backward attn_res_forward",
        "",
        "liger_attn_res",
    ),
    "cross_entropy": Exports(
        "LigerCrossEntropyFunction cross_entropy_backward cross_entropy_forward",
        "LigerCrossEntropyLoss",
        "liger_cross_entropy",
    ),
    "experimental.embedding": Exports("LigerEmbeddingFunction", "", ""),
    "dyt": Exports(
        "LigerDyTFunction",
        "LigerDyT",
        "liger_dyt",
    ),
    "experimental.mm_int8int2": Exports("", "", "", "int2_matmul"),
    "fused_add_rms_norm": Exports(
        "LigerFusedAddRMSNormFunction fused_add_rms_norm_backward fused_add_rms_norm_forward",
        "LigerFusedAddRMSNorm",
        "liger_fused_add_rms_norm",
        "add_rms_norm",
    ),
    "fused_ce_tvd": Exports(
        "LigerFusedCETVDFunction fused_ce_tvd_backward fused_ce_tvd_forward",
        "LigerFusedCETVDLoss",
        "",
        "ce_tvd",
    ),
    "fused_linear_cross_entropy": Exports(
        "LigerFusedLinearCrossEntropyFunction fused_linear_cross_entropy_backward fused_linear_cross_entropy_forward",
        "LigerFusedLinearCrossEntropyLoss",
        "liger_fused_linear_cross_entropy",
        "linear_cross_entropy",
    ),
    "fused_linear_jsd": Exports(
        "LigerFusedLinearJSDFunction fused_linear_jsd_backward fused_linear_jsd_forward",
        "LigerFusedLinearJSD",
        "liger_fused_linear_jsd",
        "linear_jsd",
    ),
    "fused_linear_kl_div": Exports(
        "LigerFusedLinearKLDivFunction fused_linear_kl_div_backward fused_linear_kl_div_forward",
        "LigerFusedLinearKLDivLoss",
        "liger_fused_linear_kl_div",
        "linear_kl_div",
    ),
    "fused_linear_scaled_cross_entropy": Exports(
        "LigerFusedLinearScaledCrossEntropyFunction LigerFusedLinearScaledCrossEntropyTPFunction",
        "",
        "liger_fused_linear_scaled_cross_entropy_tp",
        "linear_logprob",
    ),
    "geglu": Exports(
        "LigerGELUMulFunction geglu_backward geglu_forward",
        "LigerGEGLUMLP",
        "liger_geglu",
    ),
    "group_norm": Exports(
        "LigerGroupNormFunction group_norm_backward group_norm_forward",
        "",
        "liger_group_norm",
    ),
    "grpo_loss": Exports("GrpoLossFunction", "", ""),
    "jsd": Exports(
        "LigerJSDFunction jsd_backward jsd_forward",
        "LigerJSD",
        "liger_jsd",
    ),
    "kl_div": Exports(
        "LigerKLDivLossFunction",
        "LigerKLDIVLoss",
        "liger_kl_div",
    ),
    "layer_norm": Exports(
        "LigerLayerNormFunction layer_norm_backward layer_norm_forward",
        "LigerLayerNorm",
        "liger_layer_norm",
    ),
    "linear_logprob": Exports(
        "LigerLinearLogProbFunction",
        "LigerLinearLogProb",
        "liger_linear_logprob",
    ),
    "mhc": Exports(
        "LigerMHCCoeffsFunction LigerMHCPostResFunction LigerMHCPreFunction",
        "LigerMHC",
        "liger_mhc_coeffs liger_mhc_pre liger_mhc_post_res liger_mhc_apply liger_mhc_forward",
    ),
    "modulated_rms_norm": Exports(
        "LigerModulatedRMSNormFunction modulated_rms_norm_backward modulated_rms_norm_forward",
        "LigerModulatedRMSNorm",
        "liger_modulated_rms_norm",
    ),
    "multi_token_attention": Exports(
        "LigerMultiTokenAttentionFunction",
        "LigerMultiTokenAttention",
        "liger_multi_token_attention",
    ),
    "poly_norm": Exports(
        "LigerPolyNormFunction poly_norm_backward poly_norm_forward",
        "LigerPolyNorm",
        "liger_poly_norm",
    ),
    "qwen2vl_mrope": Exports(
        "LigerQwen2VLMRopeFunction qwen2vl_mrope_backward qwen2vl_mrope_forward",
        "",
        "liger_qwen2vl_mrope",
    ),
    "relu_squared": Exports(
        "LigerReLUSquaredFunction relu_squared_backward relu_squared_forward",
        "LigerReLUSquared",
        "liger_relu_squared",
    ),
    "rms_norm": Exports(
        "LigerRMSNormFunction rms_norm_backward rms_norm_forward",
        "LigerRMSNorm LigerRMSNormForMuseGlimmer LigerRMSNormForMuseGlimmerTextCentered",
        "liger_rms_norm",
    ),
    "rope": Exports(
        "LigerRopeFunction rope_backward rope_forward",
        "liger_rotary_pos_emb",
        "liger_rope",
    ),
    "softmax": Exports(
        "LigerSoftmaxFunction softmax_backward softmax_forward",
        "LigerSoftmax",
        "liger_softmax",
    ),
    "sparsemax": Exports(
        "LigerSparsemaxFunction",
        "LigerSparsemax",
        "liger_sparsemax",
    ),
    "swiglu": Exports(
        "LigerFusedGateUpSiLUMulFunction LigerSiLUMulFunction swiglu_backward swiglu_forward "
        "swiglu_fused_gate_up_backward swiglu_fused_gate_up_forward",
        "LigerBlockSparseTop2MLP LigerFalconH1SwiGLUMLP LigerPhi3SwiGLUMLP LigerQwen3MoeSwiGLUMLP LigerSwiGLUMLP "
        "LigerSwiGLUMLPForMuseGlimmer",
        "liger_swiglu",
    ),
    "topk_kl": Exports(
        "LigerTopKKLFunction",
        "LigerTopKKLLoss",
        "liger_topk_kl",
        "linear_topk_kl",
    ),
    "tvd": Exports(
        "LigerTVDLossFunction",
        "LigerTVDLoss",
        "liger_tvd",
    ),
    "vocab_parallel_cross_entropy": Exports("LigerVocabParallelCEFunction", "", ""),
    "vocab_parallel_logprob": Exports("LigerVocabParallelLinearLogProbFunction", "", "", "linear_logprob"),
}


# The rows of `transformers.model_table`, by name: asking for the names of a package loads no operator.
FAMILIES = tuple(
    "llama mistral ministral mixtral qwen2 qwen3 qwen3_moe qwen3_next qwen3_5 phi3 gemma gemma2 gemma3_text gemma4_text "
    "granite olmo2 olmo3 smollm3 glm4 exaone4 hunyuan_v1_dense falcon_h1 gpt_oss deepseek_v2 deepseek_v3 pixtral llava "
    "gemma3 paligemma internvl smolvlm qwen2_vl qwen2_5_vl qwen3_vl".split()
)


def names_to_disable() -> frozenset[str]:
    """What LIGER_DISABLE may say."""
    names = frozenset(operator.rpartition(".")[2] for operator in OPERATORS)
    return names.union(*(row.disable.split() for row in OPERATORS.values()))


def homes(folder: str, column: str) -> dict[str, str]:
    """Each name of a column of the table -> the module that defines it, below `folder`."""
    return {
        name: f"{folder}.{operator}" for operator, row in OPERATORS.items() for name in getattr(row, column).split()
    }


def find(package: str, name: str, offered: Mapping[str, str]) -> Any:
    """What the `__getattr__` of `package` answers: an offered name, or the submodule of an operator. AttributeError else.

    The value stays in the package, where the next look finds it, or what somebody has put in its place since.
    """
    if name in offered:
        value = getattr(importlib.import_module(offered[name]), name)
    elif name in OPERATORS and hasattr(sys.modules[package], "__path__"):
        value = importlib.import_module(f"{package}.{name}")
    else:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    setattr(sys.modules[package], name, value)
    return value
