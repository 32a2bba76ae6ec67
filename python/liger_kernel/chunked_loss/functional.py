"""The losses as plain functions: `apply` of their autograd Functions."""

from __future__ import annotations

from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

liger_fused_linear_grpo = LigerFusedLinearGRPOFunction.apply

__all__ = ["liger_fused_linear_grpo"]
