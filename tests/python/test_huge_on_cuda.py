"""More rows or heads than 32 bits count. Needs `--device cuda` and a GPU of 80 GB or more, for LayerNorm and
cross entropy 96."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from liger_kernel import ops

ROWS = 2**32 + 8
SEEN = [0, 5, 2**31 + 3, 2**32 - 1, 2**32, 2**32 + 5, 2**32 + 7]  # rows that are compared


def _with_free_memory(device, gigabytes):
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GB of free memory")
    yield device
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def huge(device):
    """The device, with 60 GB to spare."""
    yield from _with_free_memory(device, 60)


@pytest.fixture
def vast(device):
    """The device, with 90 GB to spare."""
    yield from _with_free_memory(device, 90)


def rows_of(x: Tensor) -> Tensor:
    return torch.stack([x[r] for r in SEEN])


def filled(x: Tensor) -> Tensor:
    """Ones, but for the rows that are compared."""
    x.fill_(1)
    for r in SEEN:
        x[r].normal_()
    return x


def test_rms_norm_of_more_than_2_to_the_32_rows(huge):
    x = filled(torch.empty(ROWS, 1, dtype=torch.bfloat16, device=huge))
    few = rows_of(x).requires_grad_()
    w = torch.tensor([1.5], dtype=torch.bfloat16, device=huge)
    expected = ops.LigerRMSNormFunction.apply(few, w, 0.5)
    found = ops.LigerRMSNormFunction.apply(x.requires_grad_(), w, 0.5)
    assert torch.equal(rows_of(found.detach()), expected)
    found.backward(torch.ones_like(found))
    expected.backward(torch.ones_like(expected))
    assert torch.equal(rows_of(x.grad), few.grad) and few.grad.abs().max() > 0


def upstream_of_few(found: Tensor, few: Tensor) -> Tensor:
    """Zeros, but for the rows that are compared, which have those of `few`."""
    upstream = torch.zeros_like(found)
    for r, row in zip(SEEN, few):
        upstream[r] = row
    return upstream


def assert_same_sums(found: Tensor, expected: Tensor, terms: int) -> None:
    """Sums of few terms and many zeros, in another order: each addition rounds once."""
    magnitude = expected.abs().max() + 4 * terms
    assert (found - expected).abs().max() <= terms * 2.0**-24 * magnitude and expected.abs().min() > 0


def test_parameters_of_rms_norm_hear_of_more_than_2_to_the_32_rows(huge):
    """x, y, dy and no dx: 26 GB; a statistic a row: 17 GB."""
    x = filled(torch.empty(ROWS, 1, dtype=torch.bfloat16, device=huge))
    w, w_few = (torch.tensor([1.5], device=huge, requires_grad=True) for _ in range(2))
    dy_few = torch.randn(len(SEEN), 1, device=huge).bfloat16() + 3
    found = ops.LigerRMSNormFunction.apply(x, w, 0.5, 0.0, "gemma")
    found.backward(upstream_of_few(found, dy_few))
    ops.LigerRMSNormFunction.apply(rows_of(x), w_few, 0.5, 0.0, "gemma").backward(dy_few)
    assert_same_sums(w.grad, w_few.grad, len(SEEN))


def test_parameters_of_layer_norm_hear_of_more_than_2_to_the_32_rows(vast):
    """x, y, dy and no dx: 52 GB; two statistics a row: 34 GB."""
    x = filled(torch.empty(ROWS, 2, dtype=torch.bfloat16, device=vast))
    parameters, few = ([torch.full((2,), v, device=vast, requires_grad=True) for v in (1.5, 0.5)] for _ in range(2))
    dy_few = torch.randn(len(SEEN), 2, device=vast).bfloat16() + 3
    found = ops.LigerLayerNormFunction.apply(x, *parameters, 0.5)
    found.backward(upstream_of_few(found, dy_few))
    ops.LigerLayerNormFunction.apply(rows_of(x), *few, 0.5).backward(dy_few)
    for one, expected in zip(parameters, few):
        assert_same_sums(one.grad, expected.grad, len(SEEN))


def test_cross_entropy_of_more_than_2_to_the_32_rows(vast):
    """Logits, their gradient, labels and row losses: 69 GB. All rows but those that are compared are ignored, so that the loss
    is theirs."""
    logits = filled(torch.empty(ROWS, 2, dtype=torch.bfloat16, device=vast))
    target = torch.full((ROWS,), -100, dtype=torch.int32, device=vast)
    for i, r in enumerate(SEEN):
        target[r] = i % 2
    few, labels = rows_of(logits).requires_grad_(), rows_of(target)
    found = ops.LigerCrossEntropyFunction.apply(logits.requires_grad_(), target, None)[0]
    expected = ops.LigerCrossEntropyFunction.apply(few, labels, None)[0]
    found.backward()
    expected.backward()
    assert torch.equal(rows_of(logits.grad), few.grad) and few.grad.abs().min() > 0
    assert sum(int(torch.count_nonzero(part)) for part in logits.grad.split(1 << 28)) == 2 * len(SEEN)
    torch.testing.assert_close(found, expected, rtol=torch.finfo(torch.bfloat16).eps, atol=0)


def test_divergence_of_more_than_2_to_the_32_rows(vast):
    """Both matrices, a gradient and labels: 69 GB. All rows but those that are compared are ignored."""
    x, y = (filled(torch.empty(ROWS, 2, dtype=torch.bfloat16, device=vast)) for _ in range(2))
    marks = torch.full((ROWS,), -100, dtype=torch.int32, device=vast)
    for r in SEEN:
        marks[r] = 1
    few, target = rows_of(x).requires_grad_(), rows_of(y)
    found = ops.LigerTVDLossFunction.apply(x.requires_grad_(), y, marks)
    expected = ops.LigerTVDLossFunction.apply(few, target)
    found.backward()
    expected.backward()
    assert torch.equal(rows_of(x.grad), few.grad) and few.grad.abs().min() > 0
    assert sum(int(torch.count_nonzero(part)) for part in x.grad.split(1 << 28)) == 2 * len(SEEN)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_divergence_of_rows_of_more_than_2_to_the_31_elements(huge):
    """Two of them, whose ends are compared with a call on the ends alone: 26 GB."""
    cols, end = 2**31 + 5, 4096
    x, y = (torch.full((2, cols), -4.0, dtype=torch.bfloat16, device=huge) for _ in range(2))
    for matrix in (x, y):
        matrix[:, -end:].normal_(-4)
    ends = x[:, -end:].clone().requires_grad_()
    found = ops.LigerJSDFunction.apply(x.requires_grad_(), y)
    expected = ops.LigerJSDFunction.apply(ends, y[:, -end:])
    found.backward()
    expected.backward()
    assert torch.equal(x.grad[:, -end:], ends.grad) and ends.grad.any()
    torch.testing.assert_close(found, expected, rtol=torch.finfo(torch.bfloat16).eps, atol=0)


def test_swiglu_of_more_than_2_to_the_32_strided_rows(huge):
    both = filled(torch.empty(ROWS, 2, dtype=torch.bfloat16, device=huge))
    few = rows_of(both)
    with torch.no_grad():
        found = ops.LigerSiLUMulFunction.apply(both[:, :1], both[:, 1:])
        expected = ops.LigerSiLUMulFunction.apply(few[:, :1], few[:, 1:])
    assert torch.equal(rows_of(found), expected)


def test_rope_of_more_than_2_to_the_30_heads(huge):
    heads = 2**30 + 8
    seen = [0, 5, 2**29 + 1, 2**30 - 1, 2**30, 2**30 + 7]
    q = torch.ones(1, heads, 1, 2, dtype=torch.bfloat16, device=huge)
    for h in seen:
        q[0, h].normal_()
    k = torch.randn(1, 3, 1, 2, dtype=torch.bfloat16, device=huge)
    angle = torch.tensor([[[0.3, 0.3]]], device=huge)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    with torch.no_grad():
        found_q, found_k = ops.LigerRopeFunction.apply(q, k, cos, sin)
        few_q, few_k = ops.LigerRopeFunction.apply(torch.stack([q[0, h] for h in seen])[None], k, cos, sin)
    assert torch.equal(torch.stack([found_q[0, h] for h in seen])[None], few_q) and torch.equal(found_k, few_k)


def test_relu_squared_of_more_than_2_to_the_32_elements(huge):
    x = filled(torch.empty(ROWS, 1, dtype=torch.bfloat16, device=huge))
    found, few = ops.relu_squared_forward(x), rows_of(x)
    assert torch.equal(rows_of(found), ops.relu_squared_forward(few))
    assert torch.equal(rows_of(ops.relu_squared_backward(x, found)), ops.relu_squared_backward(few, rows_of(found)))


def test_dyt_of_more_than_2_to_the_32_rows(huge):
    x = filled(torch.empty(ROWS, 1, dtype=torch.bfloat16, device=huge))
    few = rows_of(x).requires_grad_()
    parameters = [torch.tensor([v], device=huge) for v in (0.5, 1.5, 0.25)]
    found = ops.LigerDyTFunction.apply(x.requires_grad_(), *parameters)
    expected = ops.LigerDyTFunction.apply(few, *parameters)
    assert torch.equal(rows_of(found.detach()), expected)
    found.backward(torch.ones_like(found))
    expected.backward(torch.ones_like(expected))
    assert torch.equal(rows_of(x.grad), few.grad) and few.grad.abs().max() > 0


def test_poly_norm_of_more_than_2_to_the_32_rows(vast):
    """x and y: 17 GB; three statistics a row: 52 GB."""
    x = filled(torch.empty(ROWS, 1, dtype=torch.bfloat16, device=vast))
    weight, bias = torch.tensor([0.5, 0.25, 1.0], device=vast), torch.tensor(0.5, device=vast)
    with torch.no_grad():
        found = ops.LigerPolyNormFunction.apply(x, weight, bias, 0.5)
        assert torch.equal(rows_of(found), ops.LigerPolyNormFunction.apply(rows_of(x), weight, bias, 0.5))


@pytest.mark.parametrize("shape", [(3, 4, 2**28 + 8), (1, 4, 2**29 + 8)])
def test_group_norm_of_more_than_2_to_the_31_elements(huge, shape):
    """A group at a time is the same; of both shapes no sample, and of the second no group, is cut off at 32 bits."""
    batch, channels, _ = shape
    x = torch.empty(shape, dtype=torch.bfloat16, device=huge).normal_().requires_grad_()
    weight, bias = torch.tensor([[0.5, 1.0, 1.5, 2.0], [0.0, 0.5, 1.0, 1.5]], device=huge)
    found = ops.LigerGroupNormFunction.apply(x, weight, bias, channels, channels, 1e-6)
    found.backward(found.detach())
    for b in range(batch):
        for c in range(channels):
            part = x.detach()[b : b + 1, c : c + 1].requires_grad_()
            expected = ops.LigerGroupNormFunction.apply(part, weight[c : c + 1], bias[c : c + 1], 1, 1, 1e-6)
            expected.backward(expected.detach())
            assert torch.equal(found.detach()[b : b + 1, c : c + 1], expected)
            assert torch.equal(x.grad[b : b + 1, c : c + 1], part.grad)


def test_multi_token_attention_of_more_than_2_to_the_31_elements(huge):
    """A plane at a time is the same."""
    scores = torch.empty(1, 3, 27000, 27000, dtype=torch.bfloat16, device=huge).normal_().requires_grad_()
    weight = torch.randn(3, 1, 3, 3, device=huge).bfloat16()
    found = ops.LigerMultiTokenAttentionFunction.apply(scores, weight, None, 1, 1, 1, 3)
    found.backward(found.detach())
    for c in range(3):
        part = scores.detach()[:, c : c + 1].requires_grad_()
        expected = ops.LigerMultiTokenAttentionFunction.apply(part, weight[c : c + 1], None, 1, 1, 1, 1)
        expected.backward(expected.detach())
        assert torch.equal(found.detach()[:, c : c + 1], expected)
        assert torch.equal(scores.grad[:, c : c + 1], part.grad)


def test_multi_token_attention_of_a_plane_of_more_than_2_to_the_31_elements(huge):
    """Its last rows, from the formula."""
    size = 46344
    scores = torch.empty(1, 1, size, size, dtype=torch.bfloat16, device=huge).normal_().requires_grad_()
    weight = torch.randn(1, 1, 3, 3, device=huge).bfloat16()
    found = ops.LigerMultiTokenAttentionFunction.apply(scores, weight, None, 1, 1)
    found.backward(found.detach())
    rows, wide = slice(size - 12, size), weight.float()
    future = torch.ones(12, size, dtype=torch.bool, device=huge).triu(size - 11)
    p = scores.detach()[:, :, rows].float().masked_fill(future, -torch.inf).softmax(-1)
    y = torch.nn.functional.conv2d(p, wide, padding=(0, 1))
    terms = torch.nn.functional.conv2d(p, wide.abs(), padding=(0, 1))
    seen = ~future[1:-1]
    assert ((found.detach()[0, 0, rows][1:-1] - y[0, 0]).abs()[seen] <= 2.0**-7 * terms[0, 0][seen]).all()
    dp = torch.nn.functional.conv2d(found.detach()[:, :, rows].float(), wide.flip(2, 3), padding=(0, 1))
    p, dp = p[0, 0, 1:-1], dp[0, 0]
    dscores = p * (dp - (p * dp).sum(-1, keepdim=True))
    budget = 2.0**-6 * p * dp.abs().amax(-1, keepdim=True)
    assert ((scores.grad[0, 0, rows][1:-1] - dscores).abs() <= budget + 1e-30).all()
    assert not scores.grad[0, 0, -12:-1, -1].any()
