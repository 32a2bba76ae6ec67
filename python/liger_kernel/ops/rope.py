"""Rotary position embedding, first half of a head paired with its second half.

J. Su et al.: RoFormer: Enhanced Transformer with Rotary Position Embedding (2021).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors, require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import NATIVE_DTYPE, heads, new_heads, require_float
from liger_kernel.ops._operator import Heads, LigerArgumentError, Made, Operator, Wish

NO_SECTIONS = (0, 0, 0)


def _angles(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """cos and sin in a dtype that the kernel takes next to `dtype`, and the dtype code to which operands are rounded."""
    if cos.dtype is not sin.dtype:
        cos = cos.to(sin.dtype)
    rounding = 0
    if sin.dtype is not dtype and sin.dtype is not torch.float32:
        rounding = NATIVE_DTYPE[sin.dtype]
        cos, sin = cos.float(), sin.float()
    return heads(cos), heads(sin), rounding


def _rotary_size(x: Tensor, cos: Tensor, rotary: int) -> int:
    """Elements of a head that are rotated. Where `rotary` is 0, which says nothing: all but an odd last one, or what cos
    has columns for (partial rotary)."""
    if rotary:
        return rotary
    try:
        columns, dim = cos.shape[-1], x.shape[-1]
    except IndexError:
        raise LigerArgumentError("rope: an argument has no dimensions") from None
    return (columns if columns < dim else dim) & ~1


def _given_rotary(x: Tensor, cos: Tensor, rotary_dim: int | None) -> int:
    """`rotary_dim` as the operator takes it, which is the only way to say that cos has one column for each pair."""
    if rotary_dim is None:
        return 0
    if not isinstance(rotary_dim, (int, torch.SymInt)) or not 0 < rotary_dim <= x.shape[-1] or rotary_dim % 2:
        raise LigerArgumentError(f"rope: rotary_dim is {rotary_dim}, but must be even and in (0, {x.shape[-1]}]")
    if cos.shape[-1] < rotary_dim // 2:
        raise LigerArgumentError(
            f"rope: cos has {cos.shape[-1]} columns, but rotary_dim is {rotary_dim}, which needs {rotary_dim // 2}"
        )
    return rotary_dim


def _without_heads(table: Tensor) -> Tensor:
    """cos or sin, also where a model has put the axis of heads into it: [B, 1, S, C]."""
    return table.squeeze(1) if table.dim() == 4 and table.shape[1] == 1 else table


def _rotate_one(function: Any, x: Tensor, cos: Tensor, sin: Tensor, rotary: int, sections: tuple) -> Tensor:
    rotary = _rotary_size(x, cos, rotary)
    cos, sin, rounding = _angles(cos, sin, x.dtype)
    out = new_heads(x)
    function(heads(x), None, cos, sin, out, None, rotary, rounding, *sections)
    return out


def _rotate(
    function: Any, q: Tensor | None, k: Tensor | None, cos: Tensor, sin: Tensor, rotary: int, *sections: int
) -> tuple:
    if not any(sections):  # one plane of angles, or three for heads that have no pairs
        cos, sin = (_without_heads(table[0] if sections else table) for table in (cos, sin))
        sections = NO_SECTIONS
    if q is None or k is None or q.dtype is not k.dtype:
        return tuple(None if x is None else _rotate_one(function, x, cos, sin, rotary, sections) for x in (q, k))
    rotary = _rotary_size(q, cos, rotary)
    cos, sin, rounding = _angles(cos, sin, q.dtype)
    q_out, k_out = new_heads(q), new_heads(k)
    function(heads(q), heads(k), cos, sin, q_out, k_out, rotary, rounding, *sections)
    return q_out, k_out


def check_heads(operator: str, q: Tensor, k: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4:
        name, x = ("q", q) if q.dim() != 4 else ("k", k)
        raise LigerArgumentError(f"{operator}: {name} has {x.dim()} dimensions, but must be [batch, heads, seq, dim]")
    if q.shape[-1] != k.shape[-1]:
        raise LigerArgumentError(f"{operator}: q's heads have {q.shape[-1]} elements, but k's have {k.shape[-1]}")


def check_tables(operator: str, cos: Tensor, sin: Tensor) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dim() == 0:
            raise LigerArgumentError(f"{operator}: {name} has no dimensions, but must end with [seq, columns]")


class Rotation(Operator):
    """Of q and k by the angles in cos and sin, the first half of a head against its second: rotary, and sections if any."""

    def prepared(self, *args: Any) -> tuple:
        q, k, cos, sin, *_ = args
        check_heads(self.name, q, k)
        check_tables(self.name, cos, sin)
        require_float(self.name, q=q, k=k, cos=cos, sin=sin)
        return _rotate(_native.rope_forward, *args)

    def gradients(self, saved: tuple, options: tuple, upstreams: tuple, needs: list) -> tuple:
        """Only what is asked for and has an upstream; the gradient of an output that nobody used is zero, which is None."""
        given = [up if need else None for up, need in zip(upstreams, needs)]
        if all(up is None for up in given):
            return None, None
        assert self.derivative is not None
        found = self.derivative(*saved, *given, *options)
        return tuple(g if up is not None else None for g, up in zip(found, given))


@Rotation
def rope(q: Heads, k: Heads, cos: Tensor, sin: Tensor, rotary: int,
         q_out: Made = Wish.HEADS, k_out: Made = Wish.HEADS[1]) -> Any:  # fmt: skip
    return _native.rope_forward(q, k, cos, sin, q_out, k_out, _rotary_size(q, cos, rotary), 0, 0, 0, 0)


class RotationGradient(Operator):
    def prepared(self, *args: Any) -> tuple:
        cos, sin, dq_out, dk_out, *options = args
        return _rotate(_native.rope_backward, dq_out, dk_out, cos, sin, *options)


def rotate_back(
    cos: Tensor, sin: Tensor, dq_out: Tensor | None, dk_out: Tensor | None, rotary: int, *sections: int
) -> tuple:
    """The gradient of an absent upstream is absent too."""
    if dq_out is None or dk_out is None:
        one: Any = dk_out if dq_out is None else dq_out
        made = _native.rope_backward(one, None, cos, sin, Wish.HEADS, None, rotary, 0, *sections)
        return (made, None) if dk_out is None else (None, made)
    return _native.rope_backward(dq_out, dk_out, cos, sin, Wish.HEADS, Wish.HEADS[1], rotary, 0, *sections)


@functools.partial(rope.gradient, kind=RotationGradient)
def rope_gradient(cos: Tensor, sin: Tensor, dq_out: Heads | None, dk_out: Heads | None, rotary: int,
                  dq: Made = Wish.HEADS[2], dk: Made = Wish.HEADS[3]) -> Any:  # fmt: skip
    one: Any = dk_out if dq_out is None else dq_out
    return rotate_back(cos, sin, dq_out, dk_out, _rotary_size(one, cos, rotary), *NO_SECTIONS)


def require_heads_first(operator: str, unsqueeze_dim: int) -> None:
    if unsqueeze_dim != 1:
        raise LigerArgumentError(f"{operator}: unsqueeze_dim is {unsqueeze_dim}, but must be 1")


def _require_heads_first(position_ids: Any, unsqueeze_dim: int) -> None:
    """Newer transformers pass unsqueeze_dim as the fifth argument."""
    require_heads_first("rope", position_ids if isinstance(position_ids, int) else unsqueeze_dim)


def _three_dimensional(table: Tensor) -> Tensor:
    table = _without_heads(table)
    return table.unsqueeze(0) if table.dim() == 2 else table


@of_tensors
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


@of_tensors
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


def rotated_half(x: Tensor, cos: Tensor, sin: Tensor, rotary: int) -> Tensor:
    """One tensor in plain torch: x1·c - x2·s and x2·c + x1·s in f32 over the first `rotary` elements."""
    half = rotary // 2
    wide = x.to(sin.dtype).float()
    cos, sin = cos.to(sin.dtype).float()[..., :half], sin.float()[..., :half]
    cos, sin = (t.unsqueeze(1) if t.dim() == 3 else t for t in (cos, sin))
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

    operator = rope
    gradients = ("q", "k")
    held = ("cos", "sin")

    @staticmethod
    def arguments(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        if unsqueeze_dim != 1 or position_ids is not None:
            _require_heads_first(position_ids, unsqueeze_dim)
        return q, k, cos, sin, 0 if rotary_dim is None else _given_rotary(q, cos, rotary_dim)

    @classmethod
    def check(cls, *args):
        q, k, cos, sin, rotary = cls.arguments(*args)
        check_heads("rope", q, k)
        check_tables("rope", cos, sin)
        require_float("rope", q=q, k=k, cos=cos, sin=sin)
        half = _rotary_size(q, cos, rotary) // 2
        require_shape("rope", "k", k, (*q.shape[:1], k.shape[1], *q.shape[2:]))
        for name, table in (("cos", _without_heads(cos)), ("sin", _without_heads(sin))):
            batch = () if table.dim() == 2 else (1,) if table.shape[0] == 1 else q.shape[:1]
            require_shape("rope", name, table, (*batch, q.shape[2], max(table.shape[-1], half)))

    @staticmethod
    def torch_forward(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        _require_heads_first(position_ids, unsqueeze_dim)
        rotary = _rotary_size(q, cos, _given_rotary(q, cos, rotary_dim))
        return rotated_half(q, cos, sin, rotary), rotated_half(k, cos, sin, rotary)
