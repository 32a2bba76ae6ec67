"""What the formulas of pairs share."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from liger_kernel.ops._formula import at_least_one


def mean_over_pairs(losses: Tensor, full_target: Tensor) -> Tensor:
    """0 where there are no pairs."""
    return losses.sum() / at_least_one(full_target.shape[0] // 2)


def smoothed_sigmoid(margin: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - s) log σ(l) - s log σ(-l): the label is wrong with probability s."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
