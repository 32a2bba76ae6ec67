"""What the losses on a linear head share: the dtype of its products, and memory for a piece of its logits."""

from __future__ import annotations

import math
import os
import re

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._memory import FLOATS, fresh
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.ops.scale import cast

COMPUTE = (torch.float32, torch.float16, torch.bfloat16)  # dtypes of the products, by the operator's number


def _named_budget() -> int:
    """As the library reads it."""
    text = re.match(r"\s*\+?(\d+)", os.environ.get("LIGER_LOSS_WORKSPACE_MB", ""))
    megabytes = int(text[1]) if text else 0
    return (megabytes if megabytes <= 1 << 20 else 0) << 20


NAMED_BUDGET = _named_budget()  # bytes; 0: nobody has named one


def autocast_dtype(device_type: str) -> torch.dtype | None:
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Of the products: autocast's, or the one that torch promotes to."""
    dtype = autocast_dtype(x.device.type)
    return torch.promote_types(x.dtype, weight.dtype) if dtype is None else dtype


def require_matrices(operator: str, **tensors: Tensor) -> None:
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.dim() != 2:
            raise LigerArgumentError(f"{operator}: {name} has {value.dim()} dimensions, but must have 2")


def require_temperature(temperature: float) -> None:
    """Of a softmax that is not to be turned around."""
    if not 0 < temperature < math.inf:
        raise LigerArgumentError(f"temperature is {temperature}, but must be finite and larger than 0")


def padded_logits(like: Tensor, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Memory for [rows, cols] logits, its rows padded to 16 bytes: the products are faster, and an odd vocabulary is not
    special."""
    return fresh(like.new_empty(rows, -(-cols // 8) * 8, dtype=dtype))


def accumulates_in(operator: str, accum_dtype: torch.dtype | None, dtype: torch.dtype) -> bool:
    """Is each chunk's part of a parameter's gradient to be rounded to the products' dtype? Where another is asked for they
    are summed in f32."""
    if accum_dtype is not None and accum_dtype not in FLOATS:
        supported = "None, float32, float16 and bfloat16 are supported"
        raise LigerArgumentError(f"{operator}: accum_dtype is {accum_dtype}, but {supported}")
    return accum_dtype is dtype


def accumulator(weight: Tensor, dtype: torch.dtype, lean: bool) -> Tensor:
    """What products are summed in: f32, or the products' dtype."""
    return fresh(torch.empty(weight.shape, dtype=dtype if lean else torch.float32, device=weight.device))


def finished(
    gradient: Tensor, like: Tensor, raw: bool, factor: Tensor | None, target: Tensor | None, ignore_index: int
) -> Tensor:
    """A sum, as the gradient of `like`; with targets it has a row for each. The factor may be infinite: class weights may
    add up to 0."""
    if raw and factor is None:
        return gradient.float()
    if raw:
        scaled = fresh(torch.empty_like(gradient, dtype=torch.float32))
        _native.scale(gradient, factor, scaled, target, ignore_index)
        return scaled
    if gradient.dtype is torch.float32 and like.dtype is not torch.float32:
        return cast(gradient, like.dtype)
    return gradient.to(like.dtype)
