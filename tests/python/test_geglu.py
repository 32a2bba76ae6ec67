"""GeGLU against float64, and against torch's own GELU bit by bit."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from reference import DTYPES, assert_close

from liger_kernel.ops.geglu import LigerGELUMulFunction, geglu_backward, geglu_forward


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize("gate_dtype, up_dtype", list(itertools.product(DTYPES, DTYPES)))
def test_values_and_gradients(device, gate_dtype, up_dtype):
    """Forward rounds gelu to up's dtype and the product to gate's; backward rounds gelu, and dy·up, before a product."""
    gate = (2 * torch.randn(3, 5, 67, device=device)).to(gate_dtype).requires_grad_()
    up = torch.randn(3, 5, 67, device=device).to(up_dtype).requires_grad_()
    y = LigerGELUMulFunction.apply(gate, up)
    dy = torch.randn_like(y)
    y.backward(dy)
    gate64, up64 = reference.twins(gate, up)
    expected = gelu(gate64) * up64
    expected.backward(dy.cpu().double())
    coarser = max(gate_dtype, up_dtype, key=reference.unit)
    assert y.dtype is gate_dtype and gate.grad.dtype is gate_dtype and up.grad.dtype is up_dtype
    assert_close(y, expected, coarser, 2)
    assert_close(gate.grad, gate64.grad, coarser, 2)
    assert_close(up.grad, up64.grad, coarser, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_activation_has_torchs_bits(device, dtype):
    """All 65536 gates. On the CPU torch's vector tanh is -1 a little early, and its scalar one is not."""
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    gate = gate[~gate.isnan()]
    found, expected = LigerGELUMulFunction.apply(gate, torch.ones_like(gate)), gelu(gate)
    differs = (found != expected) & ~(found.isnan() & expected.isnan())
    if device.type == "cpu":
        differs &= ~((expected == 0) & (gate < -5) & (gate > -5.3))
    assert not differs.any(), gate[differs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gelu_is_rounded_before_the_product(device, dtype):
    """As torch's separate operators do: at most an f32 ulp of gelu moves a value over a rounding border."""
    gate, up = torch.randn(2, 8192, device=device).to(dtype)
    found = LigerGELUMulFunction.apply(gate, up)
    once = (gelu(gate.float()) * up.float()).to(dtype)
    assert (found != gelu(gate) * up).float().mean() < 1e-3
    assert (once != gelu(gate) * up).float().mean() > 0.05


def test_helpers(device):
    a, b, dc = torch.randn(3, 2, 4, 10, device=device)
    a2, b2, c = geglu_forward(a, b)
    assert a2.shape == b2.shape == (8, 10) and c.shape == a.shape
    leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
    out = LigerGELUMulFunction.apply(*leaves)
    out.backward(dc)
    assert torch.equal(c, out) and all(map(torch.equal, geglu_backward(a2, b2, dc), [t.grad for t in leaves]))


def test_memory_that_nobody_sees_is_reused(device):
    """The rule of SwiGLU, whose tests say when it holds."""
    found, places = [], []
    x = torch.randn(3, 16, device=device, requires_grad=True)

    def parts():
        for factor in (2.0, 3.0):
            tensor = x * factor
            places.append(tensor.data_ptr())
            tensor.register_hook(lambda grad: found.append(grad.data_ptr()))
            yield tensor

    y = LigerGELUMulFunction.apply(*parts())
    y.backward(torch.ones_like(y))
    reuses = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")
    assert (sorted(found) == sorted(places)) is reuses
    held = x.detach() * 2.0
    kept = held.clone()
    LigerGELUMulFunction.apply(held.requires_grad_(), x * 3.0).sum().backward()
    assert torch.equal(held, kept)


def test_errors(device):
    a = torch.randn(2, 8, device=device)
    with pytest.raises(ValueError, match=r"\bb: .*7.*8"):
        LigerGELUMulFunction.apply(a, a[:, :7])
    with pytest.raises(ValueError, match=r"\ba is torch.float64.*float32, float16 and bfloat16"):
        LigerGELUMulFunction.apply(a.double(), a.double())
