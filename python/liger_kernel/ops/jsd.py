"""The generalized Jensen-Shannon divergence of two matrices of log-probabilities: one read of both, one write of the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel._implementation import accept
from liger_kernel.ops._divergence import BATCHMEAN, Divergence, DivergenceFunction, counted, reduced
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._jensen_shannon import values
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Modulation, Rows, Upstream, Wish
from liger_kernel.ops.scale import scaled_gradient


class _JSD(Divergence):
    def loss_dtype(self, given: tuple) -> torch.dtype:
        return given[0].dtype


@_JSD
def jsd(x: Rows, y: Modulation, labels: Tensor | None, ignore_index: int, beta: float, loss: Made = Wish.SCALAR_SAME,
        dx: Asked = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.jsd(x, y, labels, None, loss, dx, ignore_index, beta, BATCHMEAN, scratch)


@jsd.gradient
def jsd_gradient(x: Rows, y: Modulation, labels: Tensor | None, dloss: Upstream, ignore_index: int, beta: float,
                 dx: Made = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.jsd(x, y, labels, dloss, None, dx, ignore_index, beta, BATCHMEAN, scratch)


@of_tensors
def jsd_forward(
    _input: Tensor,
    target: Tensor,
    shift_labels: Tensor | None,
    beta: float,
    ignore_index: int,
    has_label: bool,
    jsd_impl: str | None = None,
    jsd_mode: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, gradient of _input). Without has_label the labels are not looked at."""
    accept("jsd", jsd_impl, jsd_mode)
    labels = shift_labels if has_label else None
    return jsd(*LigerJSDFunction.arguments(_input, target, labels, beta, ignore_index), True)


@of_tensors
def jsd_backward(dX: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient that jsd_forward has formed, times a scalar."""
    return scaled_gradient(dX, grad_output)


class LigerJSDFunction(DivergenceFunction):
    """`apply(_input, target, shift_labels=None, beta=0.5, ignore_index=-100, jsd_impl=None, jsd_mode=None)` -> a scalar of
    _input's dtype.

    _input [BT, V] are the student's log-probabilities X, target [BT, V] the teacher's, Y, of perhaps another dtype. With P = e^Y,
    Q = e^X and M = beta · P + (1 − beta) · Q a row is Σ beta · P · (Y − log M) + (1 − beta) · Q · (X − log M); with beta = 0 it
    is KL(P‖Q), with 1 KL(Q‖P). Rows whose label is ignore_index count for nothing; the sum is divided by those that do, and is
    0 if none does. A factor that is exactly 0 makes its term 0. Only _input has a gradient. The last two arguments choose
    among implementations, of which there is one.
    """

    operator = jsd
    gradients = ("_input",)
    held = ("target", "shift_labels")

    @staticmethod
    def arguments(_input, target, shift_labels=None, beta=0.5, ignore_index=-100, jsd_impl=None, jsd_mode=None):
        accept("jsd", jsd_impl, jsd_mode)
        beta = float(beta)
        if not 0 <= beta <= 1:
            raise LigerArgumentError(f"jsd: beta is {beta}, but must be in [0, 1]")
        return _input, target, shift_labels, ignore_index, beta

    @staticmethod
    def torch_forward(_input, target, shift_labels=None, beta=0.5, ignore_index=-100, jsd_impl=None, jsd_mode=None):
        valid, x, y = counted(shift_labels, ignore_index, _input, target)
        return reduced(values(x, y, beta), BATCHMEAN, valid).to(_input.dtype)


__all__ = ["LigerJSDFunction", "jsd_backward", "jsd_forward"]
