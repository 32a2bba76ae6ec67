"""The gated MLPs and their activations as functions."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata

import pytest
import torch
from modules import HIDDEN, INTER, assert_close, config
from torch import nn

import liger_kernel.transformers as lk
import liger_kernel.transformers.functional as F


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


def limited_output(mlp, patch):
    mlp.down_proj.register_forward_hook(lambda module, args, output: output.tanh())


def limited_input(mlp, patch):
    mlp.down_proj.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))


def limited_everywhere(mlp, patch):
    def hook(module, args, output):
        return output.tanh() if module is mlp.down_proj else None

    handle = nn.modules.module.register_module_forward_hook(hook)
    patch.callback(handle.remove)


def another_module(mlp, patch):
    mlp.down_proj = nn.Sequential(mlp.down_proj, nn.Tanh())


def another_forward(mlp, patch):
    own = mlp.down_proj.forward
    mlp.down_proj.forward = lambda x: own(x).tanh()


def another_function(mlp, patch):
    own = nn.functional.linear

    def linear(x, weight, bias=None):
        return own(x, weight, bias).tanh() if weight is mlp.down_proj.weight else own(x, weight, bias)

    nn.functional.linear = linear
    patch.callback(setattr, nn.functional, "linear", own)


@pytest.mark.parametrize(
    "change", [limited_output, limited_input, limited_everywhere, another_module, another_forward, another_function]
)
def test_falcon_mlp_multiplies_what_its_projection_answers(change, device):
    """With a projection that is no mere product the multiplier does not commute."""
    mlp = lk.LigerFalconH1SwiGLUMLP(config(mlp_multipliers=(0.5, 3.0))).to(device)
    x = torch.randn(3, HIDDEN, device=device)
    with contextlib.ExitStack() as patch:
        change(mlp, patch)
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


def test_geglu_mlp_widths():
    from liger_kernel.transformers.geglu import LigerGEGLUMLPForGemma4

    options = dict(use_double_wide_mlp=True, num_kv_shared_layers=2, num_hidden_layers=5)
    widths = [LigerGEGLUMLPForGemma4(config(**options), i).up_proj.out_features for i in (None, 0, 2, 3, 4)]
    assert widths == [INTER, INTER, INTER, 2 * INTER, 2 * INTER]
    for changes in (dict(use_double_wide_mlp=False), dict(num_kv_shared_layers=0)):
        assert LigerGEGLUMLPForGemma4(config(**{**options, **changes}), 4).intermediate_size == INTER
    assert issubclass(LigerGEGLUMLPForGemma4, lk.LigerGEGLUMLP)


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
