"""What stands before an operator's plain-torch formula, which by itself would take more than the library does.

torch's operations broadcast and promote where the C library refuses, and give gradients to whatever they read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from liger_kernel._native import LigerArgumentError, untraced
from liger_kernel.ops._memory import PLAIN, constant, parameter, planes, rows, wide_rows


def unrecorded(check: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a check, which torch.jit.trace would record, and warn of what it decides."""

    @functools.wraps(check)
    def quiet(*args: Any, **named: Any) -> Any:
        if torch.jit.is_tracing():
            with untraced():
                return check(*args, **named)
        return check(*args, **named)

    return quiet


def require_tensors(function: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, not {type(value).__name__}")


def of_tensors(helper: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that takes tensors, by its annotations: one that is none is named, once the call has failed."""
    parameters = inspect.signature(helper).parameters.values()
    required = [p.name for p in parameters if p.annotation in ("Tensor", Tensor)]

    @functools.wraps(helper)
    def named(*args: Any, **options: Any) -> Any:
        try:
            return helper(*args, **options)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            given = inspect.signature(helper).bind(*args, **options).arguments
            require_tensors(helper.__name__, **{name: given[name] for name in required if name in given})
            raise

    return named


def at_least_one(count: int) -> int:
    """What a mean divides by. To torch.jit.trace a size is a tensor, by which it wants nothing decided."""
    return count + (count == 0) if torch.jit.is_tracing() else max(count, 1)


@unrecorded
def require_shape(operator: str, name: str, tensor: Tensor | None, shape: tuple) -> None:
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise LigerArgumentError(f"{operator}: {name} has shape {tuple(tensor.shape)}, but must have {tuple(shape)}")


def check_by_roles(operator: Any, words: dict[str, str], given: tuple) -> None:
    """Rows are of one shape, and a parameter has an element for each of their columns, or of the channels of planes."""
    tensors = [(a, value) for a, value in zip(operator.inputs, given) if a.is_tensor and value is not None]
    role, first = tensors[0][0].prepare, tensors[0][1]
    width = first.shape[1:2] if role is planes else first.shape[-1:]
    for argument, value in tensors:
        if argument.prepare in (rows, wide_rows):
            require_shape(operator.name, words[argument.name], value, first.shape)
        elif argument.prepare is parameter:
            require_shape(operator.name, words[argument.name], value, width)
    operator.require_floats(given, words)


def readable(tensor: Tensor) -> Tensor | None:
    """The values that a transform's wrappers stand for, of a whole batch, if one can look at them and not wait for a device."""
    if torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor if type(tensor) in PLAIN and tensor.device.type == "cpu" else None


def formula(function: Any, args: tuple) -> Any:
    """`torch_forward` of what the operator would take; what is only `held` gets no gradient."""
    if torch.jit.is_tracing():
        with untraced():
            function.check(*args)
    else:
        function.check(*args)
    if function.held:
        args = tuple([
            constant(value) if name in function.held and isinstance(value, Tensor) else value
            for name, value in zip(function.parameters, args)
        ])  # fmt: skip
    return function.torch_forward(*args)
