"""accelerate's mixed precision, which replaces a model's forward on the instance by wrappers around the class's.

The wrappers are autocast and a cast of what comes out to fp32. They capture the function that they wrap, so the class's
method cannot be changed below them: the same wrappers are made again around ours.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from liger_kernel.utils import loaded_class


def rewrap(module: nn.Module, forward: Callable[..., Any]) -> dict[str, Any] | None:
    """The attributes `forward` and `_original_forward` with accelerate's wrappers around `forward`.

    None if what stands on the instance is something else than these wrappers around the method of its class, or ours.
    """
    convert: Any = loaded_class("accelerate.utils.operations", "convert_outputs_to_fp32")
    outer = getattr(module.__dict__.get("forward"), "__func__", None)
    original = getattr(module.__dict__.get("_original_forward"), "__func__", None)
    cast = getattr(outer, "__wrapped__", None)
    autocast = getattr(cast, "model_forward", None)
    if not convert or original is None or not inspect.isfunction(autocast):
        return None
    captured = inspect.getclosurevars(autocast).nonlocals
    if captured.get("func") is not original or "autocast_instance" not in captured:
        return None
    again = convert(captured["autocast_instance"](forward))
    return {
        "forward": types.MethodType(again, module),
        "_original_forward": types.MethodType(forward, module),
    }
