"""Rotary embedding in its call forms, and the tables that models bring."""

from __future__ import annotations

import pytest
import torch
from modules import assert_close

import liger_kernel.transformers as lk
import liger_kernel.transformers.functional as F
from liger_kernel.ops import (
    rope_backward,
    rope_forward,
)


def reference_rope(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def test_rope_call_forms(device):
    q, k = torch.randn(2, 4, 5, 8, device=device), torch.randn(2, 2, 5, 8, device=device)
    angle = torch.randn(1, 5, 4, device=device)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    expected = tuple(reference_rope(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (q, k))
    for result in (
        lk.liger_rotary_pos_emb(q, k, cos, sin),
        lk.liger_rotary_pos_emb(q, k, cos, sin, None, 1),
        lk.liger_rotary_pos_emb(q, k, cos, sin, 1),  # newer transformers: the fifth argument is unsqueeze_dim
        lk.liger_rotary_pos_emb(q=q, k=k, cos=cos, sin=sin, position_ids=torch.arange(5), unsqueeze_dim=1),
        F.liger_rope(q, k, cos, sin),
    ):
        assert_close(result[0], expected[0])
        assert_close(result[1], expected[1])
    for wrong in (
        lambda: lk.liger_rotary_pos_emb(q, k, cos, sin, 2),
        lambda: lk.liger_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=0),
    ):
        with pytest.raises(ValueError, match="unsqueeze_dim"):
            wrong()


def tables(batch, seq, pairs, device):
    """cos and sin with one column for each pair."""
    angle = torch.randn(batch, seq, pairs, device=device)
    return angle.cos(), angle.sin()


def rotated(x, cos, sin, rotary):
    """`cos` and `sin` [batch, seq, rotary / 2]."""
    double = (torch.cat((table, table), -1).unsqueeze(1) for table in (cos, sin))
    return torch.cat((reference_rope(x[..., :rotary], *double), x[..., rotary:]), -1)


@pytest.mark.parametrize("rotary", [4, 6, 8], ids="rotary {}".format)
@pytest.mark.parametrize("layout", ["half", "whole", "wider", "strided", "two dimensions", "four dimensions"])
def test_rotary_dim(device, rotary, layout):
    q, k = (torch.randn(2, heads, 5, 8, device=device, requires_grad=True) for heads in (4, 2))
    halves = tables(1 if layout == "two dimensions" else 2, 5, rotary // 2, device)
    laid_out = {
        "half": lambda t: t,
        "whole": lambda t: torch.cat((t, t), -1),
        "wider": lambda t: torch.cat((t, torch.full((2, 5, 7), 9.0, device=device)), -1),
        "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
        "two dimensions": lambda t: t[0],
        "four dimensions": lambda t: t.unsqueeze(1),
    }[layout]
    cos, sin = (laid_out(table) for table in halves)
    expected = tuple(rotated(x, *halves, rotary) for x in (q, k))
    upstream = [torch.randn_like(x) for x in expected]
    gradients = torch.autograd.grad(expected, (q, k), upstream)
    for function in (lk.liger_rotary_pos_emb, F.liger_rope):
        result = function(q, k, cos, sin, rotary_dim=rotary)
        assert_close(result, expected)
        assert_close(torch.autograd.grad(result, (q, k), upstream), gradients)
    *result, cos_back, sin_back = rope_forward(q.detach(), k.detach(), cos, sin, rotary_dim=rotary)
    assert cos_back.ndim == sin_back.ndim == 3
    assert_close(tuple(result), tuple(x.detach() for x in expected))
    assert_close(tuple(rope_backward(*upstream, cos_back, sin_back, None, 1, rotary)), gradients)


def test_half_width_tables_of_gpt_oss(device):
    from liger_kernel.transformers.rope import liger_rotary_pos_emb_gpt_oss

    q, k = (torch.randn(2, heads, 5, 8, device=device) for heads in (4, 2))
    cos, sin = tables(2, 5, 4, device)
    assert_close(liger_rotary_pos_emb_gpt_oss(q, k, cos, sin), tuple(rotated(x, cos, sin, 8) for x in (q, k)))
    partial = lk.liger_rotary_pos_emb(q, k, cos, sin)  # by the width of cos: half a head
    assert_close(partial[0], rotated(q, cos[..., :2], sin[..., :2], 4))


@pytest.mark.parametrize("rotary", [-2, 0, 3, 10])
def test_wrong_rotary_dims(rotary):
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8)
    with pytest.raises(ValueError, match=rf"rotary_dim is {rotary}.*\(0, 8\]"):
        F.liger_rope(q, k, *tables(1, 3, 8, "cpu"), rotary_dim=rotary)
    with pytest.raises(ValueError, match="3 columns.*rotary_dim is 8"):
        F.liger_rope(q, k, *tables(1, 3, 3, "cpu"), rotary_dim=8)


def test_vision_rope(device):
    from liger_kernel.transformers.rope import liger_rotary_pos_emb_vision

    q, k = (torch.randn(5, heads, 8, device=device).bfloat16() for heads in (4, 2))
    angle = torch.randn(5, 4, device=device)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    for actual, x in zip(liger_rotary_pos_emb_vision(q, k, cos, sin), (q, k), strict=True):
        assert actual.shape == x.shape and actual.dtype == x.dtype
        assert_close(actual, reference_rope(x.float(), cos.unsqueeze(1), sin.unsqueeze(1)).bfloat16(), 1e-2)
