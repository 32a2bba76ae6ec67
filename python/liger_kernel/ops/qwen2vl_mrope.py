"""Multimodal rotary position embedding (M-RoPE) of Qwen2-VL: a token has a temporal, a vertical and a horizontal position.

P. Wang et al.: Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution (2024).

It is RoPE whose pairs take their angles from the plane of one of the three positions, by sections of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors, require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import require_float
from liger_kernel.ops._operator import Heads, LigerArgumentError, Made, Wish
from liger_kernel.ops.rope import (
    Rotation,
    RotationGradient,
    check_heads,
    check_tables,
    require_heads_first,
    rotate_back,
    rotated_half,
)


@Rotation
def qwen2vl_mrope(q: Heads, k: Heads, cos: Tensor, sin: Tensor, rotary: int, temporal: int, height: int, width: int,
                  q_out: Made = Wish.HEADS, k_out: Made = Wish.HEADS[1]) -> Any:  # fmt: skip
    return _native.rope_forward(q, k, cos, sin, q_out, k_out, rotary, 0, temporal, height, width)


@functools.partial(qwen2vl_mrope.gradient, kind=RotationGradient)
def qwen2vl_mrope_gradient(cos: Tensor, sin: Tensor, dq_out: Heads | None, dk_out: Heads | None, rotary: int,
                           temporal: int, height: int, width: int,
                           dq: Made = Wish.HEADS[2], dk: Made = Wish.HEADS[3]) -> Any:  # fmt: skip
    return rotate_back(cos, sin, dq_out, dk_out, rotary, temporal, height, width)


def _rotary_and_sections(x: Tensor, mrope_section: Sequence[int]) -> tuple[int, int, int, int]:
    """Elements of a head that are rotated, all but an odd last one, and how many of their pairs belong to each position."""
    if x.dim() != 4:
        check_heads("qwen2vl_mrope", x, x)
    pairs = x.shape[-1] // 2
    sections = [*mrope_section] if isinstance(mrope_section, Iterable) else []
    whole = len(sections) == 3 and all(isinstance(n, (int, torch.SymInt)) for n in sections)
    if not whole or sum(sections) != pairs or min(sections) < 0:
        raise LigerArgumentError(
            f"qwen2vl_mrope: mrope_section is {mrope_section!r}, but must be three numbers of pairs (temporal, height, "
            f"width) that add up to {pairs}, half the head size"
        )
    temporal, height, width = sections
    return 2 * pairs, temporal, height, width


@of_tensors
def qwen2vl_mrope_forward(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, mrope_section: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q', k', cos, sin)"""
    q, k = qwen2vl_mrope(q, k, cos, sin, *_rotary_and_sections(q, mrope_section))
    return q, k, cos, sin


@of_tensors
def qwen2vl_mrope_backward(
    dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor, mrope_section: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The gradients of q and k: the rotation by the opposite angle."""
    return qwen2vl_mrope_gradient(cos, sin, dq, dk, *_rotary_and_sections(dq, mrope_section))


def _selected(table: Tensor, mrope_section: Sequence[int]) -> Tensor:
    """The columns of each section from its plane: [3, B, S, C] -> [B, S, D / 2]."""
    sections = table[..., : sum(mrope_section)].split(tuple(mrope_section), -1)
    return torch.cat([section[plane] for plane, section in enumerate(sections)], -1)


class LigerQwen2VLMRopeFunction(LigerFunction):
    """`apply(q, k, cos, sin, mrope_section, unsqueeze_dim=1)` -> (q', k').

    q [B, Hq, S, D] and k [B, Hk, S, D] of any strides; cos and sin [3, 1 or B, S, C], a plane for each of the temporal,
    vertical and horizontal positions, C >= h = D // 2. Of the h columns the first mrope_section[0] are read from plane 0,
    the next mrope_section[1] from plane 1, the last mrope_section[2] from plane 2; ValueError unless they add up to h. With
    these columns it is the rotation of `LigerRopeFunction`: f32 arithmetic, rounded once to the dtype of q (of k), results
    that are transposed views of [B, S, H, D] memory. cos and sin get no gradient.
    """

    operator = qwen2vl_mrope
    gradients = ("q", "k")
    held = ("cos", "sin")

    @staticmethod
    def arguments(q, k, cos, sin, mrope_section, unsqueeze_dim=1):
        require_heads_first("qwen2vl_mrope", unsqueeze_dim)
        return q, k, cos, sin, *_rotary_and_sections(q, mrope_section)

    @classmethod
    def check(cls, *args):
        q, k, cos, sin, rotary, *_ = cls.arguments(*args)
        name = cls.operator.name
        check_heads(name, q, k)
        check_tables(name, cos, sin)
        require_float(name, q=q, k=k, cos=cos, sin=sin)
        require_shape(name, "k", k, (*q.shape[:1], k.shape[1], *q.shape[2:]))
        for its, table in (("cos", cos), ("sin", sin)):
            batch = 1 if table.dim() == 4 and table.shape[1] == 1 else q.shape[0]
            require_shape(name, its, table, (3, batch, q.shape[2], max(table.shape[-1], rotary // 2)))

    @staticmethod
    def torch_forward(q, k, cos, sin, mrope_section, unsqueeze_dim=1):
        require_heads_first("qwen2vl_mrope", unsqueeze_dim)
        rotary, *_ = _rotary_and_sections(q, mrope_section)
        cos, sin = _selected(cos, mrope_section), _selected(sin, mrope_section)
        return rotated_half(q, cos, sin, rotary), rotated_half(k, cos, sin, rotary)
