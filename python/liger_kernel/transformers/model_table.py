"""Where each model family keeps what we replace: one row per family."""

from __future__ import annotations

from liger_kernel.transformers.geglu import LigerGEGLUMLP
from liger_kernel.transformers.rms_norm import (
    LigerRMSNorm,
    LigerRMSNormForGemma,
    LigerRMSNormForGemma2,
    LigerRMSNormForGemma3,
)
from liger_kernel.transformers.rows import GEGLU_FLAGS, Head, Row, geglu, norms, swiglu
from liger_kernel.transformers.swiglu import LigerPhi3SwiGLUMLP, LigerSwiGLUMLP

# ---- paths that families share ---------------------------------------------------------------------------------------

PRE_NORMS = ("norm", "layers.*.input_layernorm", "layers.*.post_attention_layernorm")
QK_NORMS = ("layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm")
SANDWICH = (*PRE_NORMS, "layers.*.pre_feedforward_layernorm", "layers.*.post_feedforward_layernorm")
MLP = "layers.*.mlp"

CAPPED = Head(softcap="final_logit_softcapping")


# ---- language models -------------------------------------------------------------------------------------------------

LLAMA = Row(
    "llama",
    "llama.modeling_llama",
    (norms({"LlamaRMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"LlamaMLP": LigerSwiGLUMLP}, MLP)),
    {"LlamaForCausalLM": Head()},
)
MISTRAL = Row(
    "mistral",
    "mistral.modeling_mistral",
    (norms({"MistralRMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"MistralMLP": LigerSwiGLUMLP}, MLP)),
    {"MistralForCausalLM": Head()},
    cross_entropy="attribute",
)
QWEN2 = Row(
    "qwen2",
    "qwen2.modeling_qwen2",
    (norms({"Qwen2RMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"Qwen2MLP": LigerSwiGLUMLP}, MLP)),
    {"Qwen2ForCausalLM": Head()},
)
QWEN3 = Row(
    "qwen3",
    "qwen3.modeling_qwen3",
    (norms({"Qwen3RMSNorm": LigerRMSNorm}, *PRE_NORMS, *QK_NORMS), swiglu({"Qwen3MLP": LigerSwiGLUMLP}, MLP)),
    {"Qwen3ForCausalLM": Head()},
)
PHI3 = Row(
    "phi3",
    "phi3.modeling_phi3",
    (norms({"Phi3RMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"Phi3MLP": LigerPhi3SwiGLUMLP}, MLP)),
    {"Phi3ForCausalLM": Head()},
)
GEMMA = Row(
    "gemma",
    "gemma.modeling_gemma",
    (
        norms({"GemmaRMSNorm": LigerRMSNormForGemma}, *PRE_NORMS),
        geglu({"GemmaMLP": LigerGEGLUMLP}, MLP, activation="hidden_act"),
    ),
    {"GemmaForCausalLM": Head()},
    flags=GEGLU_FLAGS,
)
GEMMA2 = Row(
    "gemma2",
    "gemma2.modeling_gemma2",
    (norms({"Gemma2RMSNorm": LigerRMSNormForGemma2}, *SANDWICH), geglu({"Gemma2MLP": LigerGEGLUMLP}, MLP)),
    {"Gemma2ForCausalLM": CAPPED},
    flags=GEGLU_FLAGS,
)
GEMMA3_TEXT = Row(
    "gemma3_text",
    "gemma3.modeling_gemma3",
    (norms({"Gemma3RMSNorm": LigerRMSNormForGemma3}, *SANDWICH, *QK_NORMS), geglu({"Gemma3MLP": LigerGEGLUMLP}, MLP)),
    {"Gemma3ForCausalLM": CAPPED},
    flags=GEGLU_FLAGS,
)

ROWS = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA, GEMMA2, GEMMA3_TEXT)
