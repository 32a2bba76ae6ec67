"""LayerNorm against float64, in every mix of dtypes, with offsets that cancel."""

from __future__ import annotations

import pytest
import reference
import torch
from reference import DTYPES, apart, assert_close

from liger_kernel.ops.layer_norm import LigerLayerNormFunction, layer_norm_backward, layer_norm_forward
from liger_kernel.transformers.functional import liger_layer_norm
from liger_kernel.transformers.layer_norm import LigerLayerNorm

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


@pytest.mark.parametrize("offset", [1e3, -3e4, 1e6])
def test_a_large_mean_does_not_cancel_the_variance(device, offset):
    """E[x²] - mean² would lose it: 1e9 · 2^-24 is more than the variance."""
    x = torch.randn(4, 257, device=device) + offset
    ones, zeros = torch.ones(257, device=device), torch.zeros(257, device=device)
    y = LigerLayerNormFunction.apply(x, ones, zeros, EPS)
    exact = layer_norm(x.cpu().double(), 1.0, 0.0)
    # what the rounded mean lacks is carried: the offset is in no bound
    assert (y.cpu().double() - exact).abs().max() <= 1e-5


@pytest.mark.parametrize("offset", [0.0, 1e3, -3e4])
def test_gradients_at_a_large_mean(device, offset):
    """They start from the mean that forward returns, an f32: its rounding shifts every normal of a row alike."""
    x, dy = torch.randn(2, 64, 257, device=device)
    x = (x + offset).requires_grad_()
    weight, bias = (torch.randn(257, device=device).requires_grad_() for _ in range(2))
    y = LigerLayerNormFunction.apply(x, weight, bias, EPS)
    found = torch.autograd.grad(y, (x, weight, bias), dy)
    twins = reference.twins(x, weight, bias)
    right = torch.autograd.grad(layer_norm(*twins), twins, dy.cpu().double())
    shift, unit = abs(offset) * reference.unit(torch.float32) * 1.2, reference.unit(torch.float32)  # rstd is below 1.2
    g = (dy * weight.detach()).cpu().double().abs()
    budgets = (
        6 * shift * g.mean() * 2 + 64 * unit * g.max(),
        shift * dy.abs().sum(0).cpu() + 64 * unit * 64,
        64 * unit * 64,
    )
    for ours, exact, budget in zip(found, right, budgets):
        assert ((ours.cpu().double() - exact).abs() <= budget).all()


@pytest.mark.parametrize("bias_dtype", [None, *DTYPES])
@pytest.mark.parametrize("weight_dtype", [None, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_parameters_gradient_is_rounded_to_its_own_dtype_alone(device, dtype, weight_dtype, bias_dtype):
    """Ones sum to a number of rows that the other parameter's dtype may not hold, or may hold only rounded."""
    rows, cols = 257, 4
    x = torch.randn(rows, cols, device=device).to(dtype)
    weight = None if weight_dtype is None else torch.randn(cols, device=device).to(weight_dtype)
    bias = None if bias_dtype is None else torch.randn(cols, device=device).to(bias_dtype)
    for given, up in ((x, 1.0), (x.t().contiguous().t(), 1.0), (x, 30.0 if bias_dtype is torch.float16 else 300.0)):
        leaves = [None if t is None else t.detach().requires_grad_() for t in (given, weight, bias)]
        y = LigerLayerNormFunction.apply(*leaves, EPS)
        twins = reference.twins(*leaves)
        expected = layer_norm(twins[0], 1.0 if weight is None else twins[1], 0.0 if bias is None else twins[2])
        assert_close(y, expected, dtype, 1, cols)
        dy = torch.full_like(y, up)
        y.backward(dy)
        expected.backward(dy.cpu().double())
        for leaf, twin in zip(leaves[1:], twins[1:]):
            if leaf is not None:
                assert leaf.grad.dtype is leaf.dtype
                # one rounding to its own dtype, after an f32 sum of `rows` terms as large as the upstream
                bound = reference.unit(leaf.dtype) * twin.grad.abs()
                bound += (8 + rows**0.5) * reference.unit(torch.float32) * up * rows
                assert ((leaf.grad.cpu().double() - twin.grad).abs() <= bound).all()


@pytest.mark.parametrize("weighted, biased", [(False, False), (True, False), (False, True)])
def test_without_weight_or_bias(device, weighted, biased):
    """torch's own class may have neither: in every form, and under torch.compile, func and the disabling formula."""
    x, weight, bias, dy = (torch.randn(s, device=device) for s in ((6, 8), (8,), (8,), (6, 8)))
    weight, bias = weight if weighted else None, bias if biased else None
    norm = torch.nn.LayerNorm(8, EPS, elementwise_affine=False)
    norm.variance_epsilon = EPS
    norm.weight, norm.bias = (None if p is None else torch.nn.Parameter(p) for p in (weight, bias))
    expected = torch.nn.functional.layer_norm(x, (8,), weight, bias, EPS)
    found = [
        LigerLayerNormFunction.apply(x, weight, bias, EPS),
        liger_layer_norm(x, weight, bias, EPS),
        LigerLayerNorm.forward(norm, x),
        torch.func.vmap(lambda row: LigerLayerNormFunction.apply(row, weight, bias, EPS))(x),
        layer_norm_forward(x, weight, bias, EPS)[0],
        torch.compile(lambda t: liger_layer_norm(t, weight, bias, EPS), backend="aot_eager", fullgraph=True)(x),
    ]
    assert all(torch.allclose(y, expected, rtol=apart(8), atol=apart(8)) for y in found)
    _y, flat, mean, rstd, _block, _warps = layer_norm_forward(x, weight, bias, EPS)
    dx, dweight, dbias = layer_norm_backward(dy, flat, weight, bias, mean, rstd)
    assert (dweight is None, dbias is None) == (not weighted, not biased)
    leaf = x.clone().requires_grad_()
    torch.nn.functional.layer_norm(leaf, (8,), weight, bias, EPS).backward(dy)
    assert torch.allclose(dx, leaf.grad, rtol=0, atol=2 * apart(8) * leaf.grad.abs().max().item())


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
    with pytest.raises(ValueError, match=r"\bX is torch.float64.*float32, float16 and bfloat16"):
        LigerLayerNormFunction.apply(x.double(), ones, ones, EPS)
