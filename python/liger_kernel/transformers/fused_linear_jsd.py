"""The output projections of a student and a teacher and their Jensen-Shannon divergence in one, as a module."""

from __future__ import annotations

import torch

from liger_kernel.ops import LigerFusedLinearJSDFunction
from liger_kernel.ops._distillation import check_temperature


class LigerFusedLinearJSD(torch.nn.Module):
    """The generalised Jensen-Shannon divergence of `student_input` [BT, H] · `student_weight`ᵀ [V, H] and `teacher_input` [BT, H'] ·
    `teacher_weight`ᵀ [V, H'], a few rows at a time.

    `jsd_beta` is the teacher's share of the mixture: 0 gives KL(teacher ‖ student), 1 KL(student ‖ teacher). Rows whose
    `shift_labels` [BT] are `ignore_index` do not count; None: all do. `accum_dtype` is the dtype in which the weight's gradient
    accumulates (None: fp32). The loss is fp32, as the logits are.
    """

    def __init__(
        self,
        jsd_beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        accum_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.jsd_beta = jsd_beta
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.accum_dtype = accum_dtype

    def forward(self, student_input, student_weight, teacher_input, teacher_weight, shift_labels):
        options = (self.jsd_beta, self.ignore_index, self.temperature, self.accum_dtype)
        heads = (student_input, student_weight, teacher_input, teacher_weight)
        return LigerFusedLinearJSDFunction.apply(*heads, shift_labels, *options)


def liger_fused_linear_jsd(
    student_input,
    student_weight,
    teacher_input,
    teacher_weight,
    shift_labels=None,
    jsd_beta: float = 0.5,
    ignore_index: int = -100,
    temperature: float = 1.0,
    accum_dtype: torch.dtype | None = None,
):
    """The divergence of two heads: see `LigerFusedLinearJSD`."""
    options = (jsd_beta, ignore_index, temperature, accum_dtype)
    heads = (student_input, student_weight, teacher_input, teacher_weight)
    return LigerFusedLinearJSDFunction.apply(*heads, shift_labels, *options)
