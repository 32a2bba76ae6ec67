"""Cross entropy and total variation distance over two models' logits, as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerFusedCETVDFunction


class LigerFusedCETVDLoss(nn.Module):
    """(ce, tvd) of each row of a student's logits [BT, V] beside a teacher's: cross entropy with target [BT], and half the sum
    of |softmax(student) - softmax(teacher)|. Both float32 [BT] and unreduced, 0 where the target is `ignore_index`: mask,
    weight and divide them as the recipe says. The teacher has no gradient."""

    def __init__(self, ignore_index: int = -100):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, target: torch.Tensor):
        return LigerFusedCETVDFunction.apply(student_logits, teacher_logits, target, self.ignore_index)
