"""The one way in which the losses of this package meet a linear head: through the log-probability of each token.

A loss is a formula on per-token log-probabilities, written in torch. Where the call is plain, the log-probabilities, the loss
and the gradients come out of one pass in forward: the logits are made once, as long as they cost no more memory than the
f32 accumulator of the weight's gradient that pieces of them would need; else backward's half makes them again, a slice of the
vocabulary at a time. Where torch compiles or transforms, the same formula stands behind the differentiable operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from liger_kernel.chunked_loss._head_loss import (
    Composed,
    HeadLossFunction,
    detached,
    formula_of_its_own,
    require_beside,
    require_head,
)
from liger_kernel.ops import LigerLinearLogProbFunction
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._memory import constant, is_plain, require_float
from liger_kernel.ops._operator import LigerArgumentError, is_transformed
from liger_kernel.ops.cross_entropy import check_targets
from liger_kernel.ops.linear_logprob import one_pass

IGNORED = -(
    2**31
)  # no token, and not what others mean by none: where masks say what counts, -100 is refused like others


@dataclass(frozen=True)
class Head:
    """Hidden states [rows, H], the head's weight [V, H], the token of each row and which rows count. The first rows may have
    a second token, for which they are given to the head again: their log-probabilities stand behind the others. valid_rows, where
    the caller has it on the host, bounds how many rows count."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    ignore_index: int = -100
    second_targets: Tensor | None = None
    valid_rows: int | None = None

    @property
    def rows(self) -> Tensor:
        again = self.second_targets
        return self.hidden if again is None else torch.cat((self.hidden, self.hidden[: again.shape[0]]))

    @property
    def labels(self) -> Tensor:
        again = self.second_targets
        return self.targets if again is None else torch.cat((self.targets, again))

    def log_probs(self) -> Tensor:
        """[rows] float32, 0 where a row does not count. Differentiable."""
        return LigerLinearLogProbFunction.apply(
            self.rows, self.weight, self.labels, self.bias, None, self.temperature, None, 1.0, self.ignore_index,
            self.valid_rows,
        )  # fmt: skip

    def log_probs_for(self, function: str, labels: str) -> Tensor:
        """The same for a function whose callers call the tokens `labels`."""
        try:
            return self.log_probs()
        except LigerArgumentError as error:
            raise in_callers_words(error, function, labels) from None

    @property
    def operands(self) -> tuple:
        return self.hidden, self.weight, self.bias


def is_one_pass(*tensors: Tensor | None) -> bool:
    """Whether `with_gradients` may run: nobody looks at the call but for its values, and the kernels are not disabled."""
    return is_plain(*tensors) and not is_transformed() and not LigerLinearLogProbFunction._plain_torch


def with_gradients(
    head: Head, loss_of: Callable[[Tensor], Any], needs: tuple[bool, bool, bool]
) -> tuple[Any, tuple, Tensor | None]:
    """What `loss_of(log_probs)` answers, detached, and the gradients of hidden, weight and bias of its loss, which is the
    answer or the first of it, all times the third answer if there is one: see `one_pass`. `needs` says which of the three are
    wanted."""

    def weigh(log_probs: Tensor) -> tuple[Any, Tensor | None]:
        leaf = log_probs.detach().requires_grad_(any(needs))
        with formula_of_its_own(any(needs)):
            found = loss_of(leaf)
            loss = found[0] if isinstance(found, tuple) else found
        dlog_probs = None
        if any(needs) and loss.requires_grad:
            (dlog_probs,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        return detached(found), dlog_probs

    if is_debugging(head.targets):
        check_targets(head.labels, head.weight.shape[0], head.ignore_index)
    valid_rows = -1 if head.valid_rows is None else head.valid_rows
    found, (dx, dweight, dbias), factor = one_pass(
        head.rows, head.weight, head.labels, head.bias, head.temperature, head.ignore_index, valid_rows, needs, weigh
    )
    if dx is not None and head.second_targets is not None:
        count, again = head.hidden.shape[0], head.second_targets.shape[0]
        dx = torch.cat((dx[:again] + dx[count:], dx[again:count]))
    return found, (dx, dweight, dbias), factor


# ---- the Functions -----------------------------------------------------------------------------------------------------


class TokenLossFunction(HeadLossFunction):
    """A loss on the log-probabilities of a head's tokens."""

    @staticmethod
    def forms_gradients(*tensors: Tensor | None) -> bool:
        return is_one_pass(*tensors)

    @classmethod
    def evaluate(cls, ctx: Any, head: Head, shape: torch.Size, loss_of: Callable[[Tensor], tuple]) -> tuple:
        """What `loss_of(log_probs)` answers, whose first is the loss; the rest is detached. `shape` is that of the hidden
        states as they were given."""
        if isinstance(ctx, Composed):
            loss, *others = loss_of(head.log_probs_for(cls.__name__, cls.labels))
            return loss, *detached(others)
        needs = cls.needs(ctx, head.operands)
        try:
            found, gradients, factor = with_gradients(head, loss_of, needs)  # type: ignore[arg-type]
        except LigerArgumentError as error:
            raise in_callers_words(error, cls.__name__, cls.labels) from None
        cls.keep(ctx, gradients, factor, shape, head.operands, head.targets, head.ignore_index)
        return found


# ---- what losses share -------------------------------------------------------------------------------------------------


def in_callers_words(error: LigerArgumentError, function: str, labels: str) -> LigerArgumentError:
    """An error of the library about a token."""
    text = re.sub(r"^(linear_logprob_forward: )?targets?\[", f"{function}: {labels}[", str(error))
    return LigerArgumentError(re.sub(rf" or ignore_index \(?{IGNORED}\)?$", "", text))


def flat_head(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ignore_index: int, second: Tensor | None = None
) -> Head:
    return Head(x.reshape(-1, x.shape[-1]), weight, target.reshape(-1), bias, 1.0, ignore_index, second)


def sequence_log_probs(log_probs: Tensor, target: Tensor, ignore_index: int, average: bool) -> Tensor:
    """Of each sequence of [sequences, T] the sum over its tokens that count, or their mean; 0 without such a token."""
    sums = log_probs.sum(-1)
    return sums / target.ne(ignore_index).sum(-1).clamp(min=1) if average else sums


def reference_log_probs(
    function: str, target: Tensor, ref_input: Any, ref_weight: Any, ref_bias: Any, ignore_index: int, average: bool
) -> Tensor:
    """Of each sequence, without gradient: from the reference model's hidden states and head."""
    if ref_input is None:
        raise LigerArgumentError(f"{function}: use_ref_model is set, but ref_input is None")
    require_head(function, target, ref_input, ref_weight, ref_bias, "ref_")
    tensors = [None if t is None else t.detach() for t in (ref_input, ref_weight, ref_bias)]
    head = flat_head(tensors[0], tensors[1], target, tensors[2], ignore_index)  # type: ignore[arg-type]
    tokens = head.log_probs_for(function, "target").view(target.shape)
    return sequence_log_probs(tokens, target, ignore_index, average)


def known_log_probs(function: str, rows: int, like: Tensor, **given: Tensor) -> list[Tensor]:
    """Log-probabilities of the reference that the caller has: [rows] each."""
    for name, value in given.items():
        require_beside(function, name, value, (rows,), like)
    require_float(function, **given)
    return [constant(value).float() for value in given.values()]  # type: ignore[union-attr]


def logit_sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of each sequence of hidden states [sequences, T, H] the sum of all its logits, float32, without their product:
    Σ_t Σ_v (x_t·w_v + b_v) = (Σ_t x_t)·(Σ_v w_v) + T Σ_v b_v."""
    sums = (_sum(x.detach(), 1) * _sum(weight.detach(), 0)).sum(-1)
    return sums if bias is None else sums + x.shape[1] * bias.detach().sum(dtype=torch.float32)


def _sum(tensor: Tensor, dim: int) -> Tensor:
    """In float32. On the CPU torch would widen 16-bit numbers all at once, for which there is no cache: in pieces it takes a
    ninth of the time."""
    if tensor.is_cuda or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return tensor.sum(dim, dtype=torch.float32)
    slice_size = max(tensor.numel() // max(tensor.shape[dim], 1), 1)
    pieces = tensor.split(max(2**19 // slice_size, 1), dim)
    return torch.stack([piece.sum(dim, dtype=torch.float32) for piece in pieces]).sum(0)
