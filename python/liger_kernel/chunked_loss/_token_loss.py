"""The one way in which the losses of this package meet a linear head: through the log-probability of each token.

A loss is a formula on per-token log-probabilities, written in torch. Where the call is plain, the log-probabilities, the loss
and the gradients come out of one pass in forward: the logits are made once, as long as they cost no more memory than the
f32 accumulator of the weight's gradient that pieces of them would need; else backward's half makes them again, a slice of the
vocabulary at a time. Where torch compiles or transforms, the same formula stands behind the differentiable operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_kernel.ops import LigerLinearLogProbFunction
from liger_kernel.ops._memory import is_plain, kept_labels, take_saved
from liger_kernel.ops.linear_logprob import one_pass
from liger_kernel.ops.scale import free_of_others, scaled_gradients


@dataclass(frozen=True)
class Head:
    """Hidden states [rows, H], the head's weight [V, H], the token of each row and which rows count: valid_rows, if given,
    bounds their number."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    ignore_index: int = -100
    valid_rows: int | None = None

    def log_probs(self) -> Tensor:
        """[rows] float32, 0 where a row does not count. Differentiable."""
        return LigerLinearLogProbFunction.apply(
            self.hidden, self.weight, self.targets, self.bias, None, self.temperature, None, 1.0, self.ignore_index,
            self.valid_rows,
        )  # fmt: skip

    @property
    def operands(self) -> tuple:
        return self.hidden, self.weight, self.bias


def are_plain(*tensors: Tensor | None) -> bool:
    """Does nobody look at a call with these tensors but for its values, or has taken the operator away?"""
    return is_plain(*tensors) and not LigerLinearLogProbFunction._plain_torch


def is_one_pass(head: Head, *others: Tensor | None) -> bool:
    """Whether `with_gradients` may run."""
    return are_plain(head.hidden, head.weight, head.targets, head.bias, *others)


def with_gradients(head: Head, loss_of: Callable[[Tensor], Any], needs: tuple[bool, bool, bool]) -> tuple[Any, tuple]:
    """What `loss_of(log_probs)` answers, detached, and the gradients of hidden, weight and bias of its loss, which is the
    answer or the first of it. `needs` says which of the three are wanted."""

    def weigh(log_probs: Tensor) -> tuple[Any, Tensor | None]:
        leaf = log_probs.detach().requires_grad_(any(needs))
        with torch.set_grad_enabled(any(needs)):
            found = loss_of(leaf)
            loss = found[0] if isinstance(found, tuple) else found
        dlog_probs = None
        if any(needs) and loss.requires_grad:
            (dlog_probs,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        return detached(found), dlog_probs

    valid_rows = -1 if head.valid_rows is None else head.valid_rows
    return one_pass(
        head.hidden, head.weight, head.targets, head.bias, head.temperature, head.ignore_index, valid_rows, needs, weigh
    )


def detached(found: Any) -> Any:
    if isinstance(found, tuple | list):
        return tuple(detached(item) for item in found)
    return found.detach() if isinstance(found, Tensor) else found


# ---- between a Function's forward and its backward -------------------------------------------------------------------


def keep_gradients(ctx: Any, head: Head, gradients: tuple) -> None:
    """For `gradients_times`: of hidden, weight and bias, as `with_gradients` has formed them."""
    ctx.ignore_index = head.ignore_index
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients, kept_labels(head.targets))


def gradients_times(ctx: Any, upstream: Tensor | None) -> list[Tensor | None]:
    """The kept gradients times the upstream scalar, as new tensors, or in their own memory where nobody can see it. Rows that
    do not count keep their zeros, whatever comes from above."""
    if upstream is None:
        return [None] * 3
    saved, free = take_saved(ctx)
    with free_of_others(saved, free):
        return scaled_gradients(upstream, saved[:3], saved[3], ctx.ignore_index)
