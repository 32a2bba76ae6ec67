"""Dynamic tanh against float64, in every mix of dtypes."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from operator_case import HIDDEN, Case
from reference import DTYPES, assert_close

from liger_kernel.ops import LigerDyTFunction
from liger_kernel.ops.dyt import liger_dyt_bwd, liger_dyt_fwd
from liger_kernel.transformers import LigerDyT
from liger_kernel.transformers.functional import liger_dyt

OWED = [
    Case("dyt", LigerDyTFunction,
         lambda n: [torch.randn(2, n, HIDDEN), torch.rand(1) + 0.5, torch.randn(HIDDEN), torch.randn(HIDDEN)],
         (0, 1, 2, 3))
]  # fmt: skip


def dyt(x, alpha, gamma, beta):
    y = gamma * torch.tanh(alpha * x)
    return y if beta is None else y + beta


MIXED = [dtypes for dtypes in itertools.product(DTYPES, [*DTYPES, None]) if dtypes[0] is not dtypes[1]]


@pytest.mark.parametrize(
    "alpha_dtype, gamma_dtype, beta_dtype", [(d, d, d) for d in DTYPES] + [(torch.float32, *mix) for mix in MIXED]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, alpha_dtype, gamma_dtype, beta_dtype):
    x = torch.randn(3, 5, 129, device=device).to(dtype)
    alpha = torch.tensor([0.7], device=device).to(alpha_dtype)
    gamma = torch.randn(129, device=device).to(gamma_dtype)
    beta = None if beta_dtype is None else torch.randn(129, device=device).to(beta_dtype)
    leaves = [None if t is None else t.requires_grad_() for t in (x, alpha, gamma, beta)]
    y = LigerDyTFunction.apply(*leaves)
    dy = torch.randn_like(y)
    y.backward(dy)
    twins = reference.twins(*leaves)
    expected = dyt(*twins)
    expected.backward(dy.cpu().double())
    assert y.dtype is dtype
    assert_close(y, expected, dtype, 1.1)
    assert_close(x.grad, twins[0].grad, dtype, 1.1)
    for leaf, twin in zip(leaves[1:], twins[1:]):
        if leaf is not None:
            assert leaf.grad.dtype is leaf.dtype and leaf.grad.shape == leaf.shape
            # one rounding to its own dtype, after an f32 sum of terms as large as the upstream
            bound = (
                reference.unit(leaf.dtype) * twin.grad.abs() + 64 * reference.unit(torch.float32) * dy.numel() ** 0.5
            )
            assert ((leaf.grad.cpu().double() - twin.grad).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(1, 1), (7, 8), (5000, 24), (3, 70001), (33, 4096)])
def test_shapes(device, shape):
    x, dy = (torch.randn(shape, device=device) for _ in range(2))
    alpha, gamma, beta = torch.tensor(0.5, device=device), *torch.randn(2, shape[1], device=device)
    leaves = [t.requires_grad_() for t in (x, alpha, gamma, beta)]
    LigerDyTFunction.apply(*leaves).backward(dy)
    twins = reference.twins(*leaves)
    dyt(*twins).backward(dy.cpu().double())
    for leaf, twin in zip(leaves, twins):
        assert (leaf.grad.cpu().double() - twin.grad).abs().max() <= 3e-5 * max(
            1, shape[0] ** 0.5
        ) + 1e-6 * x.numel() ** 0.5


def test_a_saturated_slope_does_not_cancel(device):
    """1 - tanh² of 6 is 2.5e-5: taken from a rounded tanh it would have five bits left, and none at 9."""
    x = torch.linspace(-12, 12, 97, device=device, requires_grad=True)
    ones = torch.ones(97, device=device)
    LigerDyTFunction.apply(x, ones[:1], ones, None).sum().backward()
    right = x.detach().cpu().double().cosh().pow(-2)
    assert ((x.grad.cpu().double() - right).abs() <= 2.0**-18 * right).all()


def test_without_beta(device):
    """In every form, and under torch.compile and func."""
    x, gamma, alpha = (torch.randn(s, device=device) for s in ((6, 8), (8,), (1,)))
    expected = dyt(x, alpha, gamma, None)
    found = [
        LigerDyTFunction.apply(x, alpha, gamma, None),
        torch.func.vmap(lambda row: LigerDyTFunction.apply(row, alpha, gamma, None))(x),
        torch.compile(lambda t: liger_dyt(t, alpha, gamma, None), backend="aot_eager", fullgraph=True)(x),
    ]
    exact = gamma.double() * torch.tanh(alpha.double() * x.double())
    for y in [expected, *found]:
        assert_close(y, exact, torch.float32, 1.1)
    leaf = x.clone().requires_grad_()
    compiled = torch.compile(lambda t: liger_dyt(t, alpha, gamma, None), backend="aot_eager", fullgraph=True)
    compiled(leaf).backward(torch.ones_like(x))
    assert torch.equal(leaf.grad, liger_dyt_bwd(torch.ones_like(x), x, alpha, gamma, None)[0])


def test_module_and_helpers(device):
    module = LigerDyT(40, init_alpha=0.25).to(device)
    assert module.alpha.tolist() == [0.25] and module.gamma.eq(1).all() and not module.beta.any()
    assert repr(module) == "LigerDyT(40, init_alpha=0.25, beta=True)" and LigerDyT(40, beta=False).beta is None
    x, dy = torch.randn(2, 2, 3, 40, device=device)
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.backward(dy)
    parameters = (module.alpha, module.gamma, module.beta)
    assert torch.equal(liger_dyt(x, *parameters), y) and torch.equal(liger_dyt_fwd(x, *parameters), y)
    found = liger_dyt_bwd(dy, x, *parameters)
    assert all(map(torch.equal, found, [leaf.grad, *(p.grad for p in parameters)]))
    assert liger_dyt_bwd(dy, x, module.alpha, module.gamma, None)[3] is None


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_alpha_of_many_dimensions(device, kind):
    x, gamma = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    alpha = torch.full((1,) * 7, 0.5, device=device, dtype=kind, requires_grad=True)
    y = LigerDyTFunction.apply(x, alpha, gamma, None)
    (dalpha,) = torch.autograd.grad(y, alpha, torch.ones_like(y))
    expected = liger_dyt_bwd(torch.ones_like(x), x, alpha.detach().flatten(), gamma, None)[1]
    assert torch.equal(y, liger_dyt_fwd(x, alpha.detach().flatten(), gamma, None))
    assert dalpha.shape == alpha.shape and dalpha.dtype is kind and torch.equal(dalpha.flatten(), expected)


def test_errors(device):
    x, ones = torch.randn(2, 8, device=device), torch.ones(8, device=device)
    for alpha, gamma, beta, name in ((ones, ones, ones, "alpha"), (ones[:1], ones[:7], ones, "gamma"),
                                     (ones[:1], ones, ones[:7], "beta")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"\b{name}\b.*"):
            LigerDyTFunction.apply(x, alpha, gamma, beta)
    with pytest.raises(ValueError, match=r"\balpha is torch.float64"):
        LigerDyTFunction.apply(x, ones[:1].double(), ones, None)
