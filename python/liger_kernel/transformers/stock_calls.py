"""Calls of patched modules that our operators do not take, or of which they would make another dtype: the stock forward
computes them. A model may be in double; a norm's weight may broadcast, its epsilon be trained."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack, has_torch_function_variadic
from torch.utils._device import DeviceContext

from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.transformers import patching
from liger_kernel.transformers.messages import warn_once

logger = logging.getLogger("liger_kernel.transformers.monkey_patch")

is_compiling = torch.compiler.is_dynamo_compiling
_TORCHS = (patching.function_of(torch.Tensor.__torch_function__), torch._C._disabled_torch_function_impl)
_OURS = (torch.float32, torch.float16, torch.bfloat16)


def is_other(*tensors: Any) -> bool:
    """Whether one is of a dtype that the library does not have."""
    return any(isinstance(tensor, torch.Tensor) and tensor.dtype not in _OURS for tensor in tensors)


def is_seen(about: Any) -> bool:
    """Whether a mode sees which functions of torch are called, and may change what they do; torch's own for a device does
    not. `about`: who is called. A trace knows no modes."""
    if is_compiling() or not torch._C._len_torch_function_stack():
        return False
    mode = next((mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)), None)
    if mode is not None:
        cause = f"a TorchFunctionMode ({type(mode).__name__}) is active"
        warn_once(logger, about, "stock-call", model=getattr(about, "__name__", type(about).__name__), cause=cause)
    return mode is not None


def class_of_tensors(*tensors: Any) -> str | None:
    """The name of a class of tensors that has its own values for torch's functions, if one is of such a class."""
    if is_compiling() or not has_torch_function_variadic(
        *tensors
    ):  # which a mode of torch's for a device is enough for
        return None
    others = (type(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor))
    return next((cls.__name__ for cls in others if patching.function_of(cls.__torch_function__) not in _TORCHS), None)


def _is_of_stock(module: nn.Module) -> bool:
    """Whether a stock forward stands below ours."""
    return patching.is_patched(module) and not patching.is_ours(_stock_forward(module))


def _stock_forward(module: nn.Module) -> Any:
    return patching.patched_class(type(module)).forward  # type: ignore[attr-defined]


def is_left_to_stock(module: nn.Module, cause: str | None) -> bool:
    """Whether the stock forward computes a call, if there is a `cause`; a warning says so."""
    if cause is None or not _is_of_stock(module):
        return False
    warn_once(logger, module, "stock-call", model=type(module).__name__, cause=cause)
    return True


def norm(
    module: nn.Module, function: Any, x: Any, weight: Any, *args: Any, epsilon: Any, promotes: bool = False
) -> Any:
    """`function.apply(x, weight, *args)`, or what the stock forward says of x. `promotes`: the stock forward multiplies by
    the weight last."""
    named = class_of_tensors(x, weight)
    cause = None if named is None else f"its input is {named}"
    if is_left_to_stock(module, cause) or (promotes and _is_promoted(x, weight) and _is_of_stock(module)):
        return _stock_forward(module)(module, x)
    if not (is_compiling() and (is_other(x, weight) or _cause(x, weight, epsilon))):  # a trace has no use for the error
        try:
            return function.apply(x, weight, *args)
        except (LigerArgumentError, TypeError):
            if not is_other(x, weight, *args):
                cause = _cause(x, weight, epsilon) or f"its input is {type(x).__name__}"
                if not is_left_to_stock(module, cause):
                    raise
    return _stock_forward(module)(module, x) if _is_of_stock(module) else function.torch_forward(x, weight, *args)


def _is_promoted(x: Any, weight: Any) -> bool:
    """Whether their product is wider than x. What autocast makes of it next is narrow again."""
    dtype = getattr(weight, "dtype", None)
    if dtype is None or dtype is x.dtype or torch.is_autocast_enabled(x.device.type):
        return False
    return torch.promote_types(x.dtype, dtype) is not x.dtype


def _cause(x: Any, weight: Any, epsilon: Any) -> str:
    """In words, what of a norm the kernel does not take."""
    if not isinstance(epsilon, (int, float)):
        return f"its epsilon is a {type(epsilon).__name__}"
    if not epsilon >= 0:
        return "its epsilon is negative, or no number"
    if weight is None:
        return ""
    if not isinstance(weight, torch.Tensor):
        return f"its weight is a {type(weight).__name__}"
    is_vector = weight.ndim == 1 and x.ndim and weight.shape[0] == x.shape[-1]
    return "" if is_vector else f"its weight has the shape {tuple(weight.shape)}"
