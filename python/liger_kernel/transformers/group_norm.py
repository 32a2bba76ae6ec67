"""GroupNorm as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerGroupNormFunction


class LigerGroupNorm(nn.Module):
    """y = (x − mean) · rstd · weight + bias, mean and rstd over each of `num_groups` groups of channels of each sample.

    `hidden_states` [batch, num_channels, ...] of three dimensions or more in fp32, fp16 or bf16; the result has its shape and
    dtype, the arithmetic is fp32. `weight` starts as ones or zeros (`init_fn`; AssertionError for another). `bias` is always
    there and trainable: random if `bias` is true, else zeros.
    """

    def __init__(
        self, num_channels: int, num_groups: int, eps: float = 1e-6, bias: bool = False, init_fn: str = "ones"
    ) -> None:
        super().__init__()
        assert init_fn in ("ones", "zeros"), f"init_fn must be 'ones' or 'zeros', got {init_fn!r}"
        assert num_groups >= 1, f"num_groups is {num_groups}, but must be 1 or more, for num_channels={num_channels}"
        assert num_channels % num_groups == 0, (
            f"num_channels must be a multiple of num_groups, but {num_channels} is none of {num_groups}"
        )
        self.num_channels = num_channels
        self.num_groups = num_groups
        self.eps = eps
        self.variance_epsilon = eps
        self.weight = nn.Parameter(torch.ones(num_channels) if init_fn == "ones" else torch.zeros(num_channels))
        self.bias = nn.Parameter(torch.randn(num_channels) if bias else torch.zeros(num_channels))

    def forward(self, hidden_states):
        assert hidden_states.dim() >= 3, (
            f"Input must have atleast 3 dimensions, but has {hidden_states.dim()}: (batch, channels, ...)"
        )
        assert hidden_states.size(1) == self.num_channels, (
            f"Input has {hidden_states.size(1)} channels, but must have num_channels={self.num_channels}"
        )
        return LigerGroupNormFunction.apply(
            hidden_states, self.weight, self.bias, self.num_channels, self.num_groups, self.variance_epsilon
        )

    def extra_repr(self):
        return f"{self.num_channels}, {self.num_groups}, eps={self.eps}"


def liger_group_norm(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
    """GroupNorm of X [batch, num_channels, ...] with a weight and a bias for each channel: see `LigerGroupNorm`."""
    return LigerGroupNormFunction.apply(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps)
