"""RMSNorm and add+RMSNorm against float64, in every casting mode and mix of dtypes."""

from __future__ import annotations

import pytest
import reference
import torch
from reference import DTYPES, assert_close

from liger_kernel.ops.fused_add_rms_norm import (
    LigerFusedAddRMSNormFunction,
    fused_add_rms_norm_backward,
    fused_add_rms_norm_forward,
)
from liger_kernel.ops.rms_norm import LigerRMSNormFunction, rms_norm_backward, rms_norm_forward

EPS = 1e-6
# Roundings to x's dtype of (y, dx, dweight). llama: x·rstd and the store; gemma: the store; none: also eps, offset,
# weight + offset and rstd. dx subtracts two products, each with the roundings of forward.
ROUNDINGS = {"llama": (2, 2, 2), "gemma": (1, 2, 1), "none": (4, 5, 2)}


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("casting", ["llama", "gemma", "none"])
def test_values_and_gradients(device, casting, dtype, weight_dtype):
    x = torch.randn(3, 5, 129, device=device).to(dtype).requires_grad_()
    weight = None if weight_dtype is None else torch.randn(129, device=device).to(weight_dtype).requires_grad_()
    offset = 0.0 if weight is None else 1.0
    y = LigerRMSNormFunction.apply(x, weight, EPS, offset, casting)
    dy = torch.randn_like(y)
    y.backward(dy)
    x64, w64 = reference.twins(x, weight)
    expected = reference.rms_norm(x64, w64, EPS, offset)
    expected.backward(dy.cpu().double())
    for_y, for_dx, for_dweight = ROUNDINGS[casting]
    assert y.dtype is dtype
    assert_close(y, expected, dtype, for_y, 129)
    assert x.grad.dtype is dtype
    assert_close(x.grad, x64.grad, dtype, for_dx, 129)
    if weight is not None:
        assert weight.grad.dtype is weight_dtype
        # dweight's own rounding is to the weight's dtype, and may be the coarser of the two
        coarser = max(dtype, weight_dtype, key=reference.unit)
        assert_close(weight.grad, w64.grad, coarser, for_dweight, 15)


def test_llama_rounds_before_the_weight_and_gemma_does_not(device):
    x, weight = torch.randn(64, 128, device=device).bfloat16(), torch.randn(128, device=device)
    rstd = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    llama = ((x.float() * rstd).bfloat16().float() * weight).bfloat16()
    gemma = (x.float() * rstd * weight).bfloat16()
    # the sum's order may move rstd by an ulp, and with it a few roundings
    assert (LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama") != llama).float().mean() < 1e-3
    assert (LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "gemma") != gemma).float().mean() < 1e-3
    assert (llama != gemma).float().mean() > 0.05


def test_none_rounds_its_scalars(device):
    """eps and offset that bfloat16 cannot hold: 1/3 is .333984375 there."""
    x, weight = torch.zeros(1, 8, device=device).bfloat16(), torch.zeros(8, device=device)
    x[:, 0] = 2.0**0.5
    given = LigerRMSNormFunction.apply(x, weight, 1 / 3, 1 / 3, "none")
    exact = torch.tensor(1 / 3).bfloat16().item()
    assert torch.equal(given, LigerRMSNormFunction.apply(x, weight, exact, exact, "none"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("casting", ["llama", "gemma", "none"])
@pytest.mark.parametrize("missing", ["neither", "dy", "dsum"])
def test_add(device, casting, dtype, missing):
    x, residual, weight = (torch.randn(s, device=device).to(dtype).requires_grad_() for s in ((4, 65), (4, 65), (65,)))
    y, total = LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS, 0.5, casting)
    dy, dsum = torch.randn_like(y), torch.randn_like(y)
    kept = [(o, g) for o, g, name in ((y, dy, "dy"), (total, dsum, "dsum")) if name != missing]
    torch.autograd.backward(*zip(*kept))
    assert torch.equal(total, x + residual)
    s64, w64 = reference.twins((x + residual).detach().requires_grad_(), weight)  # statistics of the rounded sum
    expected = reference.rms_norm(s64, w64, EPS, 0.5)
    parts = [(o, g) for o, g, name in ((expected, dy, "dy"), (s64 * 1.0, dsum, "dsum")) if name != missing]
    torch.autograd.backward([o for o, _ in parts], [g.cpu().double() for _, g in parts])
    for_y, for_dx, for_dweight = ROUNDINGS[casting]
    assert_close(y, expected, dtype, for_y, 65)
    assert_close(x.grad, s64.grad, dtype, for_dx + 1, 65)
    assert torch.equal(x.grad, residual.grad)
    assert x.grad.data_ptr() != residual.grad.data_ptr()
    if missing != "dy":
        assert_close(weight.grad, w64.grad, dtype, for_dweight + 1, 4)


@pytest.mark.parametrize("casting, number", [("llama", 0), ("gemma", 1), ("none", -1)])
def test_helpers(device, casting, number):
    """x_forward's results go back into x_backward unchanged, opaque slots included."""
    x, weight, dy = (torch.randn(s, device=device).bfloat16() for s in ((2, 3, 40), (40,), (2, 3, 40)))
    y, flat, rstd, block, warps, given = rms_norm_forward(x, weight, EPS, 0.0, casting, None)
    assert (flat.shape, rstd.shape, given) == ((6, 40), (6,), number)
    assert rstd.dtype is (torch.bfloat16 if casting == "none" else torch.float32)
    dx, dweight = rms_norm_backward(dy, flat, weight, rstd, 0.0, given, block, warps, True, None)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = LigerRMSNormFunction.apply(*leaves, EPS, 0.0, casting)
    out.backward(dy)
    assert all(map(torch.equal, (y, dx, dweight), (out, leaves[0].grad, leaves[1].grad)))

    y, total, rstd, block, warps, stages, given = fused_add_rms_norm_forward(x, x, weight, EPS, 0.0, casting)
    dx, dr, dweight = fused_add_rms_norm_backward(dy, None, total, weight, rstd, 0.0, given, block, warps, stages, True)
    assert torch.equal(total, 2 * x) and torch.equal(dx, dr) and dx.data_ptr() != dr.data_ptr()


def test_errors_name_the_argument_and_both_numbers(device):
    x = torch.randn(2, 8, device=device)
    with pytest.raises(AssertionError, match="Invalid casting mode.*'float'"):
        LigerRMSNormFunction.apply(x, None, EPS, 0.0, "float")
    with pytest.raises(AssertionError, match="Invalid casting mode: True"):
        LigerRMSNormFunction.apply(x, None, EPS, 0.0, True)
    with pytest.raises(AssertionError, match="Invalid casting mode.*7"):
        LigerRMSNormFunction.apply(x, None, EPS, 0.0, 7)
    with pytest.raises(AssertionError, match=r"\bW: .*9.*8") as caught:
        LigerRMSNormFunction.apply(x, torch.ones(9, device=device), EPS)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValueError, match=r"\bR: .*7.*8"):
        LigerFusedAddRMSNormFunction.apply(x, x[:, :7], x[0], EPS)
    with pytest.raises(ValueError, match=r"\bR is"):
        LigerFusedAddRMSNormFunction.apply(x, x.half(), x[0], EPS)
    with pytest.raises(ValueError, match="float64.*float32, float16 and bfloat16"):
        LigerRMSNormFunction.apply(x.double(), None, EPS)
