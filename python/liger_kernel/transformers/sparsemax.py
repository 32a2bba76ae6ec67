"""Sparsemax along a dimension."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.ops import LigerSparsemaxFunction
from liger_kernel.ops._formula import of_tensors


class LigerSparsemax(nn.Module):
    """Sparsemax of a tensor of any shape: a distribution along `dim`, most of which is 0."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return LigerSparsemaxFunction.apply(x, self.dim)

    def extra_repr(self):
        return f"dim={self.dim}"


@of_tensors
def liger_sparsemax(input: Tensor, dim: int = -1):
    """See `LigerSparsemax`."""
    return LigerSparsemaxFunction.apply(input, dim)
