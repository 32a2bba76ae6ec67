"""The total variation distance of two matrices of probabilities: one read of both, one write of the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._divergence import DIVERGENCE_REDUCTIONS, Divergence, DivergenceFunction, counted, reduced
from liger_kernel.ops._operator import Asked, Made, Modulation, Rows, Upstream, Wish
from liger_kernel.ops.cross_entropy import reduction_number


@Divergence
def tvd(x: Rows, y: Modulation, labels: Tensor | None, ignore_index: int, reduction: int, loss: Made = Wish.SCALAR,
        dx: Asked = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.tvd(x, y, labels, None, loss, dx, ignore_index, reduction, scratch)


@tvd.gradient
def tvd_gradient(x: Rows, y: Modulation, labels: Tensor | None, dloss: Upstream, ignore_index: int, reduction: int,
                 dx: Made = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.tvd(x, y, labels, dloss, None, dx, ignore_index, reduction, scratch)


class LigerTVDLossFunction(DivergenceFunction):
    """`apply(p, q, shift_labels=None, reduction="batchmean", ignore_index=-100)` -> float32: [BT, V] with "none", else a scalar.

    p and q [BT, V] are probabilities, of perhaps two dtypes; an element is ½ |p − q|. Rows whose label is ignore_index count for
    nothing. "mean" divides the sum by n · V, "batchmean" by n, the rows that count; if none does the result is 0. Only p has a
    gradient: ±½, and 0 where p = q.
    """

    operator = tvd
    gradients = ("p",)
    held = ("q", "shift_labels")

    @staticmethod
    def arguments(p, q, shift_labels=None, reduction="batchmean", ignore_index=-100):
        return p, q, shift_labels, ignore_index, reduction_number(reduction, DIVERGENCE_REDUCTIONS)

    @staticmethod
    def torch_forward(p, q, shift_labels=None, reduction="batchmean", ignore_index=-100):
        valid, x, y = counted(shift_labels, ignore_index, p, q)
        return reduced((x - y).abs() / 2, DIVERGENCE_REDUCTIONS[reduction], valid)


__all__ = ["LigerTVDLossFunction"]
