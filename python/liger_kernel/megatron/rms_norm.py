"""RMSNorm as Megatron-Core builds its norms.

B. Zhang, R. Sennrich: Root Mean Square Layer Normalization (2019).
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import nn

from liger_kernel.ops import LigerRMSNormFunction


class LigerMegatronRMSNorm(nn.Module):
    """y = x · rstd · (weight + offset), rstd = 1/√(mean(x²) + eps), over the last dimension.

    `x` [..., hidden_size] in fp32, fp16 or bf16; the result has its shape and dtype; x · rstd is rounded to x's dtype before
    the weight. `weight` [hidden_size] starts as ones, offset 0; with zero-centered gamma (the argument, or
    `config.layernorm_zero_centered_gamma`) as zeros, offset 1. `weight.sequence_parallel` is that of `config`: Megatron sums
    the gradients of such parameters over its tensor-parallel group.

    `config` decides over `normalization`: ValueError unless it is "RMSNorm". `persist_layer_norm` is part of Megatron's call.
    """

    def __init__(
        self,
        config: Any,
        hidden_size: Any,
        eps: float = 1e-5,
        persist_layer_norm: bool = False,
        zero_centered_gamma: bool = False,
        normalization: str = "RMSNorm",
    ) -> None:
        super().__init__()
        normalization = getattr(config, "normalization", normalization)
        if normalization != "RMSNorm":
            raise ValueError(f"LigerMegatronRMSNorm: normalization is {normalization!r}, but must be 'RMSNorm'")
        self.hidden_size = torch.Size((int(hidden_size),) if isinstance(hidden_size, numbers.Integral) else hidden_size)
        if len(self.hidden_size) != 1:
            raise ValueError(f"LigerMegatronRMSNorm: hidden_size must be one number, got {tuple(self.hidden_size)}")
        self.config = config
        self.eps = eps
        self.zero_centered_gamma = bool(zero_centered_gamma or getattr(config, "layernorm_zero_centered_gamma", False))
        self.offset = 1.0 if self.zero_centered_gamma else 0.0
        self.weight = nn.Parameter(torch.empty(self.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The weight that multiplies by one, marked for Megatron: a new parameter, as `to_empty` makes, is not."""
        nn.init.constant_(self.weight, 1.0 - self.offset)
        self.weight.sequence_parallel = bool(getattr(self.config, "sequence_parallel", False))  # type: ignore[attr-defined]

    def forward(self, x):
        return LigerRMSNormFunction.apply(x, self.weight, self.eps, self.offset, "llama", False)

    def extra_repr(self):
        return f"{tuple(self.hidden_size)}, eps={self.eps}, zero_centered_gamma={self.zero_centered_gamma}"
