"""PolyNorm against float64, in every mix of dtypes."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from operator_case import HIDDEN, Case
from reference import DTYPES

from liger_kernel.ops import LigerPolyNormFunction, poly_norm_backward, poly_norm_forward
from liger_kernel.transformers import LigerPolyNorm
from liger_kernel.transformers.functional import liger_poly_norm

EPS = 1e-6
OWED = [
    Case("poly_norm", LigerPolyNormFunction,
         lambda n: [torch.randn(2, n, HIDDEN), torch.randn(3), torch.randn(1), EPS], (0, 1, 2))
]  # fmt: skip


def poly_norm(x, weight, bias):
    powers = [x**p / ((x**p).pow(2).mean(-1, keepdim=True) + EPS).sqrt() for p in (3, 2, 1)]
    return sum(w * power for w, power in zip(weight, powers)) + bias


def terms_of_dx(x, weight, dy):
    """What an element of dx is added up from, without the signs."""
    total = 0
    for w, p in zip(weight, (3, 2, 1)):
        rstd = ((x**p).pow(2).mean(-1, keepdim=True) + EPS).rsqrt()
        normal = x**p * rstd
        total = total + w * p * x ** (p - 1) * rstd * (dy + normal * (dy * normal).mean(-1, keepdim=True))
    return total.max()


def check(x, weight, bias, dy):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = LigerPolyNormFunction.apply(*leaves, EPS)
    y.backward(dy)
    twins = reference.twins(*leaves)
    expected = poly_norm(*twins)
    expected.backward(dy.cpu().double())
    found, right = [y, *(t.grad for t in leaves)], [expected, *(t.grad for t in twins)]
    # the terms of an element, and of the sums over everything, cancel: of what is added up, an f32 chain's error, and one
    # rounding to the result's own dtype
    wide, up = twins[0].detach().abs(), dy.cpu().double().abs()
    size = twins[1].detach().abs()
    terms = (poly_norm(wide, size, twins[2].detach().abs()).max(), terms_of_dx(wide, size, up), up.sum() * 3, up.sum())
    for ours, wanted, given, all_of_it in zip(found, right, (x, x, weight, bias), terms):
        assert ours.dtype is given.dtype and ours.shape == wanted.shape
        budget = reference.unit(given.dtype) * 1.01 * wanted.abs() + (16 + x.shape[-1] ** 0.5) * 2.0**-24 * all_of_it
        smallest = torch.finfo(given.dtype).smallest_normal * torch.finfo(given.dtype).eps
        assert ((ours.cpu().double() - wanted).abs() <= budget + smallest).all()
    return found


@pytest.mark.parametrize("weight_dtype, bias_dtype", list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, weight_dtype, bias_dtype):
    x, dy = (torch.randn(3, 5, 129, device=device).to(dtype) for _ in range(2))
    weight, bias = torch.rand(3, device=device) + 0.2, torch.randn((), device=device)
    check(x, weight.to(weight_dtype), bias.to(bias_dtype), dy)


@pytest.mark.parametrize(
    "shape", [(1, 1), (40,), (7, 8), (3000, 24), (2, 3, 2, 36), (2, 70001), (33, 4096), (5, 20000)]
)
def test_shapes(device, shape):
    x, dy = (torch.randn(shape, device=device) for _ in range(2))
    check(x, torch.tensor([0.5, 0.25, 1.0], device=device), torch.tensor([0.75], device=device), dy)


def test_module_and_helpers(device):
    module = LigerPolyNorm(eps=1e-5).to(device)
    assert (
        module.weight.tolist() == pytest.approx([1 / 3] * 3) and module.bias.shape == () and module.bias.item() == 1.0
    )
    assert repr(module) == "LigerPolyNorm(weight_shape=(3,), eps=1e-05, in_place=True)"
    x, dy = torch.randn(2, 2, 3, 40, device=device)
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.backward(dy)
    assert torch.equal(liger_poly_norm(x, module.weight, module.bias, 1e-5), y)
    with torch.no_grad():
        out, flat, rstd, block, warps = poly_norm_forward(x, module.weight, module.bias, 1e-5)
        found = poly_norm_backward(dy, flat, module.weight, rstd, block, warps, True)
    assert torch.equal(out, y) and flat.shape == (6, 40) and rstd.shape == (6, 3)
    assert all(map(torch.equal, found, [leaf.grad, module.weight.grad, module.bias.grad]))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_bias_of_many_dimensions(device, kind):
    x, weight = torch.randn(3, 8, device=device), torch.randn(3, device=device)
    bias = torch.full((1,) * 7, 0.5, device=device, dtype=kind, requires_grad=True)
    y = LigerPolyNormFunction.apply(x, weight, bias)
    (dbias,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    assert torch.equal(y, LigerPolyNormFunction.apply(x, weight, bias.detach().flatten()))
    assert dbias.shape == bias.shape and dbias.dtype is kind and dbias.item() == 24


def test_errors(device):
    x, weight, bias = torch.randn(2, 8, device=device), torch.ones(3, device=device), torch.ones((), device=device)
    for args, text in (((x, weight[:2], bias), r"\bW\b.*2.*3"), ((x, weight, weight), r"\bB\b")):
        with pytest.raises(AssertionError, match=text):
            LigerPolyNormFunction.apply(*args)
    with pytest.raises(ValueError, match=r"\bX is torch.float64"):
        LigerPolyNormFunction.apply(x.double(), weight, bias)
