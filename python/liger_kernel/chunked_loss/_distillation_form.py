"""What the distillation losses of this package share: the order of their arguments, and their modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from liger_kernel.ops._function import refuse_second_derivative
from liger_kernel.ops._memory import is_plain
from liger_kernel.ops._operator import is_transformed


def is_by_hand(student: Tensor, teacher: Tensor) -> bool:
    """May a distance bring its gradient with it? Torch sees values, and nobody asks for a gradient of the teacher."""
    return is_plain(student, teacher) and not teacher.requires_grad and not is_transformed()


def kept_gradient(ctx: Any, grad_output: Tensor, name: str) -> tuple:
    """The backward of a distance(student, teacher, beta, counts) whose forward has saved its gradient."""
    refuse_second_derivative(name)
    return ctx.saved_tensors[0] * grad_output, None, None, None


def summed(per_token: Tensor, counts: Tensor | None) -> Tensor:
    """Over the tokens that count, or all."""
    return per_token.sum() if counts is None else per_token.where(counts, 0).sum()


class DistillationFunction(LigerFusedLinearDistillationBase):
    labels = "true_labels"

    @classmethod
    def forward(
        cls,
        ctx,
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        true_labels,
        student_bias,
        teacher_bias,
        weight_hard_loss=0.5,
        weight_soft_loss=0.5,
        beta=0.5,
        ignore_index=-100,
        temperature=1.0,
        compiled=True,
        chunk_size=1024,
        return_soft_hard_loss=False,
    ):
        return super().forward(
            cls=cls, ctx=ctx, student_input=student_input, student_weight=student_weight, teacher_input=teacher_input,
            teacher_weight=teacher_weight, target=true_labels, student_bias=student_bias, teacher_bias=teacher_bias,
            chunk_size=chunk_size, ignore_index=ignore_index, weight_hard_loss=weight_hard_loss,
            weight_soft_loss=weight_soft_loss, beta=beta, temperature=temperature, compiled=compiled,
            return_soft_hard_loss=return_soft_hard_loss,
        )  # fmt: skip


class DistillationModule(nn.Module):
    """The options of a distillation loss, and its call. AssertionError for temperature 0."""

    function: type[LigerFusedLinearDistillationBase]

    def __init__(
        self,
        weight_hard_loss: float = 0.5,
        weight_soft_loss: float = 0.5,
        beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        compiled: bool = True,
        chunk_size: int = 1024,
        return_soft_hard_loss: bool = False,
    ):
        super().__init__()
        assert temperature != 0, "Temperature cannot be 0."
        self.weight_hard_loss, self.weight_soft_loss, self.beta = weight_hard_loss, weight_soft_loss, beta
        self.ignore_index, self.temperature, self.compiled = ignore_index, temperature, compiled
        self.chunk_size, self.return_soft_hard_loss = chunk_size, return_soft_hard_loss

    def forward(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        true_labels: Tensor,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
    ):
        return self.function.apply(
            student_input, student_weight, teacher_input, teacher_weight, true_labels, student_bias, teacher_bias,
            self.weight_hard_loss, self.weight_soft_loss, self.beta, self.ignore_index, self.temperature, self.compiled,
            self.chunk_size, self.return_soft_hard_loss,
        )  # fmt: skip
