"""The base of distillation losses: a student's and a teacher's logits of the same tokens, each under a linear head of its own."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor

from liger_kernel.chunked_loss._distillation import Distillation, Model
from liger_kernel.chunked_loss._distillation_operator import compiled as compiled_distillation
from liger_kernel.chunked_loss._distillation_operator import named
from liger_kernel.chunked_loss._head_loss import Composed, HeadLossFunction, require_head
from liger_kernel.ops import LigerCrossEntropyFunction
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import readable, unrecorded
from liger_kernel.ops._memory import constant
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.ops.cross_entropy import check_targets


class LigerFusedLinearDistillationBase(HeadLossFunction):
    """loss = weight_hard_loss · cross entropy with labels + weight_soft_loss · a distance to a teacher's logits.

    A subclass brings the distance and a public form:

        class MyFunction(LigerFusedLinearDistillationBase):
            @staticmethod
            def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
                per_token = (student_logits - teacher_logits).square().mean(-1)
                return per_token.where(target != ignore_index, 0).sum()

            @classmethod
            def forward(cls, ctx, student_input, student_weight, teacher_input, teacher_weight, true_labels,
                        student_bias, teacher_bias):
                return super().forward(cls=cls, ctx=ctx, student_input=student_input, ...)

            @staticmethod
            def backward(ctx, *grad_output):
                return *LigerFusedLinearDistillationBase.backward(ctx, *grad_output)[:6], None

    Its public form begins with these seven. The distance is torch on the logits of some tokens at a time, differentiated by
    autograd; where torch transforms the call, of all tokens at once, and where it compiles one with options of a subclass's own.
    Logits are products in their operands' dtype (autocast's where it is on) and given as float32.
    """

    bias_position = 5
    _takes_beta = False
    _is_ours = True  # the distance is the same under autocast
    _operator_name: str

    @staticmethod
    def forms_gradients(*tensors: Tensor | None) -> bool:
        return HeadLossFunction.forms_gradients(*tensors) and not LigerCrossEntropyFunction._plain_torch

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.distillation_loss_fn).parameters.values()
        cls._takes_beta = any(p.name == "beta" or p.kind is p.VAR_KEYWORD for p in parameters)
        cls._operator_name = named(cls)
        cls._is_ours = cls.__module__.startswith("liger_kernel.")

    @classmethod
    def check_labels(cls, labels: Tensor, vocab: int, ignore_index: int) -> None:
        values = labels if is_debugging(labels) else readable(labels)
        if values is None:
            return
        try:
            check_targets(values, vocab, ignore_index)
        except LigerArgumentError as error:
            raise LigerArgumentError(str(error).replace("target[", f"{cls.labels}[", 1)) from None

    @staticmethod
    def distillation_loss_fn(
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """The sum of the distances of tokens that are not ignored, from their logits divided by the temperature [tokens, V] and
        labels [tokens]. Called with keywords but for the logits; with `beta` if it has such an argument, and with what else
        `forward` was given."""
        raise NotImplementedError("a subclass of LigerFusedLinearDistillationBase needs a distillation_loss_fn")

    @staticmethod
    def forward(
        cls: Any,
        ctx: Any,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        target: Tensor,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        chunk_size: int = 1024,
        ignore_index: int = -100,
        weight_hard_loss: float = 0.5,
        weight_soft_loss: float = 0.5,
        beta: float = 0.5,
        compute_ce_loss: bool = True,
        temperature: float = 1.0,
        compiled: bool = True,
        return_soft_hard_loss: bool = False,
        **loss_kwargs: Any,
    ) -> Any:
        """The loss, or (loss, soft loss, hard loss), float32 scalars, of which the first has gradients: of the student's
        hidden states, weight and bias.

        student_input [..., H], student_weight [V, H], student_bias [V]; teacher_input [..., H'], teacher_weight [V', H'],
        teacher_bias [V']; target [...] int32 or int64. V' may be larger than V: the student's logits of the others are zeros
        then. Both losses are means over the tokens that are not ignored, 0 without any. The hard loss is of logits that no
        temperature has divided; it is left out if its weight is 0 and nobody asks for it, and so is the soft one.

        Logits are made and consumed `chunk_size` tokens at a time, or fewer where they would take much memory: that changes
        no result, but for rounding. Gradients of weight and bias are sums in float32. `compiled` changes nothing.
        """
        name = cls.__name__
        require_head(name, target, student_input, student_weight, student_bias, "student_", cls.labels, dims=None)
        require_head(name, target, teacher_input, teacher_weight, teacher_bias, "teacher_", cls.labels, dims=None)
        _require(name, student_input, teacher_input, chunk_size, temperature)
        labels: Any = constant(target.reshape(-1))
        cls.check_labels(labels, student_weight.shape[0], ignore_index)
        if cls._takes_beta:
            loss_kwargs["beta"] = beta
        operands = student_input, student_weight, student_bias
        constants = [constant(t) for t in (teacher_input, teacher_weight, teacher_bias)]
        student, teacher = Model.of(*operands), Model.of(*constants)  # type: ignore[arg-type]
        in_chunks = not isinstance(ctx, Composed)
        problem = Distillation(
            student=student.in_memory() if in_chunks else student,
            teacher=teacher.in_memory() if in_chunks else teacher,
            more=_more_tokens(name, student_weight, teacher_weight),
            labels=labels,
            ignore_index=ignore_index,
            hard=float(weight_hard_loss) if compute_ce_loss else None,
            soft=float(weight_soft_loss),
            all_losses=return_soft_hard_loss,
            temperature=float(temperature),
            distance=cls.distillation_loss_fn,
            options=loss_kwargs,
        )
        if _is_operator(loss_kwargs, cls._is_ours, student_input.device.type):
            heads = (*operands, *constants)
            loss, soft, hard = compiled_distillation(problem, cls._operator_name, heads, chunk_size)
        elif not in_chunks:
            loss, soft, hard = problem.composed()
            soft, hard = soft.detach(), hard.detach()
        else:
            needs = cls.needs(ctx, operands)
            (loss, soft, hard), gradients, factor = problem.in_chunks(chunk_size, needs)
            cls.keep(ctx, gradients, factor, student_input.shape, operands, labels, ignore_index)
            ctx.mark_non_differentiable(soft, hard)
        return (loss, soft, hard) if return_soft_hard_loss else loss

    @staticmethod
    def backward(ctx: Any, *grad_output: Any) -> tuple:
        """Gradients of the student's hidden states, weight and bias at their places, and None for what else apply was given."""
        dx, dweight, dbias = LigerFusedLinearDistillationBase.scaled_gradients(ctx, grad_output)
        return dx, dweight, None, None, None, dbias, *(None,) * (len(ctx.needs_input_grad) - 6)


def _require(function: str, student_input: Tensor, teacher_input: Tensor, chunk_size: int, temperature: float) -> None:
    """What is refused beside each of the heads alone."""
    if teacher_input.device != student_input.device:
        raise LigerArgumentError(
            f"{function}: teacher_input is on {teacher_input.device}, but student_input is on {student_input.device}"
        )
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise LigerArgumentError(f"{function}: chunk_size is {chunk_size!r}, but must be an integer of 1 or more")
    if temperature == 0:
        raise LigerArgumentError("Temperature cannot be 0.")


def _is_operator(options: dict[str, Any], is_ours: bool, device_type: str) -> bool:
    """Does torch.compile look at values, of a distance whose options the operator can be given?"""
    if not torch.compiler.is_compiling() or LigerCrossEntropyFunction._plain_torch or not options.keys() <= {"beta"}:
        return False
    if not is_ours and torch.is_autocast_enabled(device_type):  # which an operator is not under
        return False
    return not torch._C._are_functorch_transforms_active() and _forward_ad._current_level < 0


@unrecorded
def _more_tokens(function: str, student_weight: Tensor, teacher_weight: Tensor) -> int:
    """Of the teacher's vocabulary than of the student's."""
    more = teacher_weight.shape[0] - student_weight.shape[0]
    if more < 0:
        raise LigerArgumentError(
            f"{function}: teacher_weight has {teacher_weight.shape[0]} rows, but student_weight has "
            f"{student_weight.shape[0]}: the teacher's vocabulary must not be smaller"
        )
    return more


__all__ = ["LigerFusedLinearDistillationBase"]
