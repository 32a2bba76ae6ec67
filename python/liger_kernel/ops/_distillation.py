"""What losses between a student's head and a teacher share: rows that count, and gradients that forward has formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from liger_kernel.ops._formula import at_least_one, unrecorded
from liger_kernel.ops._function import refuse_second_derivative
from liger_kernel.ops._linear_head import COMPUTE, finished
from liger_kernel.ops._memory import kept_labels, take_saved
from liger_kernel.ops._operator import LigerArgumentError, Operator
from liger_kernel.ops.scale import free_of_others, scaled_gradients

# ---- the operators ------------------------------------------------------------------------------------------------------


class FormsGradients(Operator):
    """A scalar loss of x, weight and others, `labels` among them; its results are the loss and, behind all else, the gradients
    of what is differentiable, which are formed with it. From float16 products they are float32: they meet the upstream before
    they are rounded."""

    differentiable: tuple[int, ...] = (0, 1)

    def prepared(self, *args: Any) -> Any:
        return self.eager(*args)

    def fake(self, *args: Any) -> tuple:
        made, count = super().fake(*args), len(self.differentiable)
        losses, gradients = made[:-count], made[-count:]
        if COMPUTE[args[self.positions["compute"]]] is torch.float16:
            gradients = [g.float() if wanted else g for g, wanted in zip(gradients, args[-count:])]
        return (*losses, *gradients)

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        labels, count = inputs[self.positions["labels"]], len(self.differentiable)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.formed, ctx.ignore_index = inputs[-count:], inputs[self.positions["ignore_index"]]
        ctx.save_for_backward(*output[-count:], None if labels is None else kept_labels(labels))

    def backward(self, ctx: Any, *upstreams: Tensor | None) -> tuple:
        gradients: list = [None] * len(ctx.needs_input_grad)
        if upstreams[0] is None or not any(ctx.formed):
            return tuple(gradients)
        saved, free = take_saved(ctx)
        with free_of_others(saved, free):
            formed = [g if f else None for g, f in zip(saved, ctx.formed)]
            found = scaled_gradients(upstreams[0], formed, saved[-1], ctx.ignore_index)
        for position, gradient in zip(self.differentiable, found):
            gradients[position] = gradient if ctx.needs_input_grad[position] else None
        return tuple(gradients)


def share_of_a_row(labels: Tensor | None, ignore_index: int, like: Tensor, share: float) -> Tensor:
    """`share` over the number of rows that count, on the device: what a raw gradient is multiplied by."""
    if labels is None:
        return like.new_full((), share / max(like.shape[0], 1), dtype=torch.float32)
    return share / labels.ne(ignore_index).sum().clamp(min=1).float()


def finish(
    sums: tuple, likes: tuple, factor: Tensor | None, raw: bool, labels: Tensor | None, ignore_index: int
) -> list:
    """The sums of products as the gradients of x, which has a row for each label, weight and perhaps a bias."""
    of_rows = zip(sums, likes, (labels, None, None))
    return [None if g is None else finished(g, like, raw, factor, told, ignore_index) for g, like, told in of_rows]


def called(operator: FormsGradients, given: tuple, *asked: bool | None) -> tuple:
    """The loss, and each gradient or None; asked None, a tensor says of itself whether it needs one."""
    tensors = [given[position] for position in operator.differentiable]
    needs = [t is not None and (t.requires_grad if need is None else need) for t, need in zip(tensors, asked)]
    loss, *gradients = operator(*given, *needs)
    return (loss, *(g if need else None for g, need in zip(gradients, needs)))


# ---- the Functions ------------------------------------------------------------------------------------------------------


@unrecorded
def check_labels(labels: Tensor | None, rows: int) -> None:
    if labels is not None and tuple(labels.shape) != (rows,):
        raise LigerArgumentError(
            f"the shape of shift_labels must be (BT,), which is ({rows},), not {tuple(labels.shape)}"
        )


@unrecorded
def check_temperature(temperature: float) -> None:
    if temperature == 0:
        raise LigerArgumentError("temperature cannot be 0.")


def formed_forward(cls: Any, ctx: Any, args: tuple) -> Tensor:
    """The loss; the gradients are kept for backward."""
    cls.check_shapes(args)
    given = dict(zip(cls.parameters, cls.complete(args)))
    asked = ctx.needs_input_grad
    loss, *gradients = cls.loss_and_gradients(given, *(i < len(asked) and asked[i] for i in cls.differentiable))
    ctx.set_materialize_grads(False)
    ctx.dtypes = [None if given[name] is None else given[name].dtype for name in cls.gradients]
    labels, ctx.ignore_index = cls.labels(given)
    ctx.save_for_backward(*gradients, None if labels is None else kept_labels(labels))
    return loss


def formed_backward(cls: Any, ctx: Any, dloss: Tensor | None) -> tuple:
    refuse_second_derivative(cls.__name__)
    found: list = [None] * len(ctx.needs_input_grad)
    if dloss is None:
        return tuple(found)
    saved, free = take_saved(ctx)
    with free_of_others(saved, free):
        gradients = scaled_gradients(dloss, saved[:-1], saved[-1], ctx.ignore_index)
    for position, g, dtype in zip(cls.differentiable, gradients, ctx.dtypes):
        if g is not None and ctx.needs_input_grad[position]:
            found[position] = g.to(dtype)
    return tuple(found)


class FormedLoss:
    """Beside LigerFunction: a class brings `evaluate`, which makes the loss and its gradients from the public arguments, or
    `loss_and_gradients`; and `forward` and `backward` of one line that name it."""

    evaluate: Callable[..., tuple]
    gradients: tuple[str, ...] = ("student_input", "student_weight")

    @classmethod
    def loss_and_gradients(cls, given: dict, *needs: bool) -> tuple:
        """Each gradient, or None where it is not needed."""
        has_label = given["shift_labels"] is not None
        need_dx, need_dweight = needs
        return cls.evaluate(
            **given, has_label=has_label, input_requires_grad=need_dx, weight_requires_grad=need_dweight
        )

    @staticmethod
    def labels(given: dict) -> tuple[Tensor | None, int]:
        """And which of them marks rows that do not count."""
        return given["shift_labels"], given["ignore_index"]

    @classmethod
    def compiled(cls: Any, *args: Any) -> Tensor:
        given, now = dict(zip(cls.parameters, cls.complete(args))), torch.is_grad_enabled()
        tensors = [given[name] for name in cls.gradients]
        return cls.loss_and_gradients(given, *(now and t is not None and t.requires_grad for t in tensors))[0]


def counted_rows(labels: Tensor | None, ignore_index: int, x: Tensor) -> Tensor:
    """Zeros in the place of rows that do not count, which may be NaN: of these torch's products in 16 bits may spread to the rows
    beside them, and any product to the weight's gradient."""
    return x if labels is None else torch.where((labels != ignore_index).unsqueeze(1), x, 0)


def gradient_where(labels: Tensor | None, ignore_index: int, logits: Tensor) -> Tensor:
    """The logits, with a gradient in rows that count alone: a plain formula makes NaN of others, whose values may be anything."""
    if labels is None:
        return logits
    return torch.where((labels != ignore_index).unsqueeze(1), logits, logits.detach())


def total(rows: Tensor, labels: Tensor | None, ignore_index: int, mean: bool) -> Tensor:
    """The plain formula of the reduction: of the rows that count the mean, or the sum."""
    if labels is None:
        return rows.sum() / at_least_one(rows.shape[0]) if mean else rows.sum()
    counts = labels != ignore_index
    sum_ = torch.where(counts, rows, 0).sum()
    return sum_ / counts.sum().clamp(min=1) if mean else sum_
