"""Preference and distillation losses on an output head.

Programs import the names of losses that are not built yet before they know whether they will use them, so these names are
there too; constructing one is a NotImplementedError.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from liger_kernel.chunked_loss.cpo_loss import LigerFusedLinearCPOLoss
from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOLoss
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss
from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOLoss
from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOLoss
from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOLoss


class _NotBuilt(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"liger_kernel has no {type(self).__name__} yet: train without liger_kernel's loss")


class LigerFusedLinearJSDLoss(_NotBuilt):
    """Distillation by the Jensen-Shannon divergence."""


__all__ = [
    "LigerFusedLinearCPOLoss",
    "LigerFusedLinearDPOLoss",
    "LigerFusedLinearGRPOLoss",
    "LigerFusedLinearJSDLoss",
    "LigerFusedLinearKTOLoss",
    "LigerFusedLinearORPOLoss",
    "LigerFusedLinearSimPOLoss",
]
