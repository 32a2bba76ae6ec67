"""Modules whose dtype the library does not have, as after model.double(): they compute as if they were not patched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from liger_kernel.transformers import patching

is_compiling = torch.compiler.is_dynamo_compiling
_OURS = (torch.float32, torch.float16, torch.bfloat16)


def is_other(*tensors: torch.Tensor | None) -> bool:
    return any(tensor is not None and tensor.dtype not in _OURS for tensor in tensors)


def as_stock(module: nn.Module, function: Any, *args: Any) -> Any:
    """What the forward of the class that was patched says of args[0]; of a class of ours, what `function` says in torch."""
    forward: Any = patching.patched_class(type(module)).forward  # type: ignore[attr-defined]
    return function.torch_forward(*args) if patching.is_ours(forward) else forward(module, args[0])
