"""softmax: values and gradients against float64. What every operator owes is tested in test_operators*.py, from its description.

Where the description does not say enough for a valid call, OWED = [operator_case.Case(...)] here does.
"""

from __future__ import annotations

import pytest
import torch

from liger_kernel.ops import LigerSoftmaxFunction
from liger_kernel.transformers import LigerSoftmax
from liger_kernel.transformers.functional import liger_softmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 37), (5, 128), (2, 70001)])
def test_values_and_gradients(device, shape, dtype):
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    dy = torch.randn(shape, device=device).to(dtype)
    y = LigerSoftmaxFunction.apply(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    right = torch.softmax(x.detach().double(), -1)
    rounded, upstream = y.detach().double(), dy.double()  # backward starts from the y that is kept
    products = rounded * upstream
    slope = rounded * (upstream - products.sum(-1, keepdim=True))
    terms = rounded * (upstream.abs() + products.abs().sum(-1, keepdim=True))
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for ours, wanted, magnitude in ((y, right, right), (dx, slope, terms)):
        assert ours.dtype is dtype  # one rounding, and 16 units of f32 of what was added up
        budget = 0.505 * torch.finfo(dtype).eps * wanted.abs() + 16 * 2.0**-24 * magnitude.amax(-1, keepdim=True)
        assert ((ours.double() - wanted).abs() <= budget + smallest).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_is_that_of_the_exact_function(device, dtype):
    """But for the rounding of y, of which each element of dx sees its own and the sum sees all."""
    x = torch.randn(4, 1000, device=device).to(dtype).requires_grad_()
    dy = torch.randn(4, 1000, device=device).to(dtype)
    (dx,) = torch.autograd.grad(LigerSoftmaxFunction.apply(x), x, dy)
    exact = x.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(torch.softmax(exact, -1), exact, dy.double())
    share, up = torch.softmax(exact, -1).detach(), dy.double().abs()
    unit = torch.finfo(dtype).eps / 2 + 32 * 2.0**-24
    budget = (
        4 * unit * share * (up + (share * up).sum(-1, keepdim=True)) + torch.finfo(dtype).smallest_normal * unit * 8
    )
    assert ((dx.double() - slope).abs() <= budget).all()


def test_rows_without_a_value(device):
    """-Inf has no share; a row of nothing else, or with a NaN or +Inf in it, is NaN, as in torch."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.0, -inf, 0.0], [-inf, -inf, -inf], [0.0, nan, 1.0], [0.0, inf, 1.0]], device=device)
    y = LigerSoftmaxFunction.apply(x)
    assert y[0].tolist() == [0.5, 0.0, 0.5] and y[1:].isnan().all()
    assert torch.equal(y.isnan(), torch.softmax(x, -1).isnan())


def test_module_and_function(device):
    x = torch.randn(3, 24, device=device)
    y = LigerSoftmaxFunction.apply(x)
    assert torch.equal(LigerSoftmax()(x), y) and torch.equal(liger_softmax(x), y)
