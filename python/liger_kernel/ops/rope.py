"""Rotary position embedding, first half of a head paired with its second half.

J. Su et al.: RoFormer: Enhanced Transformer with Rotary Position Embedding (2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import HEADS_OF_FIRST, HEADS_OF_SECOND
from liger_kernel.ops._operator import (
    LigerArgumentError,
    LigerFunction,
    Operator,
    absent,
    fresh,
    refuse_second_derivative,
)

_NATIVE_DTYPE = {torch.float16: 2, torch.bfloat16: 3}


def _new_heads(x: Tensor) -> Tensor:
    """[B, heads, S, D] as a view of [B, S, heads, D] memory, the layout that projections and attention use."""
    batch, heads, seq, dim = x.shape
    strides = (seq * heads * dim, dim, heads * dim, 1)
    return fresh(torch.empty_strided((batch, heads, seq, dim), strides, dtype=x.dtype, device=x.device))


def _angles(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """cos and sin in a dtype that the kernel takes next to `dtype`, and the dtype code to which operands are rounded."""
    if cos.dtype is not sin.dtype:
        cos = cos.to(sin.dtype)
    cos, sin = _without_heads(cos), _without_heads(sin)
    rounding = 0
    if sin.dtype is not dtype and sin.dtype in _NATIVE_DTYPE:
        rounding = _NATIVE_DTYPE[sin.dtype]
        cos, sin = cos.float(), sin.float()
    return _heads(cos), _heads(sin), rounding


def _rotary_size(x: Tensor, cos: Tensor, rotary: int) -> int:
    """Elements of a head that are rotated. Where `rotary` is 0, which says nothing: all but an odd last one, or what cos
    has columns for (partial rotary)."""
    return rotary or min(x.shape[-1], cos.shape[-1]) & ~1


def _given_rotary(x: Tensor, cos: Tensor, rotary_dim: int | None) -> int:
    """`rotary_dim` as the operator takes it, which is the only way to say that cos has one column for each pair."""
    if rotary_dim is None:
        return 0
    if not 0 < rotary_dim <= x.shape[-1] or rotary_dim % 2:
        raise LigerArgumentError(f"rope: rotary_dim is {rotary_dim}, but must be even and in (0, {x.shape[-1]}]")
    if cos.shape[-1] < rotary_dim // 2:
        raise LigerArgumentError(
            f"rope: cos has {cos.shape[-1]} columns, but rotary_dim is {rotary_dim}, which needs {rotary_dim // 2}"
        )
    return rotary_dim


def _without_heads(table: Tensor) -> Tensor:
    """cos or sin, also where a model has put the axis of heads into it: [B, 1, S, C]."""
    return table.squeeze(1) if table.dim() == 4 and table.shape[1] == 1 else table


def _heads(x: Tensor) -> Tensor:
    """Any strides will do but for the last dimension's."""
    return x if x.is_contiguous() or x.stride(-1) == 1 else x.contiguous()


def _rotate_one(function: Any, x: Tensor, cos: Tensor, sin: Tensor, rotary: int) -> Tensor:
    rotary = _rotary_size(x, cos, rotary)
    cos, sin, rounding = _angles(cos, sin, x.dtype)
    out = _new_heads(x)
    function(_heads(x), None, cos, sin, out, None, rotary, rounding)
    return out


def _rotate(function: Any, q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor, rotary: int) -> tuple:
    if q is None or k is None or q.dtype is not k.dtype:
        return tuple(None if x is None else _rotate_one(function, x, cos, sin, rotary) for x in (q, k))
    rotary = _rotary_size(q, cos, rotary)
    cos, sin, rounding = _angles(cos, sin, q.dtype)
    q_out, k_out = _new_heads(q), _new_heads(k)
    function(_heads(q), _heads(k), cos, sin, q_out, k_out, rotary, rounding)
    return q_out, k_out


def _check(q: Tensor, k: Tensor, cos: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4:
        name, x = ("q", q) if q.dim() != 4 else ("k", k)
        raise LigerArgumentError(f"rope: {name} has {x.dim()} dimensions, but must be [batch, heads, seq, dim]")
    if q.shape[-1] != k.shape[-1]:
        raise LigerArgumentError(f"rope: q's heads have {q.shape[-1]} elements, but k's have {k.shape[-1]}")


def _forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotary: int = 0) -> tuple[Tensor, Tensor]:
    _check(q, k, cos)
    return _rotate(_native.rope_forward, q, k, cos, sin, rotary)


def _quick(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotary: int = 0) -> tuple[Tensor, Tensor]:
    rotary = _rotary_size(q, cos, rotary)
    return _native.rope_forward(q, k, cos, sin, HEADS_OF_FIRST, HEADS_OF_SECOND, rotary, 0)


def _backward(cos: Tensor, sin: Tensor, dq: Tensor | None, dk: Tensor | None, rotary: int = 0) -> tuple[Tensor, Tensor]:
    """The gradient of an absent upstream is absent too."""
    for_q, for_k = _rotate(_native.rope_backward, dq, dk, cos, sin, rotary)
    return for_q if for_q is not None else absent(cos), for_k if for_k is not None else absent(cos)


def _fake(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotary: int = 0) -> tuple[Tensor, Tensor]:
    return _new_heads(q), _new_heads(k)


def _backward_fake(
    cos: Tensor, sin: Tensor, dq: Tensor | None, dk: Tensor | None, rotary: int = 0
) -> tuple[Tensor, Tensor]:
    return _new_heads(dq) if dq is not None else absent(cos), _new_heads(dk) if dk is not None else absent(cos)


# `rotary` has a default everywhere: of an argument that equals the schema's, torch passes nothing on
rope = Operator(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, int rotary=0) -> (Tensor, Tensor)", _forward, _fake, _quick
)
rope_gradient = Operator(
    "rope_backward(Tensor cos, Tensor sin, Tensor? dq, Tensor? dk, int rotary=0) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _q, _k, cos, sin, *rotary = inputs
    ctx.rotary = rotary[0] if rotary else 0
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(cos, sin)


def _gradient(ctx: Any, dq: Tensor | None, dk: Tensor | None) -> tuple:
    """Only what is asked for and has an upstream; the gradient of an output that nobody used is zero, which is None."""
    dq, dk = (up if needed else None for up, needed in zip((dq, dk), ctx.needs_input_grad))
    if dq is None and dk is None:
        return (None,) * 5
    for_q, for_k = rope_gradient(*ctx.saved_tensors, dq, dk, ctx.rotary)
    return for_q if dq is not None else None, for_k if dk is not None else None, None, None, None


rope.register_gradient(_setup_context, _gradient)


def _require_heads_first(position_ids: Any, unsqueeze_dim: int) -> None:
    if isinstance(position_ids, int):  # newer transformers pass unsqueeze_dim as the fifth argument
        unsqueeze_dim = position_ids
    if unsqueeze_dim != 1:
        raise LigerArgumentError(f"rope: unsqueeze_dim is {unsqueeze_dim}, but must be 1")


def _three_dimensional(table: Tensor) -> Tensor:
    table = _without_heads(table)
    return table.unsqueeze(0) if table.dim() == 2 else table


def rope_forward(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q', k', cos, sin), the last two with three dimensions."""
    _require_heads_first(position_ids, unsqueeze_dim)
    q, k = rope(q, k, cos, sin, _given_rotary(q, cos, rotary_dim))
    return q, k, _three_dimensional(cos), _three_dimensional(sin)


def rope_backward(
    dq: Tensor,
    dk: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of q and k: the rotation by the opposite angle."""
    _require_heads_first(position_ids, unsqueeze_dim)
    return rope_gradient(cos, sin, dq, dk, _given_rotary(dq, cos, rotary_dim))


def _rotated_half(x: Tensor, cos: Tensor, sin: Tensor, rotary: int) -> Tensor:
    """One tensor in plain torch: x1·c - x2·s and x2·c + x1·s in f32 over the first `rotary` elements."""
    half = rotary // 2
    wide = x.to(sin.dtype).float()
    cos, sin = cos.to(sin.dtype).float()[..., :half], sin.float()[..., :half]
    if cos.dim() == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second, rest = wide[..., :half], wide[..., half:rotary], x[..., rotary:]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((rotated.to(x.dtype), rest), -1)


class LigerRopeFunction(LigerFunction):
    """`apply(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None)` -> (q', k').

    q [B, Hq, S, D] and k [B, Hk, S, D] of any strides; cos and sin [1 or B, S, C], [S, C] or [1 or B, 1, S, C]. With
    h = R // 2, R = rotary_dim, or min(C, D) where that is None: x'[p] = x[p]·cos[p] - x[p+h]·sin[p], x'[p+h] =
    x[p+h]·cos[p] + x[p]·sin[p]; elements from 2h on pass through. ValueError unless rotary_dim is even, in (0, D], and cos
    has h columns: tables that are not duplicated, of h columns each, need it.
    f32 arithmetic, rounded once to the dtype of q (of k). The results are transposed views of [B, S, H, D] memory.
    position_ids is accepted and ignored; cos and sin get no gradient.
    """

    operator = "rope"
    differentiable = (0, 1)

    @staticmethod
    def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        _require_heads_first(position_ids, unsqueeze_dim)
        ctx.rotary = _given_rotary(q, cos, rotary_dim)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cos, sin)
        return rope(q, k, cos, sin, ctx.rotary)

    @staticmethod
    def backward(ctx, dq, dk):
        refuse_second_derivative("LigerRopeFunction")
        return (*_gradient(ctx, dq, dk), None, None)

    @staticmethod
    def torch_forward(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        _require_heads_first(position_ids, unsqueeze_dim)
        rotary = _rotary_size(q, cos, _given_rotary(q, cos, rotary_dim))
        return _rotated_half(q, cos, sin, rotary), _rotated_half(k, cos, sin, rotary)
