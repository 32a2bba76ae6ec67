"""Squared ReLU as a module."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.ops import LigerReLUSquaredFunction
from liger_kernel.ops._formula import of_tensors


class LigerReLUSquared(nn.Module):
    """max(x, 0)² of a tensor of any shape in fp32, fp16 or bf16."""

    def forward(self, x):
        return LigerReLUSquaredFunction.apply(x)


@of_tensors
def liger_relu_squared(x: Tensor):
    """See `LigerReLUSquared`."""
    return LigerReLUSquaredFunction.apply(x)
