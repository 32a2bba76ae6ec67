"""The total variation distance, as a module."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.ops import LigerTVDLossFunction
from liger_kernel.ops._formula import of_tensors


class LigerTVDLoss(nn.Module):
    """½ Σ |p − q| of probabilities p [BT, V] and q [BT, V], in float32.

    `reduction` is "batchmean" (a row), "mean" (an element), "sum" or "none". With `shift_labels` [BT] rows whose label is
    `ignore_index` count for nothing. Only p has a gradient, which is formed in forward.
    """

    def __init__(self, reduction: str = "batchmean", ignore_index: int = -100):
        super().__init__()
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, p, q, shift_labels=None):
        return LigerTVDLossFunction.apply(p, q, shift_labels, self.reduction, self.ignore_index)

    def extra_repr(self):
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}"


@of_tensors
def liger_tvd(input: Tensor, target: Tensor, shift_labels=None, reduction: str = "mean", ignore_index: int = -100):
    """See `LigerTVDLoss`."""
    return LigerTVDLossFunction.apply(input, target, shift_labels, reduction, ignore_index)
