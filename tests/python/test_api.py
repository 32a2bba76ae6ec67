"""The package as its users call it: names, where they can be imported from, call forms, support modules.

What the operators compute is tested elsewhere; here it is compared with torch once per call form.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import inspect
import operator
import pathlib
import re
import sys
import types
import warnings

import own_process
import pytest
import torch
from torch import nn

import liger_kernel
import liger_kernel.transformers as lk
import liger_kernel.transformers.functional as F
from liger_kernel import _native, utils
from liger_kernel.ops import (
    LigerFusedLinearCrossEntropyFunction,
    fused_add_rms_norm_backward,
    fused_add_rms_norm_forward,
    fused_linear_cross_entropy_forward,
    rms_norm_backward,
    rms_norm_forward,
    rope_backward,
    rope_forward,
)
from liger_kernel.ops import utils as ops_utils

HIDDEN, INTER, VOCAB = 24, 40, 31


def config(**changes):
    return types.SimpleNamespace(**{**dict(hidden_size=HIDDEN, intermediate_size=INTER, hidden_act="silu"), **changes})


def assert_close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def parameters(function):
    return {
        p.name: (p.default if p.default is not p.empty else ...)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    }


# ---- the package -----------------------------------------------------------------------------------------------------


def test_version():
    assert liger_kernel.__version__ == "0.9.0"
    assert {name for name in vars(liger_kernel) if not name.startswith("__")} <= {
        module.rpartition(".")[2] for module in sys.modules if module.startswith("liger_kernel.")
    }
    for spelling in ("liger-kernel", "liger_kernel"):
        try:
            assert importlib.metadata.version(spelling) == "0.9.0"
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("run from a checkout: no distribution metadata")


def test_typed():
    assert pathlib.Path(liger_kernel.__file__).with_name("py.typed").is_file()


def test_all_names_are_there_and_sorted():
    for name in lk.__all__:
        getattr(lk, name)
    assert set(lk.__all__) <= set(dir(lk))
    assert not {"LigerExperts", "LigerVocabParallelCrossEntropy"} & set(lk.__all__)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no_such_name"):
        lk.no_such_name  # noqa: B018
    assert not hasattr(lk, "apply_liger_kernel_to_no_such_model")


def test_lazy_names():
    pytest.importorskip("transformers", reason="needs transformers")
    patching = importlib.import_module("liger_kernel.transformers.monkey_patch")
    for name in ("apply_liger_kernel_to_llama", "_apply_liger_kernel", "_apply_liger_kernel_to_instance"):
        assert getattr(lk, name) is getattr(patching, name) and name in lk.__all__
    assert lk.revert_liger_kernel is patching.revert_liger_kernel
    assert lk.monkey_patch is patching
    integration = importlib.import_module("liger_kernel.transformers.trainer_integration")
    assert integration._apply_liger_kernel is patching._apply_liger_kernel
    auto = importlib.import_module("liger_kernel.transformers.auto_model")
    assert lk.AutoLigerKernelForCausalLM is auto.AutoLigerKernelForCausalLM
    import transformers

    assert issubclass(lk.AutoLigerKernelForCausalLM, transformers.AutoModelForCausalLM)


def test_import_needs_torch_only():
    said = own_process.output(
        "-c",
        """
import sys
for absent in ("transformers", "triton", "peft", "trl", "rich", "accelerate"):
    sys.modules[absent] = None
import liger_kernel.transformers as lk
assert not lk.is_transformers_available()
assert lk.LigerRMSNorm and lk.LigerSwiGLUMLP and lk.liger_rotary_pos_emb
import liger_kernel.transformers.functional, liger_kernel.utils, liger_kernel.ops.utils
assert "apply_liger_kernel_to_llama" not in lk.__all__
for name in ("AutoLigerKernelForCausalLM", "apply_liger_kernel_to_llama", "_apply_liger_kernel", "monkey_patch"):
    try:
        getattr(lk, name)
    except ImportError as error:
        assert "transformers" in str(error)
    else:
        raise SystemExit(name)
try:
    lk.unknown
except AttributeError:
    print("right")
""",
    )
    assert said.strip() == "right"


def test_import_brings_nothing_along():
    said = own_process.output(
        "-c",
        "import sys; before = set(sys.modules) | {'torch'}; import torch; before |= set(sys.modules)\n"
        "import liger_kernel.transformers\n"
        "print([m for m in ('transformers', 'triton', 'peft', 'rich') if m in sys.modules and m not in before])",
    )
    assert said.strip() == "[]"


# ---- signatures ------------------------------------------------------------------------------------------------------

LOSS = dict(ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean", softcap=None)
RETURNS = dict(return_token_accuracy=False, return_predicted_tokens=False)
ROPE = dict(position_ids=None, unsqueeze_dim=1, rotary_dim=None)
NORM = dict(eps=1e-6, offset=0.0, casting_mode="llama", init_fn="ones", in_place=True)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lk.LigerRMSNorm.__init__, dict(hidden_size=..., **NORM, row_mode=None, elementwise_affine=True)),
        (lk.LigerFusedAddRMSNorm.__init__, dict(hidden_size=..., **{**NORM, "in_place": False})),
        (lk.LigerFusedAddRMSNorm.forward, dict(hidden_states=..., residual=...)),
        (lk.LigerCrossEntropyLoss.__init__, dict(weight=None, **LOSS, return_z_loss=False, **RETURNS)),
        (lk.LigerCrossEntropyLoss.forward, dict(_input=..., target=...)),
        (
            lk.LigerFusedLinearCrossEntropyLoss.__init__,
            dict(ce_weight=None, **LOSS, return_z_loss=False, accum_dtype=None, use_token_scaling=False, **RETURNS),
        ),
        (lk.LigerFusedLinearCrossEntropyLoss.forward, dict(lin_weight=..., _input=..., target=..., bias=None)),
        (lk.liger_rotary_pos_emb, dict(q=..., k=..., cos=..., sin=..., **ROPE)),
        (lk.LigerSwiGLUMLP.__init__, dict(config=..., intermediate_size=None)),
        (lk.LigerQwen3MoeSwiGLUMLP.__init__, dict(config=..., intermediate_size=None)),
        (F.liger_rms_norm, dict(X=..., W=..., eps=..., offset=0.0, casting_mode="llama", in_place=True)),
        (
            F.liger_fused_add_rms_norm,
            dict(X=..., R=..., W=..., eps=..., offset=0.0, casting_mode="llama", in_place=True),
        ),
        (F.liger_swiglu, dict(a=..., b=...)),
        (F.liger_rope, dict(q=..., k=..., cos=..., sin=..., **ROPE)),
        (F.liger_qwen2vl_mrope, dict(q=..., k=..., cos=..., sin=..., mrope_section=..., unsqueeze_dim=1)),
    ],
)
def test_signatures(function, expected):
    assert list(parameters(function).items()) == list(expected.items())


def test_functional_loss_argument_order():
    assert list(parameters(F.liger_cross_entropy))[:8] == [
        "input",
        "target",
        "weight",
        "size_average",
        "ignore_index",
        "reduce",
        "reduction",
        "label_smoothing",
    ]
    assert list(parameters(F.liger_fused_linear_cross_entropy))[:5] == [
        "input",
        "weight",
        "target",
        "bias",
        "ce_weight",
    ]


def test_patching_signatures():
    patching = pytest.importorskip("liger_kernel.transformers.monkey_patch", reason="needs transformers")
    standard = dict(rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True)
    assert parameters(patching.apply_liger_kernel_to_llama) == dict(**standard, model=None)
    assert parameters(patching._patch_rms_norm_module) == dict(
        module=..., offset=0.0, eps=1e-6, casting_mode="llama", in_place=True, row_mode=None
    )
    assert parameters(patching.revert_liger_kernel) == dict(model=None)
    from liger_kernel.transformers.model import llama

    names = list(parameters(llama.lce_forward))
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[-3:] == ["logits_to_keep", "skip_logits", "kwargs"]
    assert {"labels", "cache_position", "return_dict", "output_attentions"} <= set(names)


# ---- RMSNorm ---------------------------------------------------------------------------------------------------------


def reference_norm(x, weight, eps=1e-6, offset=0.0):
    x = x.double()
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * (weight.double() + offset)


@pytest.mark.parametrize(
    ("preset", "offset", "casting", "start", "in_place"),
    [
        ("LigerRMSNorm", 0.0, "llama", 1.0, True),
        ("LigerRMSNormForGemma", 1.0, "gemma", 0.0, True),
        ("LigerRMSNormForGemma2", 1.0, "gemma", 0.0, False),
        ("LigerRMSNormForGemma3", 1.0, "gemma", 0.0, False),
        ("LigerRMSNormForGemma4", 0.0, "gemma", 1.0, False),
        ("LigerRMSNormForOlmo2", 0.0, "gemma", 1.0, False),
        ("LigerRMSNormForGlm4", 0.0, "llama", 1.0, False),
        ("LigerRMSNormForQwen3Next", 1.0, "gemma", 0.0, False),
        ("LigerRMSNormForMuseGlimmer", 0.0, "gemma", 1.0, False),
        ("LigerRMSNormForMuseGlimmerTextCentered", 1.0, "gemma", 0.0, False),
    ],
)
def test_norm_presets(device, preset, offset, casting, start, in_place):
    cls = getattr(importlib.import_module("liger_kernel.transformers.rms_norm"), preset)
    assert issubclass(cls, lk.LigerRMSNorm)
    module = cls(HIDDEN, eps=1e-5).to(device)
    assert (module.offset, module.casting_mode, module.in_place) == (offset, casting, in_place)
    assert module.variance_epsilon == 1e-5 and module.row_mode is None
    assert torch.equal(module.weight, torch.full((HIDDEN,), start, device=device))
    with torch.no_grad():
        module.weight.add_(torch.randn(HIDDEN, device=device))
    x = torch.randn(2, 3, HIDDEN, device=device)
    assert_close(module(x), reference_norm(x, module.weight, 1e-5, offset).float())


@pytest.mark.parametrize(
    ("preset", "family", "name"),
    [
        ("LigerRMSNorm", "llama", "LlamaRMSNorm"),
        ("LigerRMSNormForGemma", "gemma", "GemmaRMSNorm"),
        ("LigerRMSNormForGemma2", "gemma2", "Gemma2RMSNorm"),
        ("LigerRMSNormForGemma3", "gemma3", "Gemma3RMSNorm"),
        ("LigerRMSNormForGemma4", "gemma4", "Gemma4RMSNorm"),
        ("LigerRMSNormForOlmo2", "olmo2", "Olmo2RMSNorm"),
        ("LigerRMSNormForOlmo2", "olmo3", "Olmo3RMSNorm"),
        ("LigerRMSNormForGlm4", "glm4", "Glm4RMSNorm"),
        ("LigerRMSNormForQwen3Next", "qwen3_next", "Qwen3NextRMSNorm"),
        ("LigerRMSNormForMuseGlimmer", "muse_glimmer", "MuseGlimmerRMSNorm"),
        ("LigerRMSNormForMuseGlimmerTextCentered", "muse_glimmer", "MuseGlimmerTextCenteredRMSNorm"),
    ],
)
def test_norm_presets_round_as_their_models_do(device, preset, family, name):
    pytest.importorskip("transformers", reason="needs transformers")
    modeling = f"transformers.models.{family}.modeling_{family}"
    theirs = getattr(pytest.importorskip(modeling, reason=f"this transformers has no {family}"), name)(1024, eps=1e-5)
    ours = getattr(importlib.import_module("liger_kernel.transformers.rms_norm"), preset)(1024, eps=1e-5)
    with torch.no_grad():
        theirs.weight.add_(torch.randn(1024) / 4)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = (module.to(device=device, dtype=torch.bfloat16) for module in (ours, theirs))
    x = torch.randn(8, 1024, device=device).bfloat16()
    assert int((ours(x) != theirs(x)).sum()) == 0  # of 8192


def test_norm_without_weight(device):
    presets = importlib.import_module("liger_kernel.transformers.rms_norm")
    x = torch.randn(5, HIDDEN, device=device)
    for module in (
        presets.LigerRMSNormForGemma4(None, 1e-6, with_scale=False),
        presets.LigerRMSNormForMuseGlimmer(with_scale=False),
        lk.LigerRMSNorm(None, elementwise_affine=False),
    ):
        assert module.weight is None and not list(module.parameters())
        assert_close(module(x), reference_norm(x, None).float())
        assert "weight_shape=None" in repr(module)


def test_norm_checks_and_repr():
    with pytest.raises(AssertionError):
        lk.LigerRMSNorm(4, init_fn="twos")
    with pytest.raises(AssertionError):
        lk.LigerFusedAddRMSNorm(4, init_fn="twos")
    assert re.search(
        r"weight_shape=\(4,\), eps=1e-06, offset=0.0, in_place=True, row_mode=None", repr(lk.LigerRMSNorm(4))
    )
    assert "(4,), eps=1e-06, offset=0.0, in_place=False" in repr(lk.LigerFusedAddRMSNorm(4))


def test_norm_forward_serves_foreign_modules(device):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(HIDDEN))
            self.variance_epsilon = 1e-3

    foreign = Foreign().to(device)
    foreign.forward = types.MethodType(lk.LigerRMSNorm.forward, foreign)
    x = torch.randn(3, HIDDEN, device=device)
    assert_close(foreign(x), reference_norm(x, foreign.weight, 1e-3).float())
    assert "def forward" in inspect.getsource(lk.LigerRMSNorm.forward)


def test_patched_norm_keeps_its_epsilon():
    patching = pytest.importorskip("liger_kernel.transformers.monkey_patch", reason="needs transformers")
    for own, expected in (({"eps": 0.0}, 0.0), ({"variance_epsilon": 0.5, "eps": 0.25}, 0.5), ({}, 1e-4)):
        module = nn.Module()
        module.weight = nn.Parameter(torch.ones(3))
        for name, value in own.items():
            setattr(module, name, value)
        patching._patch_rms_norm_module(module, offset=1.0, eps=1e-4, casting_mode="gemma", in_place=False)
        assert module.variance_epsilon == expected
        assert (module.offset, module.casting_mode, module.in_place, module.row_mode) == (1.0, "gemma", False, None)
        assert repr(module).startswith("LigerRMSNorm(weight_shape=(3,)")
        patching.revert_liger_kernel(module)
        assert set(module.__dict__) - set(nn.Module().__dict__) == set(own)


def test_add_norm(device):
    module = lk.LigerFusedAddRMSNorm(HIDDEN).to(device)
    x, residual = torch.randn(2, 3, HIDDEN, device=device), torch.randn(2, 3, HIDDEN, device=device)
    y, total = module(x, residual)
    assert_close(total, x + residual)
    assert_close(y, reference_norm(x + residual, module.weight).float())
    y, total = F.liger_fused_add_rms_norm(x, residual, module.weight, 1e-6)
    assert_close(y, reference_norm(x + residual, module.weight).float())


def test_functional_norm(device):
    x, weight = torch.randn(3, HIDDEN, device=device), torch.randn(HIDDEN, device=device)
    assert_close(F.liger_rms_norm(x, weight, 1e-6, 1.0, "gemma", False), reference_norm(x, weight, offset=1.0).float())
    with pytest.raises(AssertionError, match="Invalid casting mode"):
        F.liger_rms_norm(x, weight, 1e-6, 0.0, "no-such-mode")


# ---- RoPE ------------------------------------------------------------------------------------------------------------


def reference_rope(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def test_rope_call_forms(device):
    q, k = torch.randn(2, 4, 5, 8, device=device), torch.randn(2, 2, 5, 8, device=device)
    angle = torch.randn(1, 5, 4, device=device)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    expected = tuple(reference_rope(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, k))
    for result in (
        lk.liger_rotary_pos_emb(q, k, cos, sin),
        lk.liger_rotary_pos_emb(q, k, cos, sin, None, 1),
        lk.liger_rotary_pos_emb(q, k, cos, sin, 1),  # newer transformers: the fifth argument is unsqueeze_dim
        lk.liger_rotary_pos_emb(q=q, k=k, cos=cos, sin=sin, position_ids=torch.arange(5), unsqueeze_dim=1),
        F.liger_rope(q, k, cos, sin),
    ):
        assert_close(result[0], expected[0])
        assert_close(result[1], expected[1])
    for wrong in (
        lambda: lk.liger_rotary_pos_emb(q, k, cos, sin, 2),
        lambda: lk.liger_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=0),
    ):
        with pytest.raises(ValueError, match="unsqueeze_dim"):
            wrong()


def tables(batch, seq, pairs, device):
    """cos and sin with one column for each pair."""
    angle = torch.randn(batch, seq, pairs, device=device)
    return angle.cos(), angle.sin()


def rotated(x, cos, sin, rotary):
    """`cos` and `sin` [batch, seq, rotary / 2]."""
    double = (torch.cat((table, table), -1).unsqueeze(1) for table in (cos, sin))
    return torch.cat((reference_rope(x[..., :rotary], *double), x[..., rotary:]), -1)


@pytest.mark.parametrize("rotary", [4, 6, 8], ids="rotary {}".format)
@pytest.mark.parametrize("layout", ["half", "whole", "wider", "strided", "two dimensions", "four dimensions"])
def test_rotary_dim(device, rotary, layout):
    q, k = (torch.randn(2, heads, 5, 8, device=device, requires_grad=True) for heads in (4, 2))
    halves = tables(1 if layout == "two dimensions" else 2, 5, rotary // 2, device)
    laid_out = {
        "half": lambda t: t,
        "whole": lambda t: torch.cat((t, t), -1),
        "wider": lambda t: torch.cat((t, torch.full((2, 5, 7), 9.0, device=device)), -1),
        "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
        "two dimensions": lambda t: t[0],
        "four dimensions": lambda t: t.unsqueeze(1),
    }[layout]
    cos, sin = (laid_out(table) for table in halves)
    expected = tuple(rotated(x, *halves, rotary) for x in (q, k))
    upstream = [torch.randn_like(x) for x in expected]
    gradients = torch.autograd.grad(expected, (q, k), upstream)
    for function in (lk.liger_rotary_pos_emb, F.liger_rope):
        result = function(q, k, cos, sin, rotary_dim=rotary)
        assert_close(result, expected)
        assert_close(torch.autograd.grad(result, (q, k), upstream), gradients)
    *result, cos_back, sin_back = rope_forward(q.detach(), k.detach(), cos, sin, rotary_dim=rotary)
    assert cos_back.ndim == sin_back.ndim == 3
    assert_close(tuple(result), tuple(x.detach() for x in expected))
    assert_close(tuple(rope_backward(*upstream, cos_back, sin_back, None, 1, rotary)), gradients)


def test_half_width_tables_of_gpt_oss(device):
    from liger_kernel.transformers.rope import liger_rotary_pos_emb_gpt_oss

    q, k = (torch.randn(2, heads, 5, 8, device=device) for heads in (4, 2))
    cos, sin = tables(2, 5, 4, device)
    assert_close(liger_rotary_pos_emb_gpt_oss(q, k, cos, sin), tuple(rotated(x, cos, sin, 8) for x in (q, k)))
    partial = lk.liger_rotary_pos_emb(q, k, cos, sin)  # by the width of cos: half a head
    assert_close(partial[0], rotated(q, cos[..., :2], sin[..., :2], 4))


@pytest.mark.parametrize("rotary", [-2, 0, 3, 10])
def test_wrong_rotary_dims(rotary):
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8)
    with pytest.raises(ValueError, match=rf"rotary_dim is {rotary}.*\(0, 8\]"):
        F.liger_rope(q, k, *tables(1, 3, 8, "cpu"), rotary_dim=rotary)
    with pytest.raises(ValueError, match="3 columns.*rotary_dim is 8"):
        F.liger_rope(q, k, *tables(1, 3, 3, "cpu"), rotary_dim=8)


def test_vision_rope(device):
    from liger_kernel.transformers.rope import liger_rotary_pos_emb_vision

    q, k = (torch.randn(5, heads, 8, device=device).bfloat16() for heads in (4, 2))
    angle = torch.randn(5, 4, device=device)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    for actual, x in zip(liger_rotary_pos_emb_vision(q, k, cos, sin), (q, k), strict=True):
        assert actual.shape == x.shape and actual.dtype == x.dtype
        assert_close(actual, reference_rope(x.float(), cos.unsqueeze(1), sin.unsqueeze(1)).bfloat16(), 1e-2)


# ---- SwiGLU ----------------------------------------------------------------------------------------------------------


def silu_mlp(x, gate, up, down):
    return down(nn.functional.silu(gate(x)) * up(x))


def test_mlps(device):
    swiglu = importlib.import_module("liger_kernel.transformers.swiglu")
    x = torch.randn(2, 3, HIDDEN, device=device)
    for name in ("LigerSwiGLUMLP", "LigerQwen3MoeSwiGLUMLP", "LigerHunyuanV1SwiGLUMLP"):
        mlp = getattr(swiglu, name)(config()).to(device)
        assert mlp.gate_proj.weight.shape == (INTER, HIDDEN) and mlp.down_proj.bias is None
        assert_close(mlp(x), silu_mlp(x, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    mlp = swiglu.LigerBlockSparseTop2MLP(config()).to(device)
    assert_close(mlp(x), silu_mlp(x, mlp.w1, mlp.w3, mlp.w2))
    mlp = swiglu.LigerPhi3SwiGLUMLP(config(hidden_act="swish")).to(device)
    gate, up = mlp.gate_up_proj(x).chunk(2, -1)
    assert_close(mlp(x), mlp.down_proj(nn.functional.silu(gate) * up))
    for name in ("LigerQwen3MoeSwiGLUMLP", "LigerSwiGLUMLP"):
        assert getattr(swiglu, name)(config(), intermediate_size=8).up_proj.out_features == 8
    for glimmer in (config(mlp_bias=True), config(hidden_act="gelu", hidden_activation="silu")):
        mlp = swiglu.LigerSwiGLUMLPForMuseGlimmer(glimmer).to(device)
        assert isinstance(mlp, lk.LigerSwiGLUMLP) and mlp.gate_proj.bias is None
        assert_close(mlp(x), silu_mlp(x, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    assert swiglu.LigerHunyuanV1SwiGLUMLP(config(), 3, True).layer_idx == 3


def test_mlp_biases_of_the_config(device):
    mlp = lk.LigerSwiGLUMLP(config(mlp_bias=True)).to(device)
    assert all(p.bias is not None for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    x = torch.randn(3, HIDDEN, device=device)
    assert_close(mlp(x), silu_mlp(x, mlp.gate_proj, mlp.up_proj, mlp.down_proj))


@pytest.mark.parametrize("bias", [False, True])
def test_falcon_mlp(device, bias):
    mlp = lk.LigerFalconH1SwiGLUMLP(config(mlp_multipliers=(0.5, 3.0), mlp_bias=bias)).to(device)
    x = torch.randn(3, HIDDEN, device=device)
    inner = nn.functional.silu(0.5 * mlp.gate_proj(x)) * mlp.up_proj(x)
    assert_close(mlp(x), 3.0 * mlp.down_proj(inner))


def test_other_activations_are_refused():
    swiglu = importlib.import_module("liger_kernel.transformers.swiglu")
    for name in [n for n in vars(swiglu) if n.startswith("Liger") and n.endswith("MLP")]:
        with pytest.raises(ValueError, match="Activation function gelu not supported"):
            getattr(swiglu, name)(config(hidden_act="gelu", mlp_multipliers=(1.0, 1.0)))
    with pytest.raises(ValueError, match="Activation function gelu not supported"):
        swiglu.LigerSwiGLUMLPForMuseGlimmer(config(hidden_activation="gelu"))


def test_functional_swiglu(device):
    a, b = torch.randn(3, 7, device=device), torch.randn(3, 7, device=device)
    assert_close(F.liger_swiglu(a, b), nn.functional.silu(a) * b)


# ---- LayerNorm, GeGLU ------------------------------------------------------------------------------------------------


def needs(operator):
    built = hasattr(_native, f"{operator}_forward")
    return pytest.mark.skipif(not built, reason=f"the library has no {operator}")


def test_layer_norm_parameters_and_attributes():
    module = lk.LigerLayerNorm(HIDDEN, eps=1e-5, bias=True)
    assert module.hidden_size == HIDDEN and module.eps == module.variance_epsilon == 1e-5
    assert torch.equal(module.weight, torch.ones(HIDDEN)) and module.bias.std() > 0.1
    zeros = lk.LigerLayerNorm(HIDDEN, init_fn="zeros")
    assert not zeros.weight.any() and not zeros.bias.any() and len(list(zeros.parameters())) == 2
    with pytest.raises(AssertionError, match="init_fn"):
        lk.LigerLayerNorm(HIDDEN, init_fn="other")
    chosen = lk.LigerLayerNorm(HIDDEN, impl="liger-c", mode="default", backend="other")
    assert (chosen.impl, chosen.backend, chosen.mode) == ("liger-c", "liger-c", "default")
    chosen.backend = "else"
    assert chosen.impl == "else" and lk.LigerLayerNorm(HIDDEN, backend="old").impl == "old"
    assert repr(zeros) == "LigerLayerNorm(24, eps=1e-06, impl=None, mode=None)"


@needs("layer_norm")
def test_layer_norm(device):
    module = lk.LigerLayerNorm(HIDDEN, eps=1e-5, bias=True).to(device)
    stock = nn.LayerNorm(HIDDEN, eps=1e-5, device=device)
    stock.load_state_dict(module.state_dict())
    x = torch.randn(2, 3, HIDDEN, device=device, requires_grad=True)
    y, expected = module(x), stock(x)
    assert_close(y, expected)
    upstream = torch.randn_like(x)
    assert_close(
        torch.autograd.grad(y, (x, module.weight, module.bias), upstream),
        torch.autograd.grad(expected, (x, stock.weight, stock.bias), upstream),
    )
    assert_close(F.liger_layer_norm(x, module.weight, module.bias, 1e-5), expected)


@needs("layer_norm")
def test_an_implementation_that_is_not_there_warns_once():
    module, x = lk.LigerLayerNorm(HIDDEN, impl="somebody-elses"), torch.randn(2, HIDDEN)
    with pytest.warns(UserWarning, match="layer_norm.*somebody-elses.*liger-c") as warned:
        module(x)
    assert [w.filename for w in warned] == [__file__]  # the line that called, not one of torch's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x)
        for name in (None, "liger-c"):
            lk.LigerLayerNorm(HIDDEN, impl=name, mode="default")(x)


@needs("layer_norm")
def test_an_implementation_that_is_not_there_does_not_break_a_graph():
    torch._dynamo.reset()
    module, x = lk.LigerLayerNorm(HIDDEN, impl="not-in-a-graph", mode="fast"), torch.randn(2, HIDDEN)
    assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), lk.LigerLayerNorm(HIDDEN)(x))


@needs("layer_norm")
def test_stock_layer_norms_are_patched_with_and_without_a_bias(device, unpatched):
    x = torch.randn(3, HIDDEN, device=device)
    for bias in (True, False):
        stock = nn.LayerNorm(HIDDEN, eps=1e-3, bias=bias, device=device)
        expected = stock(x)
        assert unpatched._patch_layer_norm_module(stock) and "LigerLayerNorm((24,), eps=0.001" in repr(stock)
        assert_close(stock(x), expected)
        unpatched.revert_liger_kernel(stock)
        assert "LigerLayerNorm" not in repr(stock) and "impl" not in stock.__dict__
    for other in (nn.LayerNorm(HIDDEN, elementwise_affine=False), nn.LayerNorm((3, HIDDEN))):
        assert not unpatched._patch_layer_norm_module(other) and "forward" not in other.__dict__


def test_geglu_mlp_widths():
    from liger_kernel.transformers.geglu import LigerGEGLUMLPForGemma4

    options = dict(use_double_wide_mlp=True, num_kv_shared_layers=2, num_hidden_layers=5)
    widths = [LigerGEGLUMLPForGemma4(config(**options), i).up_proj.out_features for i in (None, 0, 2, 3, 4)]
    assert widths == [INTER, INTER, INTER, 2 * INTER, 2 * INTER]
    for changes in (dict(use_double_wide_mlp=False), dict(num_kv_shared_layers=0)):
        assert LigerGEGLUMLPForGemma4(config(**{**options, **changes}), 4).intermediate_size == INTER
    assert issubclass(LigerGEGLUMLPForGemma4, lk.LigerGEGLUMLP)


@needs("geglu")
def test_geglu(device, unpatched):
    mlp = lk.LigerGEGLUMLP(config(hidden_act="anything")).to(device)
    x = torch.randn(2, 3, HIDDEN, device=device)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    expected = mlp.down_proj(nn.functional.gelu(gate, approximate="tanh") * up)
    assert mlp.down_proj.bias is None
    assert_close(mlp(x), expected)
    assert_close(mlp.down_proj(F.liger_geglu(gate, up)), expected)
    stock = nn.Module()
    stock.gate_proj, stock.up_proj, stock.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    assert unpatched._patch_geglu_module(stock) and repr(stock).startswith("LigerGEGLUMLP(")
    assert_close(stock.forward(x), expected)


# ---- cross entropy ---------------------------------------------------------------------------------------------------


def test_losses(device):
    x = torch.randn(9, HIDDEN, device=device)
    weight, bias = torch.randn(VOCAB, HIDDEN, device=device), torch.randn(VOCAB, device=device)
    target = torch.randint(0, VOCAB, (9,), device=device)
    target[2] = -100
    logits = x @ weight.T + bias
    expected = nn.functional.cross_entropy(logits, target)
    plain, fused = lk.LigerCrossEntropyLoss(), lk.LigerFusedLinearCrossEntropyLoss()
    assert_close(plain(logits, target), expected)
    assert_close(fused(weight, x, target, bias), expected)
    assert_close(F.liger_cross_entropy(logits, target), expected)
    assert_close(F.liger_fused_linear_cross_entropy(x, weight, target, bias), expected)
    rows = nn.functional.cross_entropy(logits, target, reduction="none")
    assert_close(lk.LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, x, target, bias), rows)
    assert_close(F.liger_cross_entropy(logits, target, reduction="sum"), rows.sum())


def test_extra_results(device):
    logits, target = torch.randn(9, VOCAB, device=device), torch.randint(0, VOCAB, (9,), device=device)
    best = logits.argmax(-1)
    result = F.liger_cross_entropy(logits, target, return_token_accuracy=True, return_predicted_tokens=True)
    assert isinstance(result, F.CrossEntropyOutput) and result.z_loss is None
    assert_close(result.token_accuracy, (best == target).float().mean())
    assert torch.equal(result.predicted_tokens, best)
    module = lk.LigerCrossEntropyLoss(return_token_accuracy=True)
    assert module(logits, target).predicted_tokens is None
    eye = torch.eye(VOCAB, device=device)
    fused = F.liger_fused_linear_cross_entropy(logits, eye, target, return_predicted_tokens=True)
    assert torch.equal(fused.predicted_tokens, best) and fused.token_accuracy is None


def test_arguments_of_other_implementations():
    x, weight, target = torch.randn(9, HIDDEN), torch.randn(VOCAB, HIDDEN, requires_grad=True), torch.arange(9)
    expected = F.liger_fused_linear_cross_entropy(x, weight, target)
    (gradient,) = torch.autograd.grad(expected, weight)
    assert LigerFusedLinearCrossEntropyFunction.supports_inner_impl_dispatch is True
    middle = (None, None, -100, 0.0, 0.0, "mean", None, False, None, False, False, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, *middle, "liger-c", None, 4)
    assert torch.equal(loss, expected) and torch.equal(torch.autograd.grad(loss, weight)[0], gradient)
    assert torch.equal(F.liger_fused_linear_cross_entropy(x, weight, target, chunk_mem_const=8), expected)
    with pytest.warns(UserWarning, match="fused_linear_cross_entropy.*'quick'"):
        LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, *middle, "quick", None, 1)
    for wrong in (0, -1, True, 1.0, "1", None):
        with pytest.raises(ValueError, match="chunk_mem_const must be a positive integer.*" + re.escape(repr(wrong))):
            F.liger_fused_linear_cross_entropy(x, weight, None, chunk_mem_const=wrong)
    helper = fused_linear_cross_entropy_forward
    assert list(parameters(helper))[15:21] == [
        "ce_impl", "ce_mode", "token_grad_output", "compute_gradients", "weight_requires_grad", "chunk_mem_const",
    ]  # fmt: skip
    assert torch.equal(helper(x, weight, target, ce_impl="liger-c", chunk_mem_const=2)[5], gradient)


SUMS = """
import sys, torch
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as loss
device, cuda = sys.argv[1], sys.argv[1] == "cuda"
torch.manual_seed(0)
x, weight = torch.randn(2048, 128), torch.randn(4096, 128) * 2 * 128**-0.5
x, weight, target = (t.to(device) for t in (x.bfloat16(), weight.bfloat16(), torch.randint(0, 4096, (2048,))))
exact = weight.double().requires_grad_()
torch.nn.functional.cross_entropy(x.double() @ exact.T, target).backward()
for dtype in (torch.float32, torch.bfloat16) * 2:
    w = weight.clone().requires_grad_()
    before = torch.cuda.memory_allocated() if cuda else 0
    cuda and torch.cuda.reset_peak_memory_stats()
    loss(x.clone().requires_grad_(), w, target, accum_dtype=dtype).backward()
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    print(float((w.grad.double() - exact.grad).norm() / exact.grad.norm()), peak)
"""


def test_sums_in_bf16(device):
    """16 chunks: what the docstring of the module says of the error, and no f32 copy of the weight's size."""
    said = own_process.output("-c", SUMS, device.type, LIGER_LOSS_WORKSPACE_MB="1").splitlines()[2:]
    (wide, wide_peak), (lean, lean_peak) = ([float(number) for number in line.split()] for line in said)
    assert wide < 2.2e-3 and 1.5 * wide < lean < 3 * wide
    if device.type == "cuda":
        assert wide_peak - lean_peak > 0.9 * 4096 * 128 * 2


def test_backward_helpers_leave_out_what_is_not_needed():
    x, weight, up = torch.randn(5, HIDDEN), torch.randn(HIDDEN), torch.randn(5, HIDDEN)
    y, flat, rstd, block, warps, casting = rms_norm_forward(x, weight, 1e-6, 0.0, "llama", None)
    arguments = (up, flat, weight, rstd, 0.0, casting, block, warps, False, None)
    (dx, dweight), (alone, nothing) = rms_norm_backward(*arguments), rms_norm_backward(*arguments, False)
    assert nothing is None and torch.equal(alone, dx)
    assert torch.equal(rms_norm_backward(*arguments, None)[1], dweight)
    y, total, rstd, block, warps, stages, casting = fused_add_rms_norm_forward(x, up, weight, 1e-6, 0.0, "llama")
    arguments = (up, x, total, weight, rstd, 0.0, casting, block, warps, stages, False)
    both, alone = fused_add_rms_norm_backward(*arguments), fused_add_rms_norm_backward(*arguments, needs_dw=False)
    assert both[2] is not None and alone[2] is None
    assert torch.equal(alone[0], both[0]) and torch.equal(alone[1], both[1])


@pytest.mark.parametrize("cls", [lk.LigerCrossEntropyLoss, lk.LigerFusedLinearCrossEntropyLoss])
def test_loss_options_are_checked(cls):
    for wrong in (dict(label_smoothing=1.5), dict(label_smoothing=-0.1), dict(reduction="avg"), dict(softcap=0.0)):
        with pytest.raises(AssertionError):
            cls(**wrong)


@pytest.mark.parametrize(
    ("cls", "name"), [(lk.LigerCrossEntropyLoss, "weight"), (lk.LigerFusedLinearCrossEntropyLoss, "ce_weight")]
)
def test_class_weights_move_with_their_module_and_stay_out_of_checkpoints(cls, name):
    given = torch.rand(3)
    parent = nn.Sequential(cls(**{name: given}))
    assert torch.equal(getattr(parent[0], name), given) and getattr(cls(), name) is None
    assert not parent.state_dict() and not list(parent.parameters())
    parent.load_state_dict({})
    assert torch.equal(getattr(copy.deepcopy(parent)[0], name), given)
    assert getattr(parent.to(torch.float64)[0], name).dtype is torch.float64
    assert getattr(parent.to("meta")[0], name).device.type == "meta"


# ---- support modules -------------------------------------------------------------------------------------------------


def test_calculate_settings():
    assert [ops_utils.calculate_settings(n) for n in (1, 1000, 1025, 8192, 32768, 65537, 200000)] == [
        (1, 4),
        (1024, 4),
        (2048, 8),
        (8192, 16),
        (32768, 32),
        (131072, 32),
        (262144, 32),
    ]


def test_ops_utils():
    assert ops_utils.infer_device is utils.infer_device
    assert ops_utils.is_hip() == (torch.version.hip is not None)
    assert ops_utils.compare_version("torch", operator.ge, "2.0") is True
    assert ops_utils.compare_version("surely_no_such_package", operator.ge, "0") is False
    assert ops_utils.get_npu_core_count(default=7) in (7, ops_utils.get_npu_core_count())
    with ops_utils.device_context(torch.device("cpu")):
        pass
    if importlib.util.find_spec("triton") is None:
        assert dict(ops_utils.torch_to_triton_dtype) == {}
    else:
        assert torch.float32 in ops_utils.torch_to_triton_dtype

    class Function:
        @staticmethod
        @ops_utils.ensure_contiguous
        def forward(ctx, x, n, y=None):
            return x.is_contiguous(), y.is_contiguous(), n

    transposed = torch.zeros(2, 3).T
    assert Function.forward(None, transposed, 5, y=transposed) == (True, True, 5)
    forward, backward = ops_utils.get_amp_custom_fwd_bwd()
    assert callable(forward) and callable(backward)
    assert callable(ops_utils.amp_custom_fwd) and callable(ops_utils.amp_custom_bwd)


def test_infer_device_and_arch(monkeypatch):
    assert utils.infer_device() in ("cuda", "npu", "xpu", "cpu")
    assert utils.infer_comm_backend() in ("nccl", "hccl", "xccl", "mpi", "gloo")
    assert isinstance(utils.PEFT_AVAILABLE, bool)
    utils.infer_device_arch.cache_clear()
    monkeypatch.setattr(utils, "infer_device", lambda: "cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, name in (((9, 0), "hopper"), ((8, 9), "ampere_ada"), ((12, 1), "sm_121"), ((7, 0), "volta_turing")):
        properties = types.SimpleNamespace(major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        utils.infer_device_arch.cache_clear()
        assert utils.infer_device_arch(0) == name and utils.infer_device_arch(0) == name
        assert utils.infer_device_arch.cache_info().hits == 1
    for raw, name in (("gfx90a:sramecc+:xnack-", "cdna2"), ("gfx942", "cdna3"), ("gfx9999", "gfx9999")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, r=raw: types.SimpleNamespace(gcnArchName=r))
        assert utils._infer_amd_arch(0) == name

    def broken(_):
        raise RuntimeError

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    utils.infer_device_arch.cache_clear()
    assert utils.infer_device_arch() == "cuda"
    utils.infer_device_arch.cache_clear()


def test_version_dispatch():
    pytest.importorskip("transformers", reason="needs transformers")

    def call(required):
        return utils.transformers_version_dispatch(
            required,
            lambda *a, **k: ("before", a, k),
            lambda *a, **k: ("after", a, k),
            before_args=(1,),
            after_args=(2,),
            after_kwargs={"x": 3},
        )

    assert call("4.0.0") == ("after", (2,), {"x": 3})
    assert call("999.0") == ("before", (1,), {})


def test_too_old_transformers_is_refused():
    pytest.importorskip("transformers", reason="needs transformers")
    said = own_process.output(
        "-c",
        """
import transformers
transformers.__version__ = "4.51.3"
try:
    import liger_kernel.transformers.monkey_patch
except ImportError as error:
    print(error)
""",
    )
    assert "4.52.0" in said and "4.51.3" in said
