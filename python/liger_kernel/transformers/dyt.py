"""Dynamic tanh as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerDyTFunction


class LigerDyT(nn.Module):
    """gamma · tanh(alpha · x) + beta over the last dimension, in the place of a normalisation.

    `x` [..., hidden_size] in fp32, fp16 or bf16; the result has its shape and dtype, the arithmetic is fp32. `alpha` [1]
    starts as `init_alpha`, `gamma` as ones, `beta` as zeros; it is None if `beta` is false.
    """

    def __init__(self, hidden_size: int, beta: bool = True, init_alpha: float = 0.5) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.init_alpha = init_alpha
        self.alpha = nn.Parameter(torch.ones(1) * init_alpha)
        self.gamma = nn.Parameter(torch.ones(hidden_size))
        self.beta = nn.Parameter(torch.zeros(hidden_size)) if beta else None

    def forward(self, x):
        return LigerDyTFunction.apply(x, self.alpha, self.gamma, self.beta)

    def extra_repr(self):
        return f"{self.hidden_size}, init_alpha={self.init_alpha}, beta={self.beta is not None}"


def liger_dyt(x, alpha, gamma, beta):
    """See `LigerDyT`; `beta` may be None."""
    return LigerDyTFunction.apply(x, alpha, gamma, beta)
