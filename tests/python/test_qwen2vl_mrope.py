"""M-RoPE against float64: each pair's angle from the plane that its section names; and against transformers and RoPE."""

from __future__ import annotations

import pytest
import test_rope
import torch
from operator_case import Case
from reference import DTYPES, assert_close

import liger_kernel.transformers.functional as F
from liger_kernel.ops import (
    LigerQwen2VLMRopeFunction,
    LigerRopeFunction,
    qwen2vl_mrope_backward,
    qwen2vl_mrope_forward,
)
from liger_kernel.transformers.qwen2vl_mrope import liger_multimodal_rotary_pos_emb


def planes(*shape, device="cpu"):
    theta = torch.rand(3, *shape, device=device) * 6.28
    return theta.cos(), theta.sin()


def merged(table, section):
    """As transformers merges it: [3, B, S, C] -> [B, S, half], pair by pair."""
    plane = [0] * section[0] + [1] * section[1] + [2] * section[2]
    return torch.stack([table[p, ..., i] for i, p in enumerate(plane)], -1)


OWED = [
    Case("qwen2vl_mrope", LigerQwen2VLMRopeFunction,
         lambda n: [torch.randn(2, 4, n, 8), torch.randn(2, 2, n, 8), *planes(2, n, 8), [1, 2, 1]], (0, 1), 2),
]  # fmt: skip


def check(q, k, cos, sin, section, roundings=1.0):
    def apply(*args):
        return LigerQwen2VLMRopeFunction.apply(*args, section)

    test_rope.check(q, k, cos, sin, roundings, apply, lambda table: merged(table, section).repeat(1, 1, 2))


# Whole packs and odd ones, an empty section in each place, one section alone, an odd head.
SECTIONS = {
    128: [16, 24, 24],
    64: [11, 3, 18],
    16: [0, 4, 4],
    18: [4, 0, 5],
    32: [8, 8, 0],
    8: [0, 0, 4],
    7: [1, 1, 1],
}


def test_heads_without_pairs_pass_through(device):
    q = torch.randn(2, 3, 5, 1, device=device).requires_grad_()
    out, _ = LigerQwen2VLMRopeFunction.apply(q, q, *planes(2, 5, 1, device=device), [0, 0, 0])
    out.sum().backward()
    assert torch.equal(out, q) and torch.equal(q.grad, torch.ones_like(q))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads_q, heads_k", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("dim", SECTIONS)
def test_sections_and_dtypes(device, dtype, heads_q, heads_k, dim):
    q, k = (torch.randn(2, 5, h, dim, device=device).to(dtype).transpose(1, 2) for h in (heads_q, heads_k))
    check(q, k, *(a.to(dtype) for a in planes(2, 5, dim + dim % 2, device=device)), SECTIONS[dim])


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("columns", [8, 4, 5, 12])
def test_shapes_of_cos(device, batch, columns):
    """Also of three batches, which is the number of planes, and of one, whose axis is none of heads."""
    q, k = torch.randn(max(batch, 2), 3, 5, 8, device=device), torch.randn(max(batch, 2), 1, 5, 8, device=device)
    check(q, k, *planes(batch, 5, columns, device=device), [2, 1, 1])


@pytest.mark.parametrize("dtypes", test_rope.MIXED_DTYPES, ids=str)
def test_mixed_dtypes(device, dtypes):
    check(*test_rope.of_dtypes(dtypes, 16, *planes(1, 5, 16, device=device)), [2, 3, 3], roundings=3)


def test_strides(device):
    """Slices of one projection; tables that are slices, expanded over the batch, transposed, or the planes innermost."""
    q, k = test_rope.sliced_heads(device)
    cos, sin = planes(1, 9, 16, device=device)
    for laid_out in (
        lambda t: t[:, :, 2:7, :8],
        lambda t: t[:, :, 2:7, :8].expand(3, 2, 5, 8),
        lambda t: t[:, :, 2:7, :8].transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: t[:, :, 2:7].permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3),
        lambda t: t[:1, :, 2:7].expand(3, 1, 5, 16),
    ):
        check(q.detach(), k.detach(), laid_out(cos), laid_out(sin), [1, 2, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", SECTIONS)
def test_it_has_the_bits_of_rope(device, dtype, dim):
    """With the columns put together first."""
    q, k = (torch.randn(2, h, 5, dim, device=device).to(dtype).requires_grad_() for h in (4, 2))
    cos, sin = (a.to(dtype) for a in planes(2, 5, dim, device=device))
    one = [merged(t, SECTIONS[dim]) for t in (cos, sin)]
    found = LigerQwen2VLMRopeFunction.apply(q, k, cos, sin, SECTIONS[dim])
    expected = LigerRopeFunction.apply(q, k, *one, None, 1, dim - dim % 2)
    up = [torch.randn_like(r) for r in found]
    both = [(*results, *torch.autograd.grad(results, (q, k), up)) for results in (found, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers(device, dtype):
    """Its own embedding and rotation: three planes in transformers 4; merged before they are handed on from 5 on."""
    modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl", reason="needs transformers")
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig

    section = [2, 3, 3]
    rope = dict(rope_type="default", type="default", mrope_section=section, rope_theta=1e4)
    key = "rope_parameters" if hasattr(modeling, "apply_rotary_pos_emb") else "rope_scaling"
    config = Qwen2VLTextConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, **{key: rope})
    embedding = modeling.Qwen2VLRotaryEmbedding(config=config).to(device)
    q, k = (torch.randn(2, h, 5, 16, device=device).to(dtype).requires_grad_() for h in (4, 2))
    positions = torch.randint(0, 50, (3, 2, 5), device=device)
    cos, sin = embedding(q, positions)
    if cos.dim() == 4:
        expected = modeling.apply_multimodal_rotary_pos_emb(q, k, cos, sin, section)
    else:
        expected = modeling.apply_rotary_pos_emb(q, k, cos, sin)
    angle = (positions[..., None] * embedding.inv_freq).repeat(1, 1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    up = [torch.randn_like(r) for r in expected]
    gradients = torch.autograd.grad(expected, (q, k), up)
    for function in (liger_multimodal_rotary_pos_emb, F.liger_qwen2vl_mrope):
        found = function(q, k, cos, sin, section)
        # transformers rounds both products and their sum, and its angles may have other last bits
        for actual, exact in zip((*found, *torch.autograd.grad(found, (q, k), up)), (*expected, *gradients)):
            assert_close(actual, exact.detach().cpu().double(), dtype, 6)


def test_helpers(device):
    q, k = torch.randn(2, 4, 5, 8, device=device), torch.randn(2, 2, 5, 8, device=device)
    cos, sin = planes(1, 5, 8, device=device)
    out_q, out_k, *same = qwen2vl_mrope_forward(q, k, cos, sin, [1, 1, 2])
    assert same[0] is cos and same[1] is sin
    back_q, back_k = qwen2vl_mrope_backward(out_q, out_k, cos, sin, (1, 1, 2))  # a rotation's gradient undoes it
    assert_close(back_q, q.cpu().double(), torch.float32, 4)
    assert_close(back_k, k.cpu().double(), torch.float32, 4)


@pytest.mark.parametrize("asked", [0, 1])
def test_only_the_gradient_that_is_asked_for(device, asked):
    given = [torch.randn(1, h, 3, 8, device=device, requires_grad=h == 2 - asked) for h in (2, 1)]
    tables = planes(1, 3, 8, device=device)
    results = LigerQwen2VLMRopeFunction.apply(*given, *tables, [1, 2, 1])
    up = [torch.randn_like(r) for r in results]
    torch.autograd.backward(results, up)
    expected = qwen2vl_mrope_backward(*up, *tables, [1, 2, 1])
    assert torch.equal(given[asked].grad, expected[asked]) and given[1 - asked].grad is None


@pytest.mark.parametrize("transformed", [False, True], ids=["eager", "functorch"])
def test_errors(device, transformed):
    q = torch.randn(2, 2, 3, 8, device=device)
    cos, sin = planes(2, 3, 8, device=device)

    def call(*args):
        if transformed:
            return torch.func.vmap(lambda _: LigerQwen2VLMRopeFunction.apply(*args))(torch.zeros(1))
        return LigerQwen2VLMRopeFunction.apply(*args)

    for section in ([1, 2, 2], [1, 1], [2, 2, 0, 0], [-1, 3, 2], [2, 4, 2], []):
        with pytest.raises(ValueError, match=rf"mrope_section is \[{', '.join(map(str, section))}\].* 4, half"):
            call(q, q, cos, sin, section)
    for tables in (
        (cos[0, 0, 0, 0], sin),
        (cos, sin[0, 0, 0, 0]),
        (cos[0], sin[0]),
        (cos[:2], sin[:2]),
        (cos, sin[:, :1, :2]),
        (cos.repeat(1, 2, 1, 1), sin),
        (cos[..., :3], sin[..., :3]),
        (cos.double(), sin),
    ):
        with pytest.raises(ValueError, match="cos|sin"):
            call(q, q, *tables, [1, 2, 1])
    with pytest.raises(ValueError, match="q has 0 dimensions"):
        call(q[0, 0, 0, 0], q, cos, sin, [1, 2, 1])
    with pytest.raises(ValueError, match="q has 3 dimensions"):
        call(q[0], q, cos, sin, [1, 2, 1])
    with pytest.raises(ValueError, match="8 elements, but k's have 4"):
        call(q, q[..., :4], cos, sin, [1, 2, 1])
    with pytest.raises(ValueError, match=r"unsqueeze_dim is 2.*1"):
        call(q, q, cos, sin, [1, 2, 1], 2)
