"""RoPE against float64: head layouts, rotary sizes, and cos and sin of every shape and dtype."""

from __future__ import annotations

import pytest
import reference
import torch
from reference import DTYPES, assert_close

from liger_kernel.ops.rope import LigerRopeFunction, rope_backward, rope_forward


def angles(*shape, device="cpu"):
    theta = torch.rand(shape, device=device) * 6.28
    return theta.cos(), theta.sin()


def check(q, k, cos, sin, roundings=1.0, apply=LigerRopeFunction.apply, as_rope=lambda table: table):
    """roundings to the coarsest dtype involved: the store, and the operands where sin is coarser than q or k. as_rope: what
    RoPE has in the place of one of apply's tables."""
    q, k = q.requires_grad_(), k.requires_grad_()
    results = apply(q, k, cos, sin)
    upstream = [torch.randn_like(r) for r in results]
    torch.autograd.backward(results, upstream)
    tables = [as_rope(table.cpu().double()) for table in (cos.to(sin.dtype), sin)]
    for given, result, up in zip((q, k), results, upstream):
        (twin,) = reference.twins(given)
        expected = reference.rope(twin, *tables)
        expected.backward(up.cpu().double())
        assert result.transpose(1, 2).is_contiguous()
        coarser = max(given.dtype, sin.dtype, key=reference.unit)
        for actual, exact in ((result, expected), (given.grad, twin.grad)):
            assert actual.dtype is given.dtype
            assert_close(actual, exact, coarser, roundings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads_q, heads_k", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("dim", [8, 10, 7, 64])
def test_heads_and_dtypes(device, dtype, heads_q, heads_k, dim):
    q, k = (torch.randn(2, 5, h, dim, device=device).to(dtype).transpose(1, 2) for h in (heads_q, heads_k))
    check(q, k, *(a.to(dtype) for a in angles(1, 5, dim + dim % 2, device=device)))


@pytest.mark.parametrize("shape", [(5, 8), (1, 5, 8), (2, 5, 8)], ids=["2-D", "shared", "per batch"])
@pytest.mark.parametrize("columns", [8, 4, 5, 12])
def test_shapes_of_cos(device, shape, columns):
    q, k = torch.randn(2, 3, 5, 8, device=device), torch.randn(2, 1, 5, 8, device=device)
    check(q, k, *angles(*shape[:-1], columns, device=device))


def test_partial_rotary_passes_the_rest_through(device):
    q = torch.randn(1, 2, 3, 9, device=device)
    out, _ = LigerRopeFunction.apply(q, q, *angles(1, 3, 4, device=device))
    assert torch.equal(out[..., 4:], q[..., 4:])
    out, _ = LigerRopeFunction.apply(q, q, *angles(1, 3, 10, device=device))
    assert torch.equal(out[..., 8], q[..., 8])


# Of q, k, cos and sin.
MIXED_DTYPES = [
    (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float16, torch.float32, torch.float32),
    (torch.float16, torch.float16, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16, torch.float32, torch.float16),
]


def of_dtypes(dtypes, dim, cos, sin):
    """Heads, and the given tables, each of its own dtype."""
    device = cos.device
    heads = torch.randn(2, 2, 5, dim, device=device), torch.randn(2, 1, 5, dim, device=device)
    return [t.to(dtype) for t, dtype in zip((*heads, cos, sin), dtypes, strict=True)]


def sliced_heads(device):
    """Slices of one projection."""
    packed = torch.randn(2, 5, 6, 8, device=device)
    return packed[:, :, :4].transpose(1, 2), packed[:, :, 4:5].transpose(1, 2)


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=str)
def test_mixed_dtypes(device, dtypes):
    check(*of_dtypes(dtypes, 8, *angles(1, 5, 8, device=device)), roundings=3)


def test_strides(device):
    """Slices of one projection, cos and sin as slices of a longer table, and a transposed table."""
    q, k = sliced_heads(device)
    cos, sin = angles(1, 9, 16, device=device)
    check(q.detach(), k.detach(), cos[:, 2:7, :8], sin[:, 2:7, :8])
    cos, sin = (a.t() for a in angles(8, 5, device=device))
    check(q.detach(), torch.randn(2, 1, 8, 5, device=device).transpose(2, 3), cos, sin)


def test_helpers(device):
    q, k = torch.randn(2, 4, 5, 8, device=device), torch.randn(2, 2, 5, 8, device=device)
    cos, sin = angles(1, 5, 8, device=device)
    out_q, out_k, *same = rope_forward(q, k, cos, sin)
    assert same[0] is cos and same[1] is sin
    back_q, back_k = rope_backward(out_q, out_k, cos, sin)  # a rotation's gradient undoes it
    assert_close(back_q, q, torch.float32, 4)
    assert_close(back_k, k, torch.float32, 4)


def test_only_the_gradient_that_is_asked_for(device, monkeypatch):
    import liger_kernel.ops.rope as module

    asked = []
    native = module._native.rope_backward
    monkeypatch.setattr(
        module._native, "rope_backward", lambda *a: asked.append([t is None for t in a[:2]]) or native(*a)
    )
    q, k = torch.randn(1, 2, 3, 4, device=device, requires_grad=True), torch.randn(1, 1, 3, 4, device=device)
    out_q, out_k = LigerRopeFunction.apply(q, k, *angles(1, 3, 4, device=device))
    torch.autograd.backward(
        (out_q, out_k), (torch.ones(out_q.shape, device=device), torch.ones(out_k.shape, device=device))
    )
    assert asked == [[False, True]] and q.grad is not None and k.grad is None


def test_fifth_argument(device):
    q = torch.randn(1, 2, 3, 4, device=device)
    cos, sin = angles(1, 3, 4, device=device)
    plain = LigerRopeFunction.apply(q, q, cos, sin)
    for extra in ((None, 1), (1,), (torch.arange(3), 1)):
        assert torch.equal(LigerRopeFunction.apply(q, q, cos, sin, *extra)[0], plain[0])
    with pytest.raises(ValueError, match=r"unsqueeze_dim is 2.*1"):
        LigerRopeFunction.apply(q, q, cos, sin, 2)


def test_errors(device):
    q = torch.randn(1, 2, 3, 4, device=device)
    cos, sin = angles(1, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"q has 3 dimensions"):
        LigerRopeFunction.apply(q[0], q, cos, sin)
    with pytest.raises(ValueError, match=r"cos.*2.*3|cos.*3.*2"):
        LigerRopeFunction.apply(q, q, cos[:, :2], sin[:, :2])
    with pytest.raises(ValueError, match=r"sin"):
        LigerRopeFunction.apply(q, q, cos, sin[:, :2])
    with pytest.raises(ValueError, match=r"4.*2|2.*4"):
        LigerRopeFunction.apply(q, q[..., :2], cos, sin)
    with pytest.raises(ValueError, match="float64.*float32, float16 and bfloat16"):
        LigerRopeFunction.apply(q.double(), q.double(), cos, sin)
