"""Attention over the residual stream, as a function."""

from __future__ import annotations

from liger_kernel.ops import LigerAttnResFunction


def liger_attn_res(V, w_query, w_norm, eps: float = 1e-6):
    """Σ_n α_n·V_n, of V [N, B, T, D] or a list of [B, T, D]: see `liger_kernel.ops.LigerAttnResFunction`."""
    return LigerAttnResFunction.apply(V, w_query, w_norm, eps)
