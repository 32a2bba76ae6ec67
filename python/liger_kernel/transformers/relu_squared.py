"""Squared ReLU as a module."""

from __future__ import annotations

from torch import nn

from liger_kernel.ops import LigerReLUSquaredFunction


class LigerReLUSquared(nn.Module):
    """max(x, 0)² of a tensor of any shape in fp32, fp16 or bf16."""

    def forward(self, x):
        return LigerReLUSquaredFunction.apply(x)


def liger_relu_squared(x):
    """See `LigerReLUSquared`."""
    return LigerReLUSquaredFunction.apply(x)
