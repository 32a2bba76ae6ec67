"""SwiGLU against float64, of two tensors and of one that holds both."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from reference import DTYPES, assert_close

from liger_kernel.ops.swiglu import (
    LigerFusedGateUpSiLUMulFunction,
    LigerSiLUMulFunction,
    swiglu_backward,
    swiglu_forward,
    swiglu_fused_gate_up_backward,
    swiglu_fused_gate_up_forward,
)


@pytest.mark.parametrize("gate_dtype, up_dtype", list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("multipliers", [(), (1.5, 0.7)])
def test_values_and_gradients(device, gate_dtype, up_dtype, multipliers):
    """Forward rounds silu to up's dtype, the product to gate's, and there once more if it is multiplied."""
    gate = (3 * torch.randn(3, 5, 67, device=device)).to(gate_dtype).requires_grad_()
    up = torch.randn(3, 5, 67, device=device).to(up_dtype).requires_grad_()
    y = LigerSiLUMulFunction.apply(gate, up, *multipliers)
    dy = torch.randn_like(y)
    y.backward(dy)
    gate64, up64 = reference.twins(gate, up)
    expected = reference.swiglu(gate64, up64, *multipliers)
    expected.backward(dy.cpu().double())
    coarser = max(gate_dtype, up_dtype, key=reference.unit)
    assert y.dtype is gate_dtype and gate.grad.dtype is gate_dtype and up.grad.dtype is up_dtype
    assert_close(y, expected, coarser, 3)
    assert_close(gate.grad, gate64.grad, coarser, 2)
    assert_close(up.grad, up64.grad, coarser, 2)


def test_silu_is_rounded_before_the_product(device):
    gate, up = torch.randn(2, 4096, device=device).bfloat16()
    expected = torch.nn.functional.silu(gate.float()).bfloat16() * up
    once = (torch.nn.functional.silu(gate.float()) * up.float()).bfloat16()
    assert (LigerSiLUMulFunction.apply(gate, up) != expected).float().mean() < 1e-2
    assert (once != expected).float().mean() > 0.05


def test_silu_is_rounded_to_the_dtype_of_up(device):
    gate, up = torch.randn(2, 4096, device=device)
    expected = torch.nn.functional.silu(gate).bfloat16().float() * up.bfloat16().float()
    # an ulp of silu may move a value over a rounding border
    assert (LigerSiLUMulFunction.apply(gate, up.bfloat16()) != expected).float().mean() < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [1, 33, 64])
def test_packed_equals_two_tensors(device, dtype, half):
    packed = torch.randn(3, 5, 2 * half, device=device).to(dtype).requires_grad_()
    gate, up = (part.detach().clone().requires_grad_() for part in packed.chunk(2, -1))
    y, two = LigerFusedGateUpSiLUMulFunction.apply(packed), LigerSiLUMulFunction.apply(gate, up)
    assert torch.equal(y, two)
    dy = torch.randn_like(y)
    y.backward(dy)
    two.backward(dy)
    assert torch.equal(packed.grad, torch.cat((gate.grad, up.grad), -1))


@pytest.mark.parametrize("value", [0.0, 80.0, -80.0, 1e4, -1e4, float("inf")])
def test_extremes(device, value):
    gate = torch.full((1, 9), value, device=device, requires_grad=True)
    up = torch.ones(1, 9, device=device)
    y = LigerSiLUMulFunction.apply(gate, up)
    assert torch.equal(y.cpu(), torch.nn.functional.silu(torch.tensor(value)).expand(1, 9)) or value in (
        0.0,
        80.0,
        -80.0,
    )
    if value != float("inf"):
        y.sum().backward()
        assert gate.grad.isfinite().all()


def test_helpers(device):
    a, b, dc = torch.randn(3, 2, 4, 10, device=device)
    a2, b2, c = swiglu_forward(a, b, 1.5)
    assert a2.shape == (8, 10) and c.shape == a.shape
    da, db = swiglu_backward(a2, b2, dc, 1.5)
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    LigerSiLUMulFunction.apply(*leaves, 1.5).backward(dc)
    assert torch.equal(da, leaves[0].grad) and torch.equal(db, leaves[1].grad)
    packed, before = torch.cat((a, b), -1), torch.cat((a, b), -1)
    same, c = swiglu_fused_gate_up_forward(packed)
    for in_place in (False, True):
        dy = swiglu_fused_gate_up_backward(same, dc, in_place)
        assert torch.equal(dy, torch.cat(swiglu_backward(a2, b2, dc), -1))
    assert torch.equal(packed, before)


@pytest.mark.parametrize("rows, dtype", [(2101, torch.float32), (4201, torch.bfloat16)])
def test_more_than_the_caches_hold(device, rows, dtype):
    """From 64 MiB of tensors on, the CPU writes past its caches."""
    gate, up, dy = (torch.randn(rows, 2816, device=device).to(dtype) for _ in range(3))
    gate.requires_grad_(), up.requires_grad_()
    y = LigerSiLUMulFunction.apply(gate, up)
    y.backward(dy)
    gate64, up64 = reference.twins(gate, up)
    expected = reference.swiglu(gate64, up64)
    expected.backward(dy.cpu().double())
    assert_close(y, expected, dtype, 3)
    assert_close(gate.grad, gate64.grad, dtype, 2)
    assert_close(up.grad, up64.grad, dtype, 2)


def test_tile_predicate_steers_nothing(device, monkeypatch):
    import liger_kernel.ops.swiglu as module

    a, b = torch.randn(2, 2, 16384, device=device)
    before = LigerSiLUMulFunction.apply(a, b)
    for arch, columns, tiled in (("blackwell", 16384, True), ("blackwell", 8193, True), ("blackwell", 8192, False),
                                 ("hopper", 16384, False), ("blackwell_ultra", 20000, True)):  # fmt: skip
        monkeypatch.setattr(module, "infer_device_arch", lambda arch=arch: arch)
        assert module._should_tile(columns) is tiled
        assert torch.equal(LigerSiLUMulFunction.apply(a, b), before)


def test_errors(device):
    a = torch.randn(2, 8, device=device)
    with pytest.raises(ValueError, match="last dimension of y is 7"):
        LigerFusedGateUpSiLUMulFunction.apply(a[:, :7])
    with pytest.raises(ValueError, match=r"\bb: .*7.*8"):
        LigerSiLUMulFunction.apply(a, a[:, :7])
    with pytest.raises(ValueError, match="float64.*float32, float16 and bfloat16"):
        LigerSiLUMulFunction.apply(a.double(), a.double())
