"""GroupNorm: y = (x - mean) · rstd · weight + bias, mean and rstd over a group of channels and all that lies behind them.

Y. Wu, K. He: Group Normalization (2018).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, KeepsStatistics, LigerArgumentError, Made, Planes, Weight, Wish, as_of


class _GroupNorm(KeepsStatistics):
    def shape(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, *_: Any) -> tuple:
        """Mean and rstd of each group of each sample."""
        return 2, x.shape[0] * groups


@_GroupNorm
def group_norm(x: Planes, weight: Weight, bias: Weight, groups: int, eps: float,
               y: Made = Wish.LIKE, statistics: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    return _native.group_norm_forward(x, weight, bias, y, statistics, groups, eps, Wish.SCRATCH), statistics


@group_norm.gradient
def group_norm_gradient(dy: Planes, x: Planes, weight: Weight, statistics: Tensor, bias: Weight, groups: int,
                        dx: Asked = Wish.LIKE[1], dweight: Asked = Wish.LIKE[2], dbias: Asked = Wish.LIKE[4],
                        scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    dbias = as_of(weight, bias, dbias, Wish.LIKE[2])
    return _native.group_norm_backward(dy, x, weight, statistics, dx, dweight, dbias, groups, scratch)


@of_tensors
def group_norm_forward(X: Tensor, num_channels: int, num_groups: int, W: Tensor, B: Tensor, eps: float) -> tuple:
    """(Y in X's shape, X, mean and rstd as [batch, groups], block size); the size is opaque and zero here."""
    y, statistics = group_norm(*LigerGroupNormFunction.arguments(X, W, B, num_channels, num_groups, eps))
    mean, rstd = statistics.view(2, X.shape[0], num_groups)
    return y, X, mean, rstd, 0


@of_tensors
def group_norm_backward(dY: Tensor, X: Tensor, W: Tensor, B: Tensor, Mean: Tensor, RSTD: Tensor, num_channels: int,
                        num_groups: int) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dX in dY's shape, dW, dB) from what group_norm_forward returned."""
    statistics = torch.stack([Mean.reshape(-1), RSTD.reshape(-1)])
    return group_norm_gradient(dY, X.reshape(dY.shape), W, statistics, B, num_groups, True, True, True)


class LigerGroupNormFunction(LigerFunction):
    """`apply(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps)` -> Y of X's shape and dtype.

    X [B, C, ...] float32, float16 or bfloat16, of two dimensions or more; weight and bias [C] of any of them. Arithmetic and
    statistics are f32, the variance is the mean of (x - mean)², and the result is rounded once.
    """

    operator = group_norm
    gradients = ("X", "affine_scaling_weight", "affine_shifting_bias")
    reuses = (True, False, False)

    @staticmethod
    def arguments(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
        if X.shape[1:2] != (num_channels,):
            raise LigerArgumentError(f"group_norm: X has shape {tuple(X.shape)}, but num_channels is {num_channels}")
        if num_groups < 1:
            raise LigerArgumentError(f"group_norm: num_groups is {num_groups}, but must be 1 or more")
        return X, affine_scaling_weight, affine_shifting_bias, num_groups, eps

    @classmethod
    def check(cls, X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
        super().check(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps)
        if num_channels % num_groups:
            raise LigerArgumentError(
                f"group_norm: num_channels is {num_channels}, no multiple of num_groups {num_groups}"
            )

    @staticmethod
    def torch_forward(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):
        x = X.float().reshape(X.shape[0], num_groups, X.shape[1:].numel() // num_groups)
        centred = x - x.mean(-1, keepdim=True)
        normal = (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)).reshape(X.shape)
        of_channel = (-1,) + (1,) * (X.dim() - 2)
        scaled = normal * affine_scaling_weight.float().view(of_channel)
        return (scaled + affine_shifting_bias.float().view(of_channel)).to(X.dtype)
