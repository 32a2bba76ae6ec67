"""Losses of alignment on an output head.

Of the preference and distillation losses, which are not built yet, programs import the names before they know whether they
will use them: the names are there, and constructing one is a NotImplementedError.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss


class _NotBuilt(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"liger_kernel has no {type(self).__name__} yet: train without liger_kernel's loss")


class LigerFusedLinearDPOLoss(_NotBuilt):
    """Direct preference optimisation."""


class LigerFusedLinearJSDLoss(_NotBuilt):
    """Distillation by the Jensen-Shannon divergence."""


class LigerFusedLinearKTOLoss(_NotBuilt):
    """Kahneman-Tversky optimisation."""


__all__ = [
    "LigerFusedLinearDPOLoss",
    "LigerFusedLinearGRPOLoss",
    "LigerFusedLinearJSDLoss",
    "LigerFusedLinearKTOLoss",
]
