"""What divergences share: losses of single elements of two matrices [BT, V], of which the first has a gradient.

As in cross entropy the gradient is formed in forward, in the one pass over both matrices, and backward multiplies it; with
reduction "none", whose upstream is a matrix, and in float16, where the upstream must meet it before it is rounded, backward
makes it.

An operator is described by x, y, perhaps labels, its options, and the results `loss` and `dx` on request; the public form
begins with the tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from liger_kernel.ops._formula import at_least_one, require_shape, unrecorded
from liger_kernel.ops._function import LigerFunction, refuse_second_derivative
from liger_kernel.ops._memory import kept, kept_labels
from liger_kernel.ops._operator import EachShaped, LigerArgumentError, Operator
from liger_kernel.ops.cross_entropy import REDUCTIONS
from liger_kernel.ops.scale import formed_gradient

DIVERGENCE_REDUCTIONS = {**REDUCTIONS, "batchmean": 3}
NONE, MEAN, SUM, BATCHMEAN = (DIVERGENCE_REDUCTIONS[name] for name in ("none", "mean", "sum", "batchmean"))


class Divergence(EachShaped):
    """`loss` is float32, of all elements if the argument `reduction` is NONE, and a scalar else; `dx` is like x."""

    def reduction(self, given: tuple) -> int:
        position = self.positions.get("reduction")
        return BATCHMEAN if position is None else given[position]

    def loss_dtype(self, given: tuple) -> torch.dtype:
        return torch.float32

    def shapes(self, *given: Any) -> tuple:
        x = given[0]
        return (x.shape if self.reduction(given) == NONE else (), self.loss_dtype(given)), x

    def require_floats(self, args: tuple, words: dict[str, str] | None = None) -> None:
        Operator.require_floats(self, args, words)  # by roles: labels are none

    def labels(self, given: tuple) -> tuple[Tensor | None, int]:
        """And which of them marks rows that do not count."""
        position = self.positions.get("labels")
        return (None, 0) if position is None else (given[position], given[self.positions["ignore_index"]])

    def forms(self, given: tuple) -> bool:
        """Is a gradient formed in forward?"""
        return self.reduction(given) != NONE and given[0].dtype is not torch.float16

    def keep(self, ctx: Any, given: tuple, dx: Tensor) -> tuple:
        """What is saved of a gradient that was formed."""
        labels, ctx.ignore_index = self.labels(given)
        return dx, labels if labels is None else kept_labels(labels)

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.formed = inputs[-1] and self.forms(inputs)
        super().setup_context(ctx, inputs, output)
        if ctx.formed:
            ctx.save_for_backward(*self.keep(ctx, inputs, output[1]))

    def backward(self, ctx: Any, *upstreams: Tensor | None) -> tuple:
        if not ctx.formed or upstreams[0] is None:
            return super().backward(ctx, *upstreams)
        return (formed_gradient(ctx, upstreams[0]), *(None,) * (len(ctx.needs_input_grad) - 1))


class DivergenceFunction(LigerFunction):
    """A Function of `operator`, a Divergence; `arguments` are the operator's but for its flag."""

    operator: Divergence

    def __init_subclass__(cls, **kwargs: Any):
        cls.forward = staticmethod(_forward_of(cls))  # type: ignore[method-assign]
        cls.backward = staticmethod(_backward_of(cls))  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)

    @classmethod
    def compiled(cls, *args: Any) -> Any:
        args = cls.complete(args)
        cls.require(*args)
        given = cls.arguments(*args)
        now = torch.is_grad_enabled() and given[0].requires_grad and cls.operator.forms(given)
        return cls.operator.traced(*given, now)[0]

    @classmethod
    @unrecorded
    def require(cls, *args: Any) -> None:
        given = cls.complete(args)
        x, y = given[:2]
        if x.dim() != 2:
            first = next(iter(cls.parameters))
            raise LigerArgumentError(f"{cls.operator.name}: {first} has {x.dim()} dimensions, but must have 2")
        require_shape(cls.operator.name, list(cls.parameters)[1], y, x.shape)
        labels = given[2] if "shift_labels" in cls.parameters else None
        if labels is not None and tuple(labels.shape) != tuple(x.shape[:1]):
            raise LigerArgumentError(
                f"{cls.operator.name}: the shape of shift_labels must be (BT,), here ({x.shape[0]},), "
                f"but it is {tuple(labels.shape)}"
            )


def _forward_of(cls: type[DivergenceFunction]) -> Callable[..., Tensor]:
    def forward(ctx: Any, *args: Any) -> Tensor:
        operator, given = cls.operator, cls.arguments(*cls.complete(args))
        needed = ctx.needs_input_grad[0]
        now = needed and operator.forms(given)
        loss, dx = cls.now(args, (*given, now))
        if needed:
            known = (*given, loss, dx)
            ctx.options = None if now else operator._options_of(known)
            ctx.to_save = operator.keep(ctx, given, dx) if now else tuple(map(kept, operator._saved_of(known)))
        return loss

    return forward


def _backward_of(cls: type[DivergenceFunction]) -> Callable[..., tuple]:
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        refuse_second_derivative(cls.__name__)
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if ctx.options is None:
            return (formed_gradient(ctx, dloss), *nothing)
        return (*cls.operator.gradients(ctx.saved_tensors, ctx.options, (dloss,), [True]), *nothing)

    return backward


# ---- formulas in torch ------------------------------------------------------------------------------------------------


def counted(labels: Tensor | None, ignore_index: int, *matrices: Tensor) -> Sequence[Any]:
    """Which rows count, or None for all, and the matrices in float32 with zeros in the place of others, which may hold anything."""
    if labels is None:
        return None, *(m.float() for m in matrices)
    valid = labels != ignore_index
    return valid, *(torch.where(valid[:, None], m.float(), 0.0) for m in matrices)


def reduced(values: Tensor, reduction: int, valid: Tensor | None) -> Tensor:
    """The values of elements, 0 where a row does not count, as `reduction` says."""
    if valid is not None:
        values = torch.where(valid[:, None], values, 0.0)
    if reduction == NONE:
        return values
    total = values.sum()
    if reduction == SUM:
        return total
    rows = at_least_one(values.shape[0]) if valid is None else valid.sum().clamp(min=1)
    return total / rows / (at_least_one(values.shape[1]) if reduction == MEAN else 1)


__all__ = ["DIVERGENCE_REDUCTIONS", "Divergence", "DivergenceFunction", "counted", "reduced"]
