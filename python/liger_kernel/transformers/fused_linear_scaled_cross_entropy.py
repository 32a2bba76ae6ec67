"""Cross entropy of a linear head whose vocabulary is split over processes."""

from __future__ import annotations

from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyTPFunction


def liger_fused_linear_scaled_cross_entropy_tp(
    input, weight, target, tp_group, temperature=1.0, ignore_index=-100, tiles_per_reduce=1, return_entropy=False
):
    """See `LigerFusedLinearScaledCrossEntropyTPFunction`."""
    return LigerFusedLinearScaledCrossEntropyTPFunction.apply(
        input, weight, target, tp_group, temperature, ignore_index, tiles_per_reduce, return_entropy
    )
