"""Rotary position embedding, first half of a head paired with its second half.

J. Su et al.: RoFormer: Enhanced Transformer with Rotary Position Embedding (2021).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import NATIVE_DTYPE, heads, new_heads, require_float
from liger_kernel.ops._operator import Heads, LigerArgumentError, Made, Operator, Wish


def _angles(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """cos and sin in a dtype that the kernel takes next to `dtype`, and the dtype code to which operands are rounded."""
    if cos.dtype is not sin.dtype:
        cos = cos.to(sin.dtype)
    rounding = 0
    if sin.dtype is not dtype and sin.dtype is not torch.float32:
        rounding = NATIVE_DTYPE[sin.dtype]
        cos, sin = cos.float(), sin.float()
    return heads(cos), heads(sin), rounding


def _rotary_size(x: Tensor, cos: Tensor) -> int:
    """Elements of a head that are rotated: all but an odd last one, or what cos has columns for (partial rotary)."""
    return min(x.shape[-1], cos.shape[-1]) & ~1


def _rotate_one(function: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = _rotary_size(x, cos)
    cos, sin, rounding = _angles(cos, sin, x.dtype)
    out = new_heads(x)
    function(heads(x), None, cos, sin, out, None, rotary, rounding)
    return out


def _rotate(function: Any, q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor) -> tuple:
    if q is None or k is None or q.dtype is not k.dtype:
        return tuple(None if x is None else _rotate_one(function, x, cos, sin) for x in (q, k))
    rotary = _rotary_size(q, cos)
    cos, sin, rounding = _angles(cos, sin, q.dtype)
    q_out, k_out = new_heads(q), new_heads(k)
    function(heads(q), heads(k), cos, sin, q_out, k_out, rotary, rounding)
    return q_out, k_out


def _check(q: Tensor, k: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4:
        name, x = ("q", q) if q.dim() != 4 else ("k", k)
        raise LigerArgumentError(f"rope: {name} has {x.dim()} dimensions, but must be [batch, heads, seq, dim]")
    if q.shape[-1] != k.shape[-1]:
        raise LigerArgumentError(f"rope: q's heads have {q.shape[-1]} elements, but k's have {k.shape[-1]}")


class _Rope(Operator):
    def prepared(self, *args: Tensor) -> tuple:
        q, k, cos, sin = args
        _check(q, k)
        require_float("rope", q=q, k=k, cos=cos, sin=sin)
        return _rotate(_native.rope_forward, q, k, cos, sin)

    def gradients(self, saved: tuple, options: tuple, upstreams: tuple, needs: list) -> tuple:
        """Only what is asked for and has an upstream; the gradient of an output that nobody used is zero, which is None."""
        given = [up if need else None for up, need in zip(upstreams, needs)]
        if all(up is None for up in given):
            return None, None
        return tuple(g if up is not None else None for g, up in zip(rope_gradient(*saved, *given), given))


@_Rope
def rope(q: Heads, k: Heads, cos: Tensor, sin: Tensor, q_out: Made = Wish.HEADS, k_out: Made = Wish.HEADS[1]) -> Any:
    return _native.rope_forward(q, k, cos, sin, q_out, k_out, _rotary_size(q, cos), 0)


class _RopeGradient(Operator):
    def prepared(self, *args: Any) -> tuple:
        cos, sin, dq_out, dk_out = args
        return _rotate(_native.rope_backward, dq_out, dk_out, cos, sin)


@functools.partial(rope.gradient, kind=_RopeGradient)
def rope_gradient(cos: Tensor, sin: Tensor, dq_out: Heads | None, dk_out: Heads | None,
                  dq: Made = Wish.HEADS[2], dk: Made = Wish.HEADS[3]) -> Any:  # fmt: skip
    """The gradient of an absent upstream is absent too."""
    if dq_out is None or dk_out is None:
        one: Any = dk_out if dq_out is None else dq_out
        made = _native.rope_backward(one, None, cos, sin, Wish.HEADS, None, _rotary_size(one, cos), 0)
        return (made, None) if dk_out is None else (None, made)
    rotary = _rotary_size(dq_out, cos)
    return _native.rope_backward(dq_out, dk_out, cos, sin, Wish.HEADS, Wish.HEADS[1], rotary, 0)


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

    operator = rope
    gradients = ("q", "k")
    held = ("cos", "sin")

    @staticmethod
    def arguments(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        if isinstance(position_ids, int):  # newer transformers pass unsqueeze_dim as the fifth argument
            unsqueeze_dim = position_ids
        if unsqueeze_dim != 1:
            raise LigerArgumentError(f"rope: unsqueeze_dim is {unsqueeze_dim}, but must be 1")
        return q, k, cos, sin

    @staticmethod
    def torch_forward(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        rotary = _rotary_size(q, cos)
        return _rotated_half(q, cos, sin, rotary), _rotated_half(k, cos, sin, rotary)
