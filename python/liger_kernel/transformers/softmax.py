"""Softmax over the last dimension."""

from __future__ import annotations

from torch import nn

from liger_kernel.ops import LigerSoftmaxFunction


class LigerSoftmax(nn.Module):
    """Softmax over the last dimension of a tensor of any shape."""

    def forward(self, x):
        return LigerSoftmaxFunction.apply(x)


def liger_softmax(x):
    """See `LigerSoftmax`."""
    return LigerSoftmaxFunction.apply(x)
