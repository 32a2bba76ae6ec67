"""The output projection and its divergence from a teacher's probabilities in one, as a module."""

from __future__ import annotations

import torch

from liger_kernel.ops import LigerFusedLinearKLDivFunction
from liger_kernel.ops._distillation import check_temperature


class LigerFusedLinearKLDivLoss(torch.nn.Module):
    """KL(target ‖ softmax(`student_input` [BT, H] · `student_weight`ᵀ [V, H] / temperature)), chunk by chunk.

    `target` [BT, V] holds probabilities; rows whose `shift_labels` [BT] are `ignore_index` do not count. `reduction`: "batchmean"
    (over rows), "mean" (over elements) or "sum"; any other is refused by the call. `eps` bounds a probability from below inside
    of its logarithm. `accum_dtype` is the dtype in which the weight's gradient accumulates (None: fp32). The loss is fp32.
    """

    def __init__(
        self,
        reduction: str = "batchmean",
        ignore_index: int = -100,
        temperature: float = 1.0,
        eps: float = 1e-10,
        accum_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.eps = eps
        self.accum_dtype = accum_dtype

    def forward(self, student_input, student_weight, target, shift_labels=None):
        options = (self.reduction, self.ignore_index, self.temperature, self.eps, self.accum_dtype)
        return LigerFusedLinearKLDivFunction.apply(student_input, student_weight, target, shift_labels, *options)

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction}, ignore_index={self.ignore_index}, temperature={self.temperature}, "
            f"eps={self.eps}, accum_dtype={self.accum_dtype}"
        )


def liger_fused_linear_kl_div(
    student_input,
    student_weight,
    target,
    shift_labels=None,
    reduction: str = "batchmean",
    ignore_index: int = -100,
    temperature: float = 1.0,
    eps: float = 1e-10,
    accum_dtype: torch.dtype | None = None,
):
    """KL(target ‖ softmax of a head): see `LigerFusedLinearKLDivLoss`."""
    options = (reduction, ignore_index, temperature, eps, accum_dtype)
    return LigerFusedLinearKLDivFunction.apply(student_input, student_weight, target, shift_labels, *options)
