"""LayerNorm against float64, in every mix of dtypes, with offsets that cancel."""

from __future__ import annotations

import pytest
import reference
import torch
from reference import DTYPES, assert_close

from liger_kernel.ops.layer_norm import LigerLayerNormFunction, layer_norm_backward, layer_norm_forward

EPS = 1e-5


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


@pytest.mark.parametrize("weight_dtype, bias_dtype", [(d, d) for d in DTYPES] + [(torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, weight_dtype, bias_dtype):
    x = torch.randn(3, 5, 129, device=device).to(dtype).requires_grad_()
    weight = torch.randn(129, device=device).to(weight_dtype).requires_grad_()
    bias = torch.randn(129, device=device).to(bias_dtype).requires_grad_()
    y = LigerLayerNormFunction.apply(x, weight, bias, EPS)
    dy = torch.randn_like(y)
    y.backward(dy)
    twins = reference.twins(x, weight, bias)
    expected = layer_norm(*twins)
    expected.backward(dy.cpu().double())
    assert y.dtype is dtype
    assert_close(y, expected, dtype, 1, 129)
    assert_close(x.grad, twins[0].grad, dtype, 2, 129)
    for given, twin in zip((weight, bias), twins[1:]):
        assert given.grad.dtype is given.dtype
        coarser = max(dtype, given.dtype, key=reference.unit)
        assert_close(given.grad, twin.grad, coarser, 1, 15)


@pytest.mark.parametrize("offset", [1e3, -3e4])
def test_a_large_mean_does_not_cancel_the_variance(device, offset):
    """E[x²] - mean² would lose it: 1e9 · 2^-24 is more than the variance."""
    x = torch.randn(4, 257, device=device) + offset
    ones, zeros = torch.ones(257, device=device), torch.zeros(257, device=device)
    y = LigerLayerNormFunction.apply(x, ones, zeros, EPS)
    exact = layer_norm(x.cpu().double(), 1.0, 0.0)
    # the mean is known to an f32 rounding of the offset, and shifts every element of a row alike
    assert (y.cpu().double() - exact).abs().max() <= 4 * abs(offset) * reference.unit(torch.float32) + 1e-5


def test_helpers(device):
    x, weight, bias, dy = (torch.randn(s, device=device).bfloat16() for s in ((2, 3, 40), (40,), (40,), (2, 3, 40)))
    y, flat, mean, rstd, _block, _warps = layer_norm_forward(x, weight, bias, EPS)
    assert flat.shape == (6, 40) and mean.shape == rstd.shape == (6,) and mean.dtype is rstd.dtype is torch.float32
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = LigerLayerNormFunction.apply(*leaves, EPS)
    out.backward(dy)
    found = layer_norm_backward(dy, flat, weight, bias, mean, rstd)
    assert torch.equal(y, out) and all(map(torch.equal, found, [t.grad for t in leaves]))
    dx, dweight, dbias = layer_norm_backward(dy, flat, weight, bias, mean, rstd, needs_dw=False, needs_db=True)
    assert dweight is None and torch.equal(dx, found[0]) and torch.equal(dbias, found[2])


def test_errors(device):
    x, ones = torch.randn(2, 8, device=device), torch.ones(8, device=device)
    for weight, bias in ((ones[:7], ones), (ones, ones[:7]), (ones[:7], ones[:7])):
        with pytest.raises(ValueError, match=r"^Incompatible dimensions.*8.*7"):
            LigerLayerNormFunction.apply(x, weight, bias, EPS)
    with pytest.raises(ValueError, match="x is torch.float64.*float32, float16 and bfloat16"):
        LigerLayerNormFunction.apply(x.double(), ones, ones, EPS)
