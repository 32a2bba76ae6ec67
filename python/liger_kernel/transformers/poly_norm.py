"""PolyNorm as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerPolyNormFunction


class LigerPolyNorm(nn.Module):
    """y = w₀ · n(x³) + w₁ · n(x²) + w₂ · n(x) + b over the last dimension, n(z) = z / √(mean(z²) + eps).

    `hidden_states` of any shape in fp32, fp16 or bf16; the result has its shape and dtype, the arithmetic is fp32. `weight`
    [3] starts as thirds, `bias`, a scalar, as 1. `in_place` permits, and never changes results.
    """

    def __init__(self, eps: float = 1e-6, in_place: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1.0 / 3.0))
        self.bias = nn.Parameter(torch.tensor(1.0))
        self.variance_epsilon = eps
        self.in_place = in_place

    def forward(self, hidden_states):
        return LigerPolyNormFunction.apply(hidden_states, self.weight, self.bias, self.variance_epsilon, self.in_place)

    def extra_repr(self):
        return f"weight_shape={tuple(self.weight.shape)}, eps={self.variance_epsilon}, in_place={self.in_place}"


def liger_poly_norm(X, W, B, eps=1e-6, in_place=True):
    """See `LigerPolyNorm`."""
    return LigerPolyNormFunction.apply(X, W, B, eps, in_place)
