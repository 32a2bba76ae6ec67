"""Sparsemax: the nearest point of the simplex, y = max(x - tau, 0) where tau makes the sum 1."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Made, Operator, Rows, Wish


@Operator
def sparsemax(x: Rows, y: Made = Wish.LIKE, support: Made = Wish.PER_ROW_BITS) -> Any:
    return _native.sparsemax_forward(x, y, support)


@sparsemax.gradient
def sparsemax_gradient(dy: Rows, support: Tensor, dx: Made = Wish.LIKE) -> Any:
    return _native.sparsemax_backward(dy, support, dx)


def _dimension(x: Tensor, dim: Any) -> int:
    """Counted from the end."""
    dims = x.dim() or 1
    try:
        if isinstance(dim, bool):
            raise TypeError
        number = operator.index(dim)
    except TypeError:
        raise TypeError(f"sparsemax: dim must be an integer, but is {dim!r}") from None
    if not -dims <= number < dims:
        raise IndexError(f"sparsemax: dim is out of range: it is {number}, but must be in [{-dims}, {dims - 1}]")
    return number if number < 0 else number - dims


def _sorted_formula(x: Tensor) -> Tensor:
    """Over the last dimension. A shift of x shifts tau, and is nothing to a gradient. What is as large as tau is not part of
    the support, and has no gradient."""
    x = x - x.amax(-1, keepdim=True).detach()
    z = x.sort(-1, descending=True).values
    sums = z.cumsum(-1)
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    size = (1 + count * z > sums).sum(-1, keepdim=True).clamp(min=1)
    tau = (sums.gather(-1, size - 1) - 1) / size
    smallest = z.gather(-1, size - 1).detach()
    return torch.where(x < smallest, 0, (x - tau).clamp(min=0))


class LigerSparsemaxFunction(LigerFunction):
    """`apply(x, dim)` -> y of x's shape and dtype. The support is exact, and saved as bits; arithmetic in f32, rounded once."""

    operator = sparsemax
    gradients = ("x",)

    @classmethod
    def apply(cls, *args):
        """Along another dimension than the last: of x with that dimension moved to the end."""
        if len(args) != 2 or not isinstance(args[0], Tensor):
            return super().apply(*args)  # which says what is wrong
        x, dim = args[0], _dimension(*args)
        if dim == -1:
            return super().apply(x, -1)
        return super().apply(x.movedim(dim, -1), -1).movedim(-1, dim)

    @staticmethod
    def arguments(x, dim):
        return (x,)

    @staticmethod
    def torch_forward(x, dim):
        if x.dim() == 0 or x.numel() == 0:
            return x * 0 + 1
        return _sorted_formula(x.float().movedim(dim, -1)).movedim(-1, dim).to(x.dtype)
