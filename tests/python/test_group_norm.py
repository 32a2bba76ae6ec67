"""GroupNorm against float64, of three dimensions and more, in every mix of dtypes."""

from __future__ import annotations

import pytest
import reference
import torch
from operator_case import Case
from reference import DTYPES, assert_close

from liger_kernel.ops import LigerGroupNormFunction, group_norm_backward, group_norm_forward
from liger_kernel.transformers.functional import liger_group_norm
from liger_kernel.transformers.group_norm import LigerGroupNorm

EPS = 1e-5
OWED = [
    Case("group_norm", LigerGroupNormFunction,
         lambda n: [torch.randn(n, 6, 4), torch.randn(6), torch.randn(6), 6, 3, EPS], (0, 1, 2))
]  # fmt: skip


def run(x, weight, bias, groups, dy):
    """y and the gradients, ours and float64's, of leaves."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = LigerGroupNormFunction.apply(*leaves, x.shape[1], groups, EPS)
    y.backward(dy)
    twins = reference.twins(*leaves)
    expected = torch.nn.functional.group_norm(twins[0], groups, *twins[1:], EPS)
    expected.backward(dy.cpu().double())
    return [y, *(t.grad for t in leaves)], [expected, *(t.grad for t in twins)]


@pytest.mark.parametrize("weight_dtype, bias_dtype", [(d, d) for d in DTYPES] + [(torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, weight_dtype, bias_dtype):
    x, dy = (torch.randn(3, 6, 5, 7, device=device).to(dtype) for _ in range(2))
    weight, bias = torch.randn(6, device=device).to(weight_dtype), torch.randn(6, device=device).to(bias_dtype)
    found, expected = run(x, weight, bias, 2, dy)
    for ours, right, own in zip(found, expected, (dtype, dtype, weight_dtype, bias_dtype)):
        assert ours.dtype is own
        # an element is as exact as the largest of its sample
        assert_close(ours.reshape(len(ours), -1) if ours.dim() > 1 else ours,
                     right.reshape(len(right), -1) if right.dim() > 1 else right, own, 1, 105)  # fmt: skip


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize(
    "shape", [(2, 8, 1), (2, 8, 3), (3, 8, 2, 3), (1, 8, 2, 3, 4), (2, 8, 2, 1, 3, 5), (2, 8, 1, 2, 3, 2, 1), (2, 8, 1, 2, 1, 3, 2, 1, 1), (2, 8, 14, 14), (1, 8, 40000),
              (40, 8, 33), (1, 8, 129, 65), (500, 8, 4)]
)  # fmt: skip
def test_any_rank_and_size(device, shape, groups):
    if shape[2:] == (1,) and groups == 8:
        groups = 2  # of one value: the next test
    x, dy = (torch.randn(shape, device=device) for _ in range(2))
    weight, bias = torch.randn(2, 8, device=device)
    found, expected = run(x, weight, bias, groups, dy)
    rstd = 1 / x.reshape(shape[0], groups, -1).double().var(-1, unbiased=False).add(EPS).sqrt().min()
    scale = max(1.0, float(rstd)) * 16  # |dy|, |weight| and the normals together
    terms = x.numel() // 8
    for ours, right, sums in zip(found, expected, (1, 1, terms, terms)):
        assert ours.shape == right.shape
        assert (ours.cpu().double() - right).abs().max() <= 2.0**-22 * scale * (16 + sums**0.5)


@pytest.mark.parametrize("shape", [(2, 8, 2, 3, 2), (2, 8, 1, 2, 1, 3, 2, 1)])
def test_many_dimensions_where_torch_looks(device, shape):
    """And where the parameters have to be widened: one way each to the memory of the results."""
    module = LigerGroupNorm(8, 2, bias=True).to(device).half()
    x, dy = (torch.randn(shape, device=device).bfloat16() for _ in range(2))

    def gradients(module, x, dy):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        return [y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy)]

    found, expected = gradients(module, x, dy), gradients(module, x.flatten(2), dy.flatten(2))
    assert found[0].shape == found[1].shape == shape
    for other in (found, gradients(torch.compile(module, fullgraph=True, backend="aot_eager"), x, dy)):
        assert all(torch.equal(a.flatten(), b.flatten()) for a, b in zip(other, expected))


@pytest.mark.parametrize("plain_torch", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 0), (0, 8, 3), (2, 8, 3, 0, 2)])
def test_no_elements(device, shape, plain_torch, monkeypatch):
    monkeypatch.setattr(LigerGroupNormFunction, "_plain_torch", plain_torch)
    module, x = LigerGroupNorm(8, 2, bias=True).to(device), torch.randn(shape, device=device, requires_grad=True)
    y = module(x)
    y.backward(torch.ones_like(y))
    assert y.shape == x.grad.shape == shape
    assert not module.weight.grad.any() and not module.bias.grad.any()
    assert not any(t.any() for t in group_norm_forward(x, 8, 2, module.weight, module.bias, EPS)[2:4])


def test_groups_of_one_value(device):
    """Its normal is 0, whatever it is: only the bias is left, and only the bias has a gradient; that of x is what dy·weight and
    its mean over one value may differ by, where one of them is rounded and the other is not."""
    x, dy = (torch.randn(2, 8, 1, device=device) for _ in range(2))
    weight, bias = torch.randn(2, 8, device=device)
    (y, dx, dweight, dbias), expected = run(x, weight, bias, 8, dy)
    assert torch.equal(y, bias.view(1, 8, 1).expand(2, 8, 1)) and not dweight.any()
    assert ((dx * EPS**0.5).abs() <= reference.unit(torch.float32) * (dy * weight.view(1, 8, 1)).abs()).all()
    assert_close(dbias, expected[3], torch.float32, 1, 2)


@pytest.mark.parametrize("offset", [1e3, -3e4, 1e6])
def test_a_large_mean_does_not_cancel_the_variance(device, offset):
    """E[x²] - mean² would lose it: 1e9 · 2^-24 is more than the variance."""
    for shape in ((2, 4, 257), (1, 2, 70000)):
        x = torch.randn(shape, device=device) + offset
        ones, zeros = torch.ones(shape[1], device=device), torch.zeros(shape[1], device=device)
        y = LigerGroupNormFunction.apply(x, ones, zeros, shape[1], 2, EPS)
        exact = torch.nn.functional.group_norm(x.cpu().double(), 2, eps=EPS)
        # what the rounded mean lacks is carried: the offset is in no bound
        assert (y.cpu().double() - exact).abs().max() <= 1e-5


@pytest.mark.parametrize("offset", [0.0, 1e3, -3e4])
def test_gradients_at_a_large_mean(device, offset):
    """They start from the mean that forward returns, an f32: its rounding shifts every normal of a group alike."""
    x, dy = (torch.randn(8, 4, 130, device=device) for _ in range(2))
    weight, bias = (torch.randn(4, device=device) for _ in range(2))
    found, expected = run(x + offset, weight, bias, 2, dy)
    unit = reference.unit(torch.float32)
    shift = abs(offset) * unit * 1.3  # rstd is below 1.3
    g, up = (dy * weight.view(4, 1)).abs().cpu().double(), dy.abs().cpu().double()
    budgets = (
        1e-5,
        6 * shift * g.mean() * 2 + 64 * unit * g.max(),
        shift * up.sum((0, 2)) + 64 * unit * 260,
        64 * unit * 260,
    )
    for ours, exact, budget in zip(found, expected, budgets):
        assert ((ours.cpu().double() - exact).abs() <= budget).all()


def test_layouts(device):
    x = torch.randn(2, 5, 6, 4, device=device).permute(0, 2, 1, 3)
    weight, bias, dy = (torch.randn(s, device=device) for s in ((6,), (6,), (2, 6, 5, 4)))
    plain, _ = run(x.contiguous(), weight, bias, 3, dy)
    for made in (x, x.contiguous(memory_format=torch.channels_last)):
        found, _ = run(made, weight, bias, 3, dy.contiguous(memory_format=torch.channels_last))
        assert all(map(torch.equal, found, plain))


def test_misaligned(device):
    """Views of every offset within a pack of 16 bytes."""
    storage, upstream = torch.randn(2, 2 * 6 * 4096 + 8, device=device).bfloat16()
    weight, bias = torch.randn(2, 6, device=device)
    for offset in (0, 1, 4):
        x, dy = (t[offset : offset + 2 * 6 * 4096].view(2, 6, 4096) for t in (storage, upstream))
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        LigerGroupNormFunction.apply(*leaves, 6, 2, EPS).backward(dy)
        twins = reference.twins(*leaves)
        torch.nn.functional.group_norm(twins[0], 2, *twins[1:], EPS).backward(dy.cpu().double())
        assert_close(leaves[0].grad, twins[0].grad, torch.bfloat16, 1, 4096)
        for leaf, twin in zip(leaves[1:], twins[1:]):
            assert (leaf.grad.cpu().double() - twin.grad).abs().max() <= 1e-3


def test_module(device):
    module = LigerGroupNorm(6, 3, eps=1e-3, bias=True).to(device)
    assert repr(module) == "LigerGroupNorm(6, 3, eps=0.001)" and module.variance_epsilon == 1e-3
    zeros = LigerGroupNorm(6, 3, init_fn="zeros")
    assert not zeros.weight.any() and not zeros.bias.any() and len(list(zeros.parameters())) == 2
    x = torch.randn(2, 6, 5, 3, device=device)

    def assert_as_stock(y, x, dtype):
        stock = torch.nn.GroupNorm(3, 6, eps=1e-3).double()
        stock.load_state_dict(module.state_dict())
        assert_close(y.flatten(1), stock(x.cpu().double()).flatten(1), dtype, 1, 30)

    assert_as_stock(module(x), x, torch.float32)
    assert torch.equal(liger_group_norm(x, module.weight, module.bias, 6, 3, 1e-3), module(x))
    half = module.half()(x.half())
    assert half.dtype is torch.float16
    assert_as_stock(half, x.half(), torch.float16)
    for bad, text in (((6, 4), "multiple"), ((6, 0), "num_groups is 0"), ((6, -2), "num_groups is -2"),
                      ((6, 3, 1e-6, False, "other"), "init_fn")):  # fmt: skip
        with pytest.raises(AssertionError, match=text):
            LigerGroupNorm(*bad)
    for bad, text in ((x[:, :, 0, 0], "Input must have atleast 3 dimensions"), (x[:, :5], "5.*6")):
        with pytest.raises(AssertionError, match=text):
            module(bad)


def test_helpers(device):
    x, weight, bias, dy = (torch.randn(s, device=device) for s in ((2, 6, 5, 4), (6,), (6,), (2, 6, 5, 4)))
    y, saved, mean, rstd, _block = group_norm_forward(x, 6, 3, weight, bias, EPS)
    assert mean.shape == rstd.shape == (2, 3)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = LigerGroupNormFunction.apply(*leaves, 6, 3, EPS)
    out.backward(dy)
    found = group_norm_backward(dy, saved, weight, bias, mean, rstd, 6, 3)
    assert torch.equal(y, out) and all(map(torch.equal, found, [t.grad for t in leaves]))


def test_errors(device):
    x, ones = torch.randn(2, 6, 4, device=device), torch.ones(6, device=device)
    for args, text in (((x, ones[:5], ones, 6, 3), "affine_scaling_weight"), ((x, ones, ones[:5], 6, 3), "shifting_bias"),
                       ((x, ones, ones, 5, 3), "num_channels is 5"), ((x, ones, ones, 6, 4), "6 channels.*4 groups"),
                       ((x, ones, ones, 6, 0), "num_groups is 0"), ((x, ones, ones, 6, -2), "num_groups is -2"),
                       ((x.double(), ones, ones, 6, 3), r"\bX is torch.float64")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            LigerGroupNormFunction.apply(*args, EPS)
