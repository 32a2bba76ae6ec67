"""Softmax over the last dimension."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.ops import LigerSoftmaxFunction
from liger_kernel.ops._formula import of_tensors


class LigerSoftmax(nn.Module):
    """Softmax over the last dimension of a tensor of any shape."""

    def forward(self, x):
        return LigerSoftmaxFunction.apply(x)


@of_tensors
def liger_softmax(x: Tensor):
    """See `LigerSoftmax`."""
    return LigerSoftmaxFunction.apply(x)
