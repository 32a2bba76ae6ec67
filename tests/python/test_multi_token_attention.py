"""Multi-token attention against float64, with every form of kernel that keeps L x L. What every operator owes is tested in
test_operators*.py."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F
from operator_case import Case
from torch.utils.flop_counter import FlopCounterMode

from liger_kernel.ops import LigerMultiTokenAttentionFunction
from liger_kernel.ops.sparsemax import _sorted_formula
from liger_kernel.transformers import LigerMultiTokenAttention
from liger_kernel.transformers.functional import liger_multi_token_attention

apply = LigerMultiTokenAttentionFunction.apply
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def make(n):
    """As large as others' rows: in a forked child torch itself must not begin to use threads."""
    return [torch.randn(n, 2, 3, 3), torch.randn(2, 1, 3, 3) / 3, torch.randn(2), 1, 1, 1, 2]


OWED = [
    Case("multi_token_attention", LigerMultiTokenAttentionFunction, make, (0, 1, 2)),
]


def exact(scores, weight, bias, options, sparse=False, dtype=None):
    """In the dtype of its arguments; P rounded to `dtype`, which no gradient sees."""
    future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1)
    hidden = scores.masked_fill(future, -INF)
    nothing = (hidden == -INF).all(-1, keepdim=True)
    hidden = hidden.masked_fill(nothing, 0.0)
    p = (_sorted_formula(hidden) if sparse else hidden.softmax(-1)).masked_fill(nothing | future, 0.0)
    if dtype is not None:
        p = p + (p.to(dtype).double() - p).detach()
    return F.conv2d(p, weight, bias, *options).masked_fill(future, 0.0), p


def check(device, scores, weight, bias, options, sparse=False):
    """y and all gradients. Each is as exact as the sum of the magnitudes it is made of, in f32 sums, and as its roundings to T: its
    own, and those of P and of its gradient, which may fall to the other side."""
    leaves = [t.detach().clone().requires_grad_() if t is not None else None for t in (scores, weight, bias)]
    y = apply(*leaves, *options, sparse)
    dy = torch.randn_like(y.float()).to(y.dtype)
    found = torch.autograd.grad(y, [t for t in leaves if t is not None], dy)
    twins = reference.twins(*leaves)
    right, p = exact(*twins, options, sparse, scores.dtype)
    up = dy.cpu().double()
    expected = torch.autograd.grad(right, [t for t in twins if t is not None], up)
    with torch.enable_grad():
        sizes = [t.detach().abs().requires_grad_() if t is not None else None for t in twins]
        shares = p.detach().abs().requires_grad_()
        all_of_it = F.conv2d(shares, *sizes[1:], *options)
        causal = up.abs().tril()
        slopes = torch.autograd.grad(all_of_it, [shares, *(t for t in sizes[1:] if t is not None)], causal)
    unit, f32 = torch.finfo(scores.dtype).eps / 2, 2.0**-24
    inner = 0 if scores.dtype is torch.float32 else 2 * unit
    scale = max(1.0, float(scores[scores.isfinite()].abs().max())) if sparse else 1.0
    magnitudes = [2 * slopes[0].amax(-1, keepdim=True).expand_as(twins[0]), *slopes[1:]]
    assert y.dtype is scores.dtype and y.shape == right.shape
    terms = weight[0].numel() * 4
    budget = 1.01 * unit * right.abs() + (inner + (16 + terms**0.5) * f32 * scale) * (all_of_it + sizes[1].amax())
    tiny = torch.finfo(scores.dtype).smallest_normal * torch.finfo(scores.dtype).eps
    assert ((y.detach().cpu().double() - right).abs() <= budget.detach() + terms * tiny).all()
    for ours, wanted, leaf, magnitude in zip(found, expected, [t for t in leaves if t is not None], magnitudes):
        assert ours.dtype is leaf.dtype and ours.shape == leaf.shape
        own = torch.finfo(leaf.dtype).eps / 2
        budget = 1.01 * own * wanted.abs() + (2 * inner + (16 + y.numel() ** 0.5) * f32 * scale) * magnitude
        assert ((ours.cpu().double() - wanted).abs() <= budget + terms * tiny).all()
    beyond = torch.ones(scores.shape[2:], dtype=torch.bool, device=device).triu(1)
    assert not y[..., beyond].any() and not found[0][..., beyond].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 33, 64, 71, 130])
@pytest.mark.parametrize("channels, out, groups", [(2, 2, 2), (4, 6, 2), (3, 1, 1), (2, 4, 2)])
def test_values_and_gradients(device, dtype, size, channels, out, groups):
    scores = torch.randn(2, channels, size, size, device=device).to(dtype)
    weight = (torch.randn(out, channels // groups, 9, 9, device=device) / 9).to(dtype)
    bias = torch.randn(out, device=device).to(dtype)
    check(device, scores, weight, bias, (1, 4, 1, groups))


KERNELS = [
    # kernel, stride, padding, dilation
    ((1, 1), 1, 0, 1), ((3, 3), 1, 1, 1), ((5, 3), 1, (2, 1), 1), ((3, 9), 1, (1, 4), 1), ((9, 1), 1, (4, 0), 1),
    ((17, 7), 1, (8, 3), 1), ((19, 11), 1, (9, 5), 1), ((7, 7), 1, 9, 3), ((4, 4), 1, (3, 6), (2, 4)),
    ((2, 2), 1, 5, 10), ((6, 9), 1, (5, 4), (2, 1)), ((3, 3), 1, 60, 60), ((2, 3), (2, 3), (10, 21), (1, 2)),
    ((1, 1), 2, 10, 1), ((1, 3), (1, 2), (0, 11), 1), ((31, 1), 1, (15, 0), 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel, stride, padding, dilation", KERNELS)
def test_kernels_that_keep_the_size(device, dtype, kernel, stride, padding, dilation):
    scores = torch.randn(1, 2, 20, 20, device=device).to(dtype)
    weight = torch.randn(2, 1, *kernel, device=device).to(dtype)
    check(device, scores, weight, None, (stride, padding, dilation, 2))


@pytest.mark.parametrize("size", [1, 20, 67, 300])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_sparse(device, size, spread):
    scores = torch.randn(1, 2, size, size, device=device) * spread
    check(
        device, scores, torch.randn(2, 1, 3, 5, device=device), torch.randn(2, device=device), (1, (1, 2), 1, 2), True
    )


@pytest.mark.parametrize("dtype, weight_dtype", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                                                 (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)])  # fmt: skip
def test_mixed_dtypes(device, dtype, weight_dtype):
    scores = torch.randn(2, 2, 70, 70, device=device).to(dtype)
    weight, bias = torch.randn(2, 1, 9, 9, device=device).to(weight_dtype), torch.randn(2, device=device)
    check(device, scores, weight, bias.to(weight_dtype), (1, 4, 1, 2))
    check(device, scores, weight, bias.to(dtype), (1, 4, 1, 2))


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_of_nothing(device, sparse):
    """P is 0 and so is the gradient; what lies beyond the diagonal does not matter."""
    scores = torch.randn(1, 1, 12, 12, device=device)
    scores[..., 4, :5] = -INF
    scores[..., 0, 0] = -INF
    weight = torch.randn(1, 1, 3, 3, device=device)
    check(device, scores, weight, None, (1, 1, 1, 1), sparse)
    spoiled = torch.where(torch.ones_like(scores).triu(1) > 0, NAN, scores)
    assert torch.equal(
        apply(spoiled, weight, None, 1, 1, 1, 1, sparse), apply(scores, weight, None, 1, 1, 1, 1, sparse)
    )
    with torch.no_grad():
        plain = LigerMultiTokenAttentionFunction.torch_forward(spoiled, weight, None, 1, 1, 1, 1, sparse)
    assert torch.allclose(plain, apply(scores, weight, None, 1, 1, 1, 1, sparse), atol=1e-6)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_row_with_a_nan(device, value, sparse):
    scores = torch.randn(1, 1, 40, 40, device=device)
    scores[..., 20, 7] = value
    y = apply(scores, torch.ones(1, 1, 3, 3, device=device), None, 1, 1, 1, 1, sparse)
    rows = y.isnan().any(-1).flatten().nonzero().flatten()
    assert rows.tolist() == [19, 20, 21] and y[..., 20, :21].isnan().all() and not y[..., 20, 21:].any()


def test_the_softmax_of_bf16_is_no_worse_than_torch(device):
    scores = torch.randn(1, 4, 128, 128, device=device).bfloat16()
    weight = (torch.randn(4, 1, 9, 9, device=device) / 9).bfloat16()
    right, _ = exact(scores.cpu().double(), weight.cpu().double(), None, (1, 4, 1, 4))
    future = torch.ones(128, 128, dtype=torch.bool, device=device).triu(1)
    p = scores.masked_fill(future, -1e9).softmax(-1)
    theirs = F.conv2d(p, weight, None, 1, 4, 1, 4).masked_fill(future, 0.0)
    ours = apply(scores, weight, None, 1, 4, 1, 4)
    error, limit = ((t.cpu().double() - right).norm() for t in (ours, theirs))
    assert error <= 1.02 * limit


def test_what_is_refused(device):
    scores, weight = torch.randn(1, 4, 8, 8, device=device), torch.randn(4, 2, 3, 3, device=device)
    wrong = [
        ((scores, weight, None, 1, 0, 1, 2), "6 .*of 8"), ((scores, weight, None, 2, 1, 1, 2), "4 .*of 8"),
        ((scores, weight, None, 1, 1, 1, 4), "must have"), ((scores, weight, None, 1, 1, 1, 3), "groups"),
        ((scores[..., :7], weight, None, 1, 1, 1, 2), r"\[B, C, L, L\]|shape"),
        ((scores, weight, torch.randn(3, device=device), 1, 1, 1, 2), "bias"),
        ((scores, weight, None, (1, 1, 1), 1, 1, 2), "stride"), ((scores, weight, None, 1, "same", 1, 2), "padding"),
    ]  # fmt: skip
    for args, text in wrong:
        for function in (apply, LigerMultiTokenAttentionFunction.check):
            with pytest.raises(ValueError, match=text):
                function(*args)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(
            RuntimeError, match="sparse multi-token attention currently only supports fp32 input scores"
        ):
            apply(scores.to(dtype), weight.to(dtype), None, 1, 1, 1, 2, True)


def formula(*args):
    LigerMultiTokenAttentionFunction.check(*args)
    return LigerMultiTokenAttentionFunction.torch_forward(*args)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batch, size", [(2, 0), (0, 4), (0, 0)])
def test_nothing_to_attend_to(device, batch, size, sparse):
    """Whatever the padding, the result is as empty as scores, and parameters have gradients of zeros."""
    for function in (apply, formula):
        for padding in (1, 0) if size == 0 else (1,):
            given = [torch.randn(batch, 2, size, size), torch.randn(4, 1, 3, 3), torch.randn(4)]
            given = [t.to(device).requires_grad_() for t in given]
            y = function(*given, 1, padding, 1, 2, sparse)
            assert y.shape == (batch, 4, size, size) and y.dtype is torch.float32
            grads = torch.autograd.grad(y, given, torch.ones_like(y))
            assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, given))
    several = torch.randn(3, batch, 2, size, size, device=device)
    found = torch.func.vmap(lambda s: apply(s, *given[1:], 1, 1, 1, 2, sparse))(several)
    assert found.shape == (3, batch, 4, size, size)


@pytest.mark.parametrize("on", ["device", "meta"])
@pytest.mark.parametrize("function", [apply, formula, torch.ops.liger.multi_token_attention])
def test_what_has_no_channels_or_no_size_is_refused(device, function, on):
    device = device if on == "device" else "meta"
    for scores, weight, padding, text in [
        ((1, 0, 4, 4), (2, 0, 3, 3), 1, "scores.* 0.* 1 or more"), ((1, 2, 4, 4), (0, 2, 3, 3), 1, "weight.* 0.* 1 or more"),
        ((1, 0, 4, 4), (0, 0, 3, 3), 1, "0.* 1 or more"), ((1, 2, 4, 4), (2, 2, 0, 3), 1, "weight.*0"),
        ((1, 2, 6, 6), (2, 2, 3, 3), 0, "4 .*of 6"), ((1, 2, 0, 0), (2, 2, 3, 3), -1, "padding.* -1"),
        ((1, 2, 4, 4), (2, 3, 3, 3), 1, "weight.* 3"), ((1, 2, 4, 5), (2, 2, 3, 3), 1, "scores.* 5"),
    ]:  # fmt: skip
        args = (torch.randn(scores, device=device), torch.randn(weight, device=device), None)
        with pytest.raises(ValueError, match=text):
            if function in (apply, formula):
                function(*args, 1, padding)
            else:
                function(*args, 1, 1, padding, padding, 1, 1, 1, 0)


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,), ()])
def test_flops_are_those_of_torchs_convolution(device, wanted):
    scores, weight = torch.randn(3, 2, 8, 8, device=device), torch.randn(5, 2, 3, 5, device=device)
    given = [t.requires_grad_(i in wanted) for i, t in enumerate((scores, weight, torch.randn(5, device=device)))]
    counts = []
    for function in (apply, F.conv2d):
        with FlopCounterMode(display=False) as counter:
            y = function(*given, 1, (1, 2))
            if wanted:
                torch.autograd.grad(y, [given[i] for i in wanted], torch.ones_like(y))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 3 * 8 * 8 * weight.numel() * (1 + len({0, 1} & {*wanted}))


def test_module(device):
    torch.manual_seed(0)
    module = LigerMultiTokenAttention(4, 6, (3, 5), padding=(1, 2), groups=2).to(device)
    assert module.weight.shape == (6, 2, 3, 5) and not module.bias.any() and module.kernel_size == (3, 5)
    bound = (1 / 30) ** 0.5  # Kaiming's for a = sqrt(5)
    assert 0.8 * bound < module.weight.abs().max() <= bound
    assert module.stride == (1, 1) and module.padding == (1, 2) and module.dilation == (1, 1)
    scores = torch.randn(2, 4, 33, 33, device=device)
    found = module(scores)
    assert torch.equal(found, liger_multi_token_attention(scores, module.weight, module.bias, 1, (1, 2), 1, 2))
    check(device, scores, module.weight, module.bias, (1, (1, 2), 1, 2))
    bare = LigerMultiTokenAttention(4, 4, 3, padding=1, bias=False, sparse=True).to(device)
    assert bare.bias is None and "sparse=True" in repr(bare) and set(bare.state_dict()) == {"weight"}
    for groups in (0, -2, 3):
        with pytest.raises(ValueError, match=f"in_channels is 4 and out_channels is 4.*groups, which is {groups}"):
            LigerMultiTokenAttention(4, 4, 3, groups=groups)
    for wrong in ({"in_channels": 0}, {"out_channels": 0}, {"kernel_size": 0}, {"kernel_size": (3, 0)}, {"stride": 0},
                  {"dilation": (0, 1)}, {"padding": -1}, {"padding": "same"}, {"stride": (1, 1, 1)}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LigerMultiTokenAttention(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **wrong})
    before = bare.weight.detach().clone()
    bare.reset_parameters()
    assert not torch.equal(before, bare.weight) and bare(scores).shape == scores.shape
