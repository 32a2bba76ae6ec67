"""What the losses on a linear head share: the dtype of its products, and memory for a piece of its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from liger_kernel.ops._memory import fresh
from liger_kernel.ops._operator import LigerArgumentError

COMPUTE = (torch.float32, torch.float16, torch.bfloat16)  # dtypes of the products, by the operator's number


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


def padded_logits(like: Tensor, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Memory for [rows, cols] logits, its rows padded to 16 bytes: the products are faster, and an odd vocabulary is not
    special."""
    return fresh(like.new_empty(rows, -(-cols // 8) * 8, dtype=dtype))
