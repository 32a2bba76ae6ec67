"""PolyNorm: y = w₀ · n(x³) + w₁ · n(x²) + w₂ · n(x) + b over the last dimension, n(z) = z / √(mean(z²) + eps).

Z. Zhuo et al.: Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models (2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors, require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, Constants, KeepsStatistics, LigerArgumentError, Made, Rows, Wish, as_of


class _PolyNorm(KeepsStatistics):
    def shape(self, x: Tensor, *_: Any) -> tuple:
        """rstd of x³, x² and x of each row."""
        return math.prod(x.shape[:-1]), 3


@_PolyNorm
def poly_norm(x: Rows, weight: Constants, bias: Constants, eps: float,
              y: Made = Wish.LIKE, rstd: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    return _native.poly_norm_forward(x, weight, bias, y, rstd, eps), rstd


@poly_norm.gradient
def poly_norm_gradient(dy: Rows, x: Rows, weight: Constants, rstd: Tensor, bias: Constants,
                       dx: Asked = Wish.LIKE[1], dweight: Asked = Wish.LIKE[2], dbias: Asked = Wish.LIKE[4],
                       scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    made = as_of(weight, bias, dbias)
    found = _native.poly_norm_backward(dy, x, weight, rstd, dx, dweight, made, scratch)
    return found if made is dbias else (*found, made)


@of_tensors
def poly_norm_forward(X: Tensor, W: Tensor, B: Tensor, eps: float = 1e-6) -> tuple:
    """(Y in X's shape, X as [rows, H], rstd [rows, 3], block size, warps); the two sizes are opaque and zero here."""
    _check(X, W, B)
    y, rstd = poly_norm(X, W, B, eps)
    return y, X.reshape(-1, X.shape[-1]), rstd, 0, 0


@of_tensors
def poly_norm_backward(dY: Tensor, X: Tensor, W: Tensor, RSTD: Tensor, BLOCK_SIZE: int, num_warps: int,
                       in_place: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dX in dY's shape, dW [3], dB in W's dtype, a scalar) from what poly_norm_forward returned."""
    flat = dY.reshape(-1, dY.shape[-1])
    dx, dweight, dbias = poly_norm_gradient(flat, X.reshape(flat.shape), W, RSTD, W.new_empty(()), True, True, True)
    return dx.view(dY.shape), dweight, dbias


def _check(X: Tensor, W: Tensor, B: Tensor) -> None:
    if X.dim() == 0:
        raise LigerArgumentError("poly_norm: X has 0 dimensions, but must have 1 or more")
    require_shape("poly_norm", "W", W, (3,))
    if B.numel() != 1:
        raise LigerArgumentError(f"poly_norm: B has shape {tuple(B.shape)}, but must have one element")


class LigerPolyNormFunction(LigerFunction):
    """`apply(X, W, B, eps=1e-6, in_place=True)` -> Y of X's shape and dtype.

    X [..., H], W [3] and B of one element, each float32, float16 or bfloat16. Arithmetic and sums are f32; Y and every gradient
    are rounded once. in_place is accepted and changes nothing. AssertionError for a W or B of another size.
    """

    operator = poly_norm
    gradients = ("X", "W", "B")

    @staticmethod
    def arguments(X, W, B, eps=1e-6, in_place=True):
        return X, W, B, eps

    @staticmethod
    def require(X, W, B, eps=1e-6, in_place=True):
        _check(X, W, B)

    @staticmethod
    def torch_forward(X, W, B, eps=1e-6, in_place=True):
        x, weight = X.float(), W.float()

        def normal(z):
            return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)

        square = x * x
        y = weight[0] * normal(square * x) + weight[1] * normal(square) + weight[2] * normal(x)
        return (y + B.float().reshape(())).to(X.dtype)
