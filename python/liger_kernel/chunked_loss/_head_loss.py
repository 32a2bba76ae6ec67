"""What the losses on a linear head share: who runs a Function's `forward`, the way back from gradients that were formed there, and
what is refused."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from liger_kernel.ops._formula import require_shape, unrecorded
from liger_kernel.ops._function import OwnApply, WithoutGradient, refuse_second_derivative
from liger_kernel.ops._memory import is_plain, kept_labels, require_float, take_saved
from liger_kernel.ops._operator import LigerArgumentError, is_transformed
from liger_kernel.ops.linear_logprob import profiled
from liger_kernel.ops.scale import free_of_others, scaled_gradients


class Composed(WithoutGradient):
    """Stands for the autograd context where forward is to answer what torch can differentiate by itself."""


class HeadLossFunction(torch.autograd.Function, metaclass=OwnApply):
    """A loss on a linear head that forms its gradients in forward, and multiplies them in backward.

    It is no LigerFunction, which is one operator with a public form in plain torch: this one composes operators, and users
    derive from it, with arguments of their own. `apply` runs `forward` with autograd's context, with one that stands for it
    where nobody asks for a gradient, or with `Composed`, where torch compiles or transforms.

    The arguments begin with hidden states and weight; the bias stands at `bias_position`.
    """

    bias_position: int
    labels = "target"  # what its callers call the tokens

    @staticmethod
    def forms_gradients(*tensors: Tensor | None) -> bool:
        """Whether forward may: nobody looks at the call but for its values."""
        return is_plain(*tensors) and not is_transformed()

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        if kwargs and not torch.compiler.is_compiling():  # autograd's own takes arguments by position only
            bound = inspect.signature(cls.forward).bind(None, *args, **kwargs)
            bound.apply_defaults()
            if bound.kwargs:
                raise TypeError(
                    f"{cls.__name__}: {', '.join(bound.kwargs)} can only be given where forward has a parameter of that name"
                )
            args, kwargs = bound.args[1:], {}
        if not cls.forms_gradients(*(a for a in args if isinstance(a, Tensor))):
            return cls.forward(Composed(), *args, **kwargs)
        with profiled(f"liger::{cls.__name__}"):
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in cls._operands(args)):
                return super().apply(*args)
            return cls.forward(WithoutGradient(), *args)

    @classmethod
    def _operands(cls, args: tuple) -> tuple:
        return *args[:2], *args[cls.bias_position : cls.bias_position + 1]

    @classmethod
    def needs(cls, ctx: Any, operands: tuple) -> tuple:
        """Which gradients of hidden states, weight and bias are wanted. A subclass may have no argument for the bias."""
        asked = ctx.needs_input_grad
        return tuple(
            t is not None and any(asked) and (asked_here or t.requires_grad)
            for t, asked_here in zip(operands, (*cls._operands(asked), False))
        )

    @staticmethod
    def keep(
        ctx: Any,
        gradients: tuple,
        factor: Tensor | None,
        shape: torch.Size,
        operands: tuple,
        target: Tensor,
        ignore_index: int,
    ) -> None:
        """For `scaled_gradients`: the gradients of the operands times `factor`, if there is one. `shape` is that of the hidden
        states as they were given."""
        dx, dweight, dbias = gradients
        ctx.save_for_backward(None if dx is None else dx.view(shape), dweight, dbias, factor, kept_labels(target))
        ctx.ignore_index = ignore_index
        ctx.dtypes = [None if t is None else t.dtype for t in operands]

    @classmethod
    def scaled_gradients(cls, ctx: Any, upstreams: tuple) -> tuple:
        """The gradients of hidden states, weight and bias. A subclass's backward may hand on its upstreams as one tuple."""
        refuse_second_derivative(cls.__name__)
        upstream = upstreams[0][0] if isinstance(upstreams[0], tuple) else upstreams[0]
        saved, free = take_saved(ctx)
        *gradients, factor, target = saved
        if factor is not None:
            upstream = upstream / factor
        wide = [g if g is None or g.dtype is dtype else g.float() for g, dtype in zip(gradients, ctx.dtypes)]
        with free_of_others(saved, free):
            scaled = scaled_gradients(upstream, wide, target, ctx.ignore_index)
        return tuple(None if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes))


# ---- formulas in forward ----------------------------------------------------------------------------------------------


def _itself(tensor: Tensor) -> Tensor:
    return tensor


@contextlib.contextmanager
def formula_of_its_own(wanted: bool) -> Iterator[None]:
    """In it a formula is recorded, if its gradient is `wanted`. That graph is gone when forward is: whoever packs what is saved
    for backward is not to see it."""
    with torch.set_grad_enabled(wanted), saved_tensors_hooks(_itself, _itself):
        yield


def detached(found: Any) -> Any:
    if isinstance(found, tuple | list):
        return tuple(detached(item) for item in found)
    return found.detach() if isinstance(found, Tensor) else found


# ---- what is refused --------------------------------------------------------------------------------------------------


def require_beside(function: str, name: str, value: Any, shape: tuple, like: Tensor) -> None:
    """Of what stands beside the tokens `like`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, not {type(value).__name__}")
    require_shape(function, name, value, shape)
    if value.device != like.device:
        raise LigerArgumentError(f"{function}: {name} is on {value.device}, but _input is on {like.device}")


def require_labels(function: str, name: str, labels: Tensor) -> None:
    if labels.dtype not in (torch.int32, torch.int64):
        raise LigerArgumentError(f"{function}: {name} is {labels.dtype}, but must be int32 or int64")


@unrecorded
def require_head(
    function: str,
    target: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prefix: str = "",
    labels: str = "target",
    dims: int | None = 2,
) -> None:
    """Refuses hidden states that are not [sequences, T, H] of target's [sequences, T], and what does not go with them; with
    dims None the target may have any shape. The arguments of a reference model are called `ref_...`, say; the target is called
    `labels`."""
    names = [f"{prefix}input" if prefix else "_input", f"{prefix}weight", f"{prefix}bias"]
    if weight is None and prefix == "ref_":  # which not every loss has
        raise LigerArgumentError(f"{function}: {names[1]} is None, but {names[0]} needs a head")
    for name, value in ((names[0], x), (names[1], weight), (labels, target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, not {type(value).__name__}")
        if value.layout is not torch.strided:
            raise LigerArgumentError(f"{function}: {name} is {value.layout}, but must be strided")
    require_float(function, **dict(zip(names, (x, weight, bias))))
    dims = target.dim() if dims is None else dims
    for name, value, count in ((names[0], x, dims + 1), (names[1], weight, 2), (labels, target, dims)):
        if value.dim() != count:
            raise LigerArgumentError(f"{function}: {name} has {value.dim()} dimensions, but must have {count}")
    if 0 in weight.shape:
        raise LigerArgumentError(f"{function}: {names[1]} has shape {tuple(weight.shape)}, but no size may be 0")
    require_labels(function, labels, target)
    require_shape(function, names[0], x, (*target.shape, weight.shape[1]))
    require_shape(function, names[2], bias, weight.shape[:1])
    for name, other in zip((*names, labels), (x, weight, bias, target)):
        if other is not None and other.device != x.device:
            raise LigerArgumentError(f"{function}: {name} is on {other.device}, but {names[0]} is on {x.device}")
