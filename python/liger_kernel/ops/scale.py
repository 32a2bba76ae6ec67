"""y = x · s for a scalar s that stays on the device: an upstream gradient, or 1 to cast an accumulator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._memory import fresh, graph_is_kept, is_plain
from liger_kernel.ops._operator import Made, Operator, Single, Wish


@Operator
def scale(x: Tensor, factor: Single, y: Made = Wish.LIKE) -> Any:
    return _native.scale(x, factor, y)


def scaled_gradient(saved: Tensor, upstream: Tensor) -> Tensor:
    """A gradient that forward has formed, times the upstream scalar.

    In its own memory when the graph is being freed: nobody can ask for the saved one again, and nothing is moved when
    the upstream is 1. Else, or when that is not known, in new memory.
    """
    if not is_plain(saved, upstream) or graph_is_kept() or not saved.is_contiguous():
        return scale(saved, upstream)
    _native.scale(saved, upstream.float(), saved)
    return saved


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to another dtype, contiguous."""
    y = fresh(torch.empty_like(x, dtype=dtype))
    _native.scale(x, None, y)
    return y
