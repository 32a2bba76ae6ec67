"""M-RoPE with the call form of Hugging Face's `apply_multimodal_rotary_pos_emb`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from liger_kernel.ops import LigerQwen2VLMRopeFunction
from liger_kernel.transformers import rope


def liger_multimodal_rotary_pos_emb(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mrope_section: Sequence[int],
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q [B, Hq, S, D] and k [B, Hk, S, D] by the angles in cos and sin [3, 1 or B, S, D].

    The three planes are of temporal, vertical and horizontal positions; `mrope_section` says how many of the D / 2 pairs of a
    head take their angles from each (ValueError unless they add up to D / 2). Results have the dtype of q and of k; q and k
    are left as they are. `unsqueeze_dim` must be 1 (ValueError): heads in front of the sequence is the only layout.
    """
    rotated = rope.rotated_by_operator(LigerQwen2VLMRopeFunction, q, k, cos, sin, mrope_section, unsqueeze_dim)
    if rotated is not None:
        return rotated
    _, _, _, _, rotary, *_ = LigerQwen2VLMRopeFunction.arguments(q, k, cos, sin, mrope_section, unsqueeze_dim)
    return rope.rotated_by_formula(q, k, _merged(cos, mrope_section), _merged(sin, mrope_section), rotary)


def _merged(planes: torch.Tensor, mrope_section: Sequence[int]) -> torch.Tensor:
    """One table of the three, with one column for each element, or, if they have fewer, for each pair."""
    pairs = sum(mrope_section)
    sections = [*mrope_section] * (2 if planes.shape[-1] >= 2 * pairs else 1)
    parts = planes[..., : pairs * len(sections) // 3].split(sections, dim=-1)
    return torch.cat([part[index % 3] for index, part in enumerate(parts)], dim=-1)


def liger_qwen2vl_mrope(q, k, cos, sin, mrope_section, unsqueeze_dim: int = 1):
    """M-RoPE of q [B, Hq, S, D] and k [B, Hk, S, D]: see `liger_multimodal_rotary_pos_emb`."""
    return LigerQwen2VLMRopeFunction.apply(q, k, cos, sin, mrope_section, unsqueeze_dim)
