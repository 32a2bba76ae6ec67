"""LayerNorm: y = (x - mean) · rstd · weight + bias over the last dimension, rstd = 1/√(var + eps).

J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization (2016).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Operator, Rows, Weight, Wish, as_of


@Operator
def layer_norm(x: Rows, weight: Weight | None, bias: Weight | None, eps: float,
               y: Made = Wish.LIKE, mean: Made = Wish.PER_ROW, rstd: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    return _native.layer_norm_forward(x, weight, bias, y, mean, rstd, eps)


class _LayerNormGradient(Operator):
    def _prepare(self, given: tuple, dtype: torch.dtype) -> list:
        """Without a weight the library's gradient of bias is f32."""
        return super()._prepare(given, torch.float32 if given[2] is None else dtype)


@functools.partial(layer_norm.gradient, kind=_LayerNormGradient)
def layer_norm_gradient(dy: Rows, x: Rows, weight: Weight | None, mean: Tensor, rstd: Tensor, bias: Weight | None,
                        dx: Asked = Wish.LIKE[1], dweight: Asked = Wish.LIKE[2], dbias: Asked = Wish.LIKE[5],
                        scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    dbias = as_of(weight, bias, dbias, Wish.LIKE[2])
    return _native.layer_norm_backward(dy, x, weight, mean, rstd, dx, dweight, dbias, scratch)


def _check(X: Tensor, W: Tensor | None, B: Tensor | None) -> None:
    cols = X.shape[-1:]
    if (W is not None and W.shape != cols) or (B is not None and B.shape != cols):
        of = ", ".join(f"{n} has {tuple(t.shape)}" for n, t in (("X", X), ("W", W), ("B", B)) if t is not None)
        raise LigerArgumentError(f"Incompatible dimensions: {of}, but W and B must be as wide as X's rows")


@of_tensors
def layer_norm_forward(X: Tensor, W: Tensor | None, B: Tensor | None, eps: float) -> tuple:
    """(Y, X as [rows, H], mean, rstd, block size, warps); the two sizes are opaque and zero here."""
    _check(X, W, B)
    y, mean, rstd = layer_norm(X, W, B, eps)
    return y, X.reshape(-1, X.shape[-1]), mean, rstd, 0, 0


@of_tensors
def layer_norm_backward(dY: Tensor, X: Tensor, W: Tensor | None, B: Tensor | None, Mean: Tensor, RSTD: Tensor,
                        needs_dw: bool | None = None, needs_db: bool | None = None) -> tuple:  # fmt: skip
    """(dX in dY's shape, dW or None, dB or None) from what layer_norm_forward returned; None asks for a gradient."""
    needs = (True, W is not None and needs_dw is not False, B is not None and needs_db is not False)
    dx, *gradients = layer_norm_gradient(dY.reshape(-1, dY.shape[-1]), X, W, Mean, RSTD, B, *needs)
    dweight, dbias = (g if need else None for g, need in zip(gradients, needs[1:]))
    return dx.view(dY.shape), dweight, dbias


class LigerLayerNormFunction(LigerFunction):
    """`apply(X, W, B, eps)` -> Y of X's shape and dtype.

    X [..., H] float32, float16 or bfloat16; W and B [H] of any of them, or None: ones and zeros. Arithmetic and statistics are f32, the variance
    is the mean of (x - mean)², and the result is rounded once. ValueError "Incompatible dimensions" for another H.
    """

    operator = layer_norm
    gradients = ("X", "W", "B")

    @staticmethod
    def arguments(X, W, B, eps):
        return X, W, B, eps

    @staticmethod
    def require(X, W, B, eps):
        _check(X, W, B)

    @staticmethod
    def torch_forward(X, W, B, eps):
        x = X.float()
        centred = x - x.mean(-1, keepdim=True)
        normal = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
        normal = normal if W is None else normal * W.float()
        return (normal if B is None else normal + B.float()).to(X.dtype)
