"""sparsemax: values, supports and gradients against float64 and against fractions. What every operator owes is tested in
test_operators*.py."""

from __future__ import annotations

from fractions import Fraction

import numpy
import pytest
import torch
from operator_case import HIDDEN, Case

from liger_kernel.ops import LigerSparsemaxFunction
from liger_kernel.ops.sparsemax import sparsemax
from liger_kernel.transformers import LigerSparsemax
from liger_kernel.transformers.functional import liger_sparsemax

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")

OWED = [Case("sparsemax", LigerSparsemaxFunction, lambda n: [torch.randn(2, n, HIDDEN), -1], (0,))]


def bits(support, cols):
    """[rows, words] of int32 -> [rows, cols] of bool; the rest of the last word must be 0."""
    one_by_one = (support[..., None] >> torch.arange(32, device=support.device) & 1).flatten(-2).bool()
    assert not one_by_one[:, cols:].any()
    return one_by_one[:, :cols]


def exact(x):
    """(y, support) in float64, from a sort of each row; a shift by its largest value loses nothing where it counts."""
    wide = x.double()
    wide = wide - wide.amax(-1, keepdim=True)
    z = wide.sort(-1, descending=True).values
    sums, count = z.cumsum(-1), torch.arange(1, x.shape[-1] + 1, device=x.device)
    size = (1 + count * z > sums).sum(-1, keepdim=True)
    over = wide - (sums.gather(-1, size - 1) - 1) / size
    return over.clamp(min=0), over > 0


def check(x):
    y, support = sparsemax(x)
    right, members = exact(x)
    assert y.dtype is x.dtype and torch.equal(bits(support, x.shape[-1]), members.flatten(0, -2))
    unit, smallest = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    assert ((y.double() - right).abs() <= 0.505 * unit * right + 2.0**-23 + smallest).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 37), (5, 128), (3, 4096), (2, 70001), (2, 262144)])
def test_values_and_gradients(device, shape, dtype):
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    dy = torch.randn(shape, device=device).to(dtype)
    check(x.detach())
    (dx,) = torch.autograd.grad(LigerSparsemaxFunction.apply(x, -1), x, dy)
    members = exact(x.detach())[1]
    wide = dy.double() * members
    slope = (wide - wide.sum(-1, keepdim=True) / members.sum(-1, keepdim=True)) * members
    budget = 0.505 * torch.finfo(dtype).eps * slope.abs() + 2.0**-22 * wide.abs().amax(-1, keepdim=True)
    assert dx.dtype is dtype and ((dx.double() - slope).abs() <= budget).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1e-6, 1e-3, 0.1, 0.5, 3.0, 40.0])
def test_from_a_full_support_to_one_element(device, dtype, spread):
    for cols in (33, 1000, 4096, 20000):
        check((torch.randn(4, cols, device=device) * spread).to(dtype))
        check((torch.rand(4, cols, device=device) * spread).to(dtype))


def hard_rows(cols, device):
    """Ties, one-hot, constants, huge offsets, neighbouring floats, -inf, what tau is exactly, values that vanish beside 1."""
    one = torch.zeros(cols, device=device)
    first = one.clone()
    first[0] = 1
    steps = torch.arange(cols, device=device, dtype=torch.float32)
    lone = torch.full((cols,), -INF, device=device)
    lone[-1] = -3e38
    up = torch.nextafter(first + 1, torch.tensor(INF, device=device))
    return {
        "zeros": one, "one-hot of 1, where tau is 0": first, "one-hot": first * 30, "ties": (steps % 3 == 0).float() * 2,
        "constant": one - 7.25, "all but one -inf": lone, "huge": first * 1e30 + 3e38 * (steps % 2),
        "offset": 1e6 + steps % 7 * 0.0625, "negative offset": -1e6 - steps % 7 * 0.0625, "1 ulp apart": up + steps % 2 * 2.0**-23,
        "below 1": first + 2.0**-30, "steps": -steps / 64, "steps that end on tau": torch.where(steps < 2, 3 - steps / 2, 2.25),
        "subnormal": steps % 5 * 1e-44, "smallest": one - 3.4e38,
    }  # fmt: skip


@pytest.mark.parametrize("cols", [2, 3, 32, 37, 1024, 4096, 33000, 140000])
def test_hard_rows(device, cols):
    for name, row in hard_rows(cols, device).items():
        row = row[None].expand(3, -1)
        try:
            check(row)
            check(row.flip(-1).contiguous())
        except AssertionError as error:
            raise AssertionError(f"{name}, {cols} columns") from error


@pytest.mark.parametrize("dtype", DTYPES)
def test_support_is_that_of_fractions(device, dtype):
    """Where float64 would round too: every sum as a fraction."""
    torch.manual_seed(0)
    x = (torch.randint(-40, 41, (200, 9), device=device) / 64).to(dtype)
    found = bits(sparsemax(x)[1], 9).tolist()
    for row, members in zip(x.double().tolist(), found):
        z = sorted(map(Fraction, row), reverse=True)
        size = max(j for j in range(1, 10) if 1 + j * z[j - 1] > sum(z[:j]))
        tau = (sum(z[:size]) - 1) / size
        assert members == [Fraction(v) > tau for v in row]


def test_gradient_is_that_of_the_formula(device):
    x = torch.randn(4, 300, device=device, dtype=torch.float32).requires_grad_()
    dy = torch.randn(4, 300, device=device)
    (dx,) = torch.autograd.grad(LigerSparsemaxFunction.apply(x, -1), x, dy)
    wide = x.detach().double().requires_grad_()
    z = wide.sort(-1, descending=True).values
    sums, count = z.cumsum(-1), torch.arange(1, 301, device=device)
    size = (1 + count * z > sums).sum(-1, keepdim=True)
    y = (wide - (sums.gather(-1, size - 1) - 1) / size).clamp(min=0)
    (slope,) = torch.autograd.grad(y, wide, dy.double())
    assert (dx.double() - slope).abs().max() < 1e-6


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_dimension(device, dim):
    x, dy = (torch.randn(5, 6, 7, device=device).requires_grad_() for _ in range(2))
    y = LigerSparsemaxFunction.apply(x, dim)
    moved = x.detach().movedim(dim, -1).contiguous().requires_grad_()
    expected = LigerSparsemaxFunction.apply(moved, -1)
    assert y.shape == x.shape and torch.equal(y, expected.movedim(-1, dim))
    (dx,) = torch.autograd.grad(y, x, dy)
    (right,) = torch.autograd.grad(expected, moved, dy.movedim(dim, -1))
    assert torch.equal(dx, right.movedim(-1, dim))


@pytest.mark.parametrize("plain_torch", [False, True])
def test_no_dimension(device, plain_torch, monkeypatch):
    monkeypatch.setattr(LigerSparsemaxFunction, "_plain_torch", plain_torch)
    x = torch.randn(5, 6, 7, device=device)
    for dim in (3, -4):
        with pytest.raises(IndexError, match=rf"sparsemax: dim is out of range: it is {dim}, but must be in \[-3, 2\]"):
            LigerSparsemaxFunction.apply(x, dim)
    with pytest.raises(IndexError, match=r"dim is out of range: it is 1, but must be in \[-1, 0\]"):
        LigerSparsemax(1)(x[0, 0, 0])
    for dim in (1.0, True, "1", None):
        with pytest.raises(TypeError, match=f"sparsemax: dim must be an integer, but is {dim!r}"):
            LigerSparsemaxFunction.apply(x, dim)
    with pytest.raises(TypeError, match="dim"):
        LigerSparsemaxFunction.apply(x)
    assert torch.equal(LigerSparsemaxFunction.apply(x, numpy.int64(1)), LigerSparsemaxFunction.apply(x, 1))


def test_another_dimension_where_torch_looks(device):
    """What holds for the last dimension, from test_operators*.py, holds when it is moved there."""
    x = torch.randn(5, 6, 7, device=device)
    y = liger_sparsemax(x, 1)
    compiled = torch.compile(liger_sparsemax, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    found = compiled(leaf, 1)
    found.backward(x)
    expected = torch.autograd.functional.vjp(lambda z: liger_sparsemax(z, 1), x, x)[1]
    assert torch.equal(found, y) and torch.equal(leaf.grad, expected)
    assert torch.allclose(torch.func.vmap(lambda z: liger_sparsemax(z, 0))(x), y)
    assert torch.allclose(torch.func.jvp(lambda z: liger_sparsemax(z, 1), (x,), (x,))[1], expected, atol=1e-6)


def test_rows_without_tau(device):
    """A NaN, +inf or nothing but -inf: all NaN, and what comes from above is not lost."""
    x = torch.tensor([[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF] * 3, [0.0, -INF, 0.0]], device=device).requires_grad_()
    y = LigerSparsemaxFunction.apply(x, -1)
    assert y[:3].isnan().all() and y[3].tolist() == [0.5, 0.0, 0.5]
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, NAN))
    assert dx[:3].isnan().all() and dx[3, 1] == 0
    with torch.no_grad():
        assert torch.equal(LigerSparsemaxFunction.torch_forward(x, -1).isnan(), y.isnan())


def test_module_and_function(device):
    x = torch.randn(3, 24, device=device)
    y = LigerSparsemaxFunction.apply(x, 0)
    assert torch.equal(LigerSparsemax(0)(x), y) and torch.equal(liger_sparsemax(x, 0), y)
    assert torch.equal(LigerSparsemax()(x), liger_sparsemax(x)) and "dim=-1" in repr(LigerSparsemax())
    scalar = LigerSparsemaxFunction.apply(torch.tensor(3.0, device=device), -1)
    assert scalar.shape == () and scalar == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_as_large_as_tau_has_no_gradient(device, dtype):
    """On a coarse grid it happens in every other row: in the kernels and in the formula."""
    x = (torch.randint(-8, 9, (200, 24), device=device) / 4).to(dtype).requires_grad_()
    dy = torch.randn(200, 24, device=device).to(dtype)
    for function in (LigerSparsemaxFunction.apply, LigerSparsemaxFunction.torch_forward):
        y = function(x, -1)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert not dx[y == 0].any()
