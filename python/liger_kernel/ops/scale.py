"""y = x · s for a scalar s that stays on the device: an upstream gradient, or 1 to cast an accumulator."""

from __future__ import annotations

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._operator import Operator, fresh, graph_is_kept, is_plain, new_rows


def _scale(x: Tensor, factor: Tensor) -> Tensor:
    y = new_rows(x)
    _native.scale(x.contiguous(), factor.float(), y)
    return y


def _scale_fake(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


scale = Operator("scale(Tensor x, Tensor factor) -> Tensor", _scale, _scale_fake)


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
