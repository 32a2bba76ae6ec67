"""Squared ReLU against float64, and against the function that Hugging Face's models have."""

from __future__ import annotations

import pytest
import torch

from liger_kernel.ops import LigerReLUSquaredFunction, relu_squared_backward, relu_squared_forward
from liger_kernel.transformers import LigerReLUSquared
from liger_kernel.transformers.functional import liger_relu_squared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1, 1), (3, 7, 37), (5, 128), (2, 70001)])
def test_values_and_gradients(device, shape, dtype):
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    dy = torch.randn(shape, device=device).to(dtype)
    y = LigerReLUSquaredFunction.apply(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    exact = x.detach().double().requires_grad_()
    right = torch.relu(exact).square()
    (slope,) = torch.autograd.grad(right, exact, dy.double())
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for ours, wanted in ((y, right), (dx, slope)):
        assert ours.dtype is dtype  # and one rounding:
        assert ((ours.double() - wanted).abs() <= 0.505 * torch.finfo(dtype).eps * wanted.abs() + smallest).all()


def test_what_is_no_number(device):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, -2.0, -0.0, 0.0, 3.0, inf, nan], device=device)
    assert LigerReLUSquaredFunction.apply(x)[:-1].tolist() == [0.0, 0.0, 0.0, 0.0, 9.0, inf]
    assert LigerReLUSquaredFunction.apply(x)[-1].isnan()
    assert torch.equal(relu_squared_backward(x, torch.ones_like(x))[:-1], (2 * torch.relu(x))[:-1])


@pytest.mark.parametrize("plain_torch", [False, True])
def test_a_gradient_does_not_overflow_on_the_way(device, plain_torch, monkeypatch):
    """Whatever x, dy and their product are: 2x alone is more than f32 holds, and so is 2dy."""
    monkeypatch.setattr(LigerReLUSquaredFunction, "_plain_torch", plain_torch)
    x = torch.tensor([3e38, 1e-38, 2e-38, 1.5], device=device, requires_grad=True)
    dy = torch.tensor([1e-38, 3e38, 1e-5, 3e38], device=device)
    (dx,) = torch.autograd.grad(LigerReLUSquaredFunction.apply(x), x, dy)
    exact = (2 * x.detach().double() * dy.double()).float()
    assert (
        dx[3].isinf()
        and ((dx - exact)[:3].abs() <= exact[:3] * 2.0**-23 + 2.0**-149).all()
        and exact[:2].isfinite().all()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_value_has_torchs_bits(device, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    x = x[~x.isnan()]
    assert torch.equal(LigerReLUSquaredFunction.apply(x), torch.square(torch.relu(x)))


def test_module_and_function(device):
    x, dy = torch.randn(2, 3, 24, device=device)
    leaf = x.clone().requires_grad_()
    y = LigerReLUSquared()(leaf)
    y.backward(dy)
    assert torch.equal(liger_relu_squared(x), y) and torch.equal(relu_squared_forward(x), y)
    assert torch.equal(relu_squared_backward(x, dy), leaf.grad)
