"""Dynamic tanh: y = gamma · tanh(alpha · x) + beta, in the place of a normalisation.

J. Zhu, X. Chen, K. He, Y. LeCun, Z. Liu: Transformers without Normalization (2025).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, Constants, Made, Operator, Rows, Weight, Wish, as_of


@Operator
def dyt(x: Rows, alpha: Constants, gamma: Weight, beta: Weight | None, y: Made = Wish.LIKE) -> Any:
    return _native.dyt_forward(x, alpha, gamma, beta, y)


@dyt.gradient
def dyt_gradient(dy: Rows, x: Rows, alpha: Constants, gamma: Weight, beta: Weight | None,
                 dx: Asked = Wish.LIKE[1], dalpha: Asked = Wish.LIKE[2], dgamma: Asked = Wish.LIKE[3],
                 dbeta: Asked = Wish.LIKE[4], scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    dbeta = as_of(gamma, beta, dbeta, Wish.LIKE[3])
    return _native.dyt_backward(dy, x, alpha, gamma, dx, dalpha, dgamma, dbeta, scratch)


def liger_dyt_fwd(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor | None) -> Tensor:
    """y in x's shape."""
    return dyt(x, alpha, gamma, beta)


def liger_dyt_bwd(dy: Tensor, x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor | None) -> tuple:
    """(dx, dalpha, dgamma, dbeta or None), each in the shape and dtype of what it belongs to."""
    dx, dalpha, dgamma, dbeta = dyt_gradient(dy, x, alpha, gamma, beta, True, True, True, beta is not None)
    return dx, dalpha, dgamma, dbeta if beta is not None else None


class LigerDyTFunction(LigerFunction):
    """`apply(x, alpha, gamma, beta)` -> gamma · tanh(alpha · x) + beta of x's shape and dtype.

    x [..., H], alpha of one element, gamma [H], beta [H] or None, each float32, float16 or bfloat16. Arithmetic and sums are
    f32; y and every gradient are rounded once, to the dtype of what they belong to.
    """

    operator = dyt
    gradients = ("x", "alpha", "gamma", "beta")
    reuses = (True, False, False, False)

    @staticmethod
    def arguments(x, alpha, gamma, beta):
        return x, alpha, gamma, beta

    @staticmethod
    def require(x, alpha, gamma, beta):
        if alpha.numel() != 1:
            require_shape("dyt", "alpha", alpha, (1,))

    @staticmethod
    def torch_forward(x, alpha, gamma, beta):
        y = gamma.float() * torch.tanh(alpha.float() * x.float())
        return (y if beta is None else y + beta.float()).to(x.dtype)
