"""RMSNorm, add+RMSNorm and LayerNorm as modules and functions: presets, call forms, errors, what a model reads of them."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import types
import warnings

import pytest
import torch
from modules import HIDDEN, assert_close
from torch import nn

import liger_kernel.transformers as lk
import liger_kernel.transformers.functional as F
from liger_kernel.ops import LigerFusedAddRMSNormFunction


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


# ---- LayerNorm ---------------------------------------------------------------------------------------------------------


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


def test_an_implementation_that_is_not_there_does_not_break_a_graph():
    torch._dynamo.reset()
    module, x = lk.LigerLayerNorm(HIDDEN, impl="not-in-a-graph", mode="fast"), torch.randn(2, HIDDEN)
    assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), lk.LigerLayerNorm(HIDDEN)(x))


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


@pytest.mark.parametrize("compiled", [False, True])
def test_fused_add_without_a_weight(device, compiled):
    torch._dynamo.reset()
    function = LigerFusedAddRMSNormFunction
    apply = torch.compile(function.apply, backend="aot_eager", fullgraph=True) if compiled else function.apply
    x, residual = (torch.randn(3, HIDDEN, device=device, requires_grad=True) for _ in range(2))
    found, expected = apply(x, residual, None, 1e-6), function.torch_forward(x, residual, None, 1e-6)
    gradients = [torch.autograd.grad(y.square().sum() + total.sum(), (x, residual)) for y, total in (found, expected)]
    for one, other in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert_close(one, other)
