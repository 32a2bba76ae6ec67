"""Preference and distillation losses on an output head: not built yet.

Programs import these names before they know whether they will use them, so the names are there; constructing one is a
NotImplementedError.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class _NotBuilt(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"liger_kernel has no {type(self).__name__} yet: train without liger_kernel's loss")


class LigerFusedLinearDPOLoss(_NotBuilt):
    """Direct preference optimisation."""


class LigerFusedLinearGRPOLoss(_NotBuilt):
    """Group-relative policy optimisation."""


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
