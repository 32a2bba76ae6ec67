"""Rotary position embedding with the call form of Hugging Face's `apply_rotary_pos_emb`."""

from __future__ import annotations

from typing import Any

import torch

from liger_kernel.ops import LigerRopeFunction
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.transformers.stock_calls import is_compiling, is_other


def rotated_by_operator(function: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args):
    """`function.apply(q, k, cos, sin, *args)`; None where the formula has to be computed in torch operations, with every
    column: for angles that are trained, to which the operator gives no gradient, and for dtypes that the library has not."""
    if (cos.requires_grad or sin.requires_grad) and torch.is_grad_enabled():
        return None
    if is_compiling() and is_other(q, k, cos, sin):  # a trace has no use for the error
        return None
    try:
        return function.apply(q, k, cos, sin, *args)
    except LigerArgumentError:
        if not is_other(q, k, cos, sin):
            raise
    return None


def rotated_by_formula(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `rotary` elements of each head of q and k by differentiable torch operations; tables as the operator
    takes them."""
    tables = []
    for table in (cos, sin):
        table = table.unsqueeze(1) if table.dim() == 3 else table
        half = table[..., : rotary // 2]
        tables.append(torch.cat((half, half), -1) if table.shape[-1] < rotary else table[..., :rotary])
    return _rotated(q, *tables), _rotated(k, *tables)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotary = cos.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide, half = x[..., :rotary].to(dtype), rotary // 2
    turned = torch.cat((-wide[..., half:], wide[..., :half]), -1)
    return torch.cat(((wide * cos.to(dtype) + turned * sin.to(dtype)).to(x.dtype), x[..., rotary:]), -1)


def _rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    rotated = rotated_by_operator(LigerRopeFunction, q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim)
    if rotated is not None:
        return rotated
    *_, rotary = LigerRopeFunction.arguments(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim)
    return rotated_by_formula(q, k, cos, sin, rotary or min(cos.shape[-1], q.shape[-1]) & ~1)


def liger_rotary_pos_emb(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q [B, Hq, S, D] and k [B, Hk, S, D] by the angles in cos and sin [1 or B, S, C] or [S, C].

    The first half of the rotated part pairs with its second half; the tail of each head passes through. `rotary_dim` is
    the width of that part (ValueError unless it is even, at most D, and cos has a column for each pair); None takes
    min(C, D), which is wrong for tables that are not duplicated (C = D / 2): see `liger_rotary_pos_emb_gpt_oss`.
    Results have the dtype of q and of k; q and k are left as they are. cos and sin get a gradient if they require one, at
    the cost of the formula in torch operations. `position_ids` is ignored. `unsqueeze_dim` must
    be 1 (ValueError): heads in front of the sequence is the only layout. Newer transformers pass it in the fifth place,
    so an int there is taken for it.
    """
    if isinstance(position_ids, int):
        position_ids, unsqueeze_dim = None, position_ids
    if unsqueeze_dim != 1:
        raise ValueError(
            f"liger_rotary_pos_emb: unsqueeze_dim is {unsqueeze_dim}, but only 1 (B, H, S, D) is supported"
        )
    return _rotate(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim)


def liger_rotary_pos_emb_gpt_oss(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for GPT-OSS: whole heads are rotated, and cos and sin have one column for each pair (D / 2 of them)."""
    return _rotate(q, k, cos, sin, None, 1, q.shape[-1])


def liger_rotary_pos_emb_vision(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for vision towers: q, k [S, H, D] and cos, sin [S, D], rotated in fp32, results in q's and k's dtype."""
    q_rotated, k_rotated = _rotate(
        q.float().unsqueeze(0).transpose(1, 2),
        k.float().unsqueeze(0).transpose(1, 2),
        cos.float().unsqueeze(0),
        sin.float().unsqueeze(0),
    )
    return (
        q_rotated.transpose(1, 2).squeeze(0).to(q.dtype),
        k_rotated.transpose(1, 2).squeeze(0).to(k.dtype),
    )


def rotary_pos_emb_of_images(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for Pixtral, whose cos and sin [S, D] have no axis for the batch; `unsqueeze_dim` gives them one."""
    return _rotate(q, k, cos, sin)


def liger_rope(q, k, cos, sin, position_ids=None, unsqueeze_dim: int = 1, rotary_dim: int | None = None):
    """Rotary embedding of q [B, Hq, S, D] and k [B, Hk, S, D]: see `liger_rotary_pos_emb`."""
    return LigerRopeFunction.apply(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim)
