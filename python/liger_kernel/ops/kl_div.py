"""The Kullback-Leibler divergence of targets from log-probabilities: one read of both, one write of the gradient."""

from __future__ import annotations

from typing import Any

import torch

from liger_kernel import _native
from liger_kernel.ops._divergence import DIVERGENCE_REDUCTIONS, Divergence, DivergenceFunction, reduced
from liger_kernel.ops._operator import Asked, Made, Modulation, Rows, Upstream, Wish
from liger_kernel.ops.cross_entropy import reduction_number


@Divergence
def kl_div(x: Rows, y: Modulation, reduction: int, log_target: bool, eps: float, loss: Made = Wish.SCALAR,
           dx: Asked = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.kl_div(x, y, None, None, loss, dx, 0, reduction, log_target, eps, scratch)


@kl_div.gradient
def kl_div_gradient(x: Rows, y: Modulation, dloss: Upstream, reduction: int, log_target: bool, eps: float,
                    dx: Made = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.kl_div(x, y, None, dloss, None, dx, 0, reduction, log_target, eps, scratch)


class LigerKLDivLossFunction(DivergenceFunction):
    """`apply(y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10)` -> float32: [BT, V] with "none", else a scalar.

    y_pred [BT, V] log-probabilities; y_true [BT, V] probabilities, or their logarithms with log_target, perhaps of another
    dtype. An element is y · (log max(y, eps) − x), or e^y · (y − x); what is exactly 0 of y or e^y counts as 0, whatever x is.
    "mean" divides their sum by BT · V, "batchmean" by BT. Only y_pred has a gradient.
    """

    operator = kl_div
    gradients = ("y_pred",)
    held = ("y_true",)

    @staticmethod
    def arguments(y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10):
        return y_pred, y_true, reduction_number(reduction, DIVERGENCE_REDUCTIONS), bool(log_target), float(eps)

    @staticmethod
    def torch_forward(y_pred, y_true, reduction="batchmean", log_target=False, eps=1e-10):
        x, y = y_pred.float(), y_true.float()
        factor = y.exp() if log_target else y
        log_factor = y if log_target else y.clamp(min=max(eps, torch.finfo(torch.float32).tiny)).log()
        nothing = factor == 0
        value = factor * (log_factor - torch.where(nothing, 0.0, x))
        value = torch.where(nothing, 0.0, value)
        return reduced(value, DIVERGENCE_REDUCTIONS[reduction], None)


__all__ = ["LigerKLDivLossFunction"]
