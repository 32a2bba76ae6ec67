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
    rounding = 0
    if sin.dtype is not dtype and sin.dtype in _NATIVE_DTYPE:
        rounding = _NATIVE_DTYPE[sin.dtype]
        cos, sin = cos.float(), sin.float()
    return _heads(cos), _heads(sin), rounding


def _rotary_size(x: Tensor, cos: Tensor) -> int:
    """Elements of a head that are rotated: all but an odd last one, or what cos has columns for (partial rotary)."""
    return min(x.shape[-1], cos.shape[-1]) & ~1


def _heads(x: Tensor) -> Tensor:
    """Any strides will do but for the last dimension's."""
    return x if x.is_contiguous() or x.stride(-1) == 1 else x.contiguous()


def _rotate_one(function: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = _rotary_size(x, cos)
    cos, sin, rounding = _angles(cos, sin, x.dtype)
    out = _new_heads(x)
    function(_heads(x), None, cos, sin, out, None, rotary, rounding)
    return out


def _rotate(function: Any, q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor) -> tuple:
    if q is None or k is None or q.dtype is not k.dtype:
        return tuple(None if x is None else _rotate_one(function, x, cos, sin) for x in (q, k))
    rotary = _rotary_size(q, cos)
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


def _forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    _check(q, k, cos)
    return _rotate(_native.rope_forward, q, k, cos, sin)


def _quick(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    rotary = _rotary_size(q, cos)
    return _native.rope_forward(q, k, cos, sin, HEADS_OF_FIRST, HEADS_OF_SECOND, rotary, 0)


def _backward(cos: Tensor, sin: Tensor, dq: Tensor | None, dk: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of an absent upstream is absent too."""
    for_q, for_k = _rotate(_native.rope_backward, dq, dk, cos, sin)
    return for_q if for_q is not None else absent(cos), for_k if for_k is not None else absent(cos)


def _fake(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _new_heads(q), _new_heads(k)


def _backward_fake(cos: Tensor, sin: Tensor, dq: Tensor | None, dk: Tensor | None) -> tuple[Tensor, Tensor]:
    return _new_heads(dq) if dq is not None else absent(cos), _new_heads(dk) if dk is not None else absent(cos)


rope = Operator("rope(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)", _forward, _fake, _quick)
rope_gradient = Operator(
    "rope_backward(Tensor cos, Tensor sin, Tensor? dq, Tensor? dk) -> (Tensor, Tensor)", _backward, _backward_fake
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[2], inputs[3])


def _gradient(ctx: Any, dq: Tensor | None, dk: Tensor | None) -> tuple:
    """Only what is asked for and has an upstream; the gradient of an output that nobody used is zero, which is None."""
    dq, dk = (up if needed else None for up, needed in zip((dq, dk), ctx.needs_input_grad))
    if dq is None and dk is None:
        return (None,) * 4
    for_q, for_k = rope_gradient(*ctx.saved_tensors, dq, dk)
    return for_q if dq is not None else None, for_k if dk is not None else None, None, None


rope.register_gradient(_setup_context, _gradient)


def rope_forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q', k', cos, sin)."""
    q, k = rope(q, k, cos, sin)
    return q, k, cos, sin


def rope_backward(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of q and k: the rotation by the opposite angle."""
    return rope_gradient(cos, sin, dq, dk)


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
    """`apply(q, k, cos, sin, position_ids=None, unsqueeze_dim=1)` -> (q', k').

    q [B, Hq, S, D] and k [B, Hk, S, D] of any strides; cos and sin [1 or B, S, R] or [S, R]. With h = min(D, R) // 2:
    x'[p] = x[p]·cos[p] - x[p+h]·sin[p], x'[p+h] = x[p+h]·cos[p] + x[p]·sin[p]; elements from 2h on pass through.
    f32 arithmetic, rounded once to the dtype of q (of k). The results are transposed views of [B, S, H, D] memory.
    position_ids is accepted and ignored; cos and sin get no gradient.
    """

    operator = "rope"
    differentiable = (0, 1)

    @staticmethod
    def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        if isinstance(position_ids, int):  # newer transformers pass unsqueeze_dim as the fifth argument
            unsqueeze_dim = position_ids
        if unsqueeze_dim != 1:
            raise LigerArgumentError(f"rope: unsqueeze_dim is {unsqueeze_dim}, but must be 1")
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cos, sin)
        return rope(q, k, cos, sin)

    @staticmethod
    def backward(ctx, dq, dk):
        refuse_second_derivative("LigerRopeFunction")
        return (*_gradient(ctx, dq, dk), None, None)

    @staticmethod
    def torch_forward(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        rotary = _rotary_size(q, cos)
        return _rotated_half(q, cos, sin, rotary), _rotated_half(k, cos, sin, rotary)
