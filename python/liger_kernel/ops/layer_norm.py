"""LayerNorm: y = (x - mean) · rstd · weight + bias over the last dimension, rstd = 1/√(var + eps).

J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization (2016).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Operator, Rows, Weight, Wish


@Operator
def layer_norm(x: Rows, weight: Weight, bias: Weight, eps: float,
               y: Made = Wish.LIKE, mean: Made = Wish.PER_ROW, rstd: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    return _native.layer_norm_forward(x, weight, bias, y, mean, rstd, eps)


@layer_norm.gradient
def layer_norm_gradient(dy: Rows, x: Rows, weight: Weight, mean: Tensor, rstd: Tensor, dx: Asked = Wish.LIKE[1],
                        dweight: Asked = Wish.LIKE[2], dbias: Asked = Wish.LIKE[2],
                        scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.layer_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, scratch)


def _check(X: Tensor, W: Tensor, B: Tensor) -> None:
    if X.shape[-1:] != W.shape or W.shape != B.shape:
        shapes = f"X has {tuple(X.shape)}, W {tuple(W.shape)} and B {tuple(B.shape)}"
        raise LigerArgumentError(f"Incompatible dimensions: {shapes}, but W and B must be as wide as X's rows")


def layer_norm_forward(X: Tensor, W: Tensor, B: Tensor, eps: float) -> tuple:
    """(Y, X as [rows, H], mean, rstd, block size, warps); the two sizes are opaque and zero here."""
    _check(X, W, B)
    y, mean, rstd = layer_norm(X, W, B, eps)
    return y, X.reshape(-1, X.shape[-1]), mean, rstd, 0, 0


def layer_norm_backward(dY: Tensor, X: Tensor, W: Tensor, B: Tensor, Mean: Tensor, RSTD: Tensor,
                        needs_dw: bool | None = None, needs_db: bool | None = None) -> tuple:  # fmt: skip
    """(dX in dY's shape, dW or None, dB or None) from what layer_norm_forward returned; None asks for a gradient."""
    needs = (True, needs_dw is not False, needs_db is not False)
    dx, dweight, dbias = layer_norm_gradient(dY.reshape(-1, dY.shape[-1]), X, W, Mean, RSTD, *needs)
    return dx.view(dY.shape), dweight if needs[1] else None, dbias.to(B.dtype) if needs[2] else None


class LigerLayerNormFunction(LigerFunction):
    """`apply(X, W, B, eps)` -> Y of X's shape and dtype.

    X [..., H] float32, float16 or bfloat16; W and B [H] of any of them. Arithmetic and statistics are f32, the variance
    is the mean of (x - mean)², and the result is rounded once. ValueError "Incompatible dimensions" for another H.
    """

    operator = layer_norm
    gradients = ("X", "W", "B")

    @staticmethod
    def arguments(X, W, B, eps):
        _check(X, W, B)
        return X, W, B, eps

    @staticmethod
    def torch_forward(X, W, B, eps):
        x = X.float()
        centred = x - x.mean(-1, keepdim=True)
        normal = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
        return (normal * W.float() + B.float()).to(X.dtype)
