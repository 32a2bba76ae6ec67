"""Squared ReLU: y = max(x, 0)².

D. R. So et al.: Primer: Searching for Efficient Transformers for Language Modeling (2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Made, Operator, Rows, Wish


@Operator
def relu_squared(x: Rows, y: Made = Wish.LIKE) -> Any:
    return _native.relu_squared_forward(x, y)


@relu_squared.gradient
def relu_squared_gradient(dy: Rows, x: Rows, dx: Made = Wish.LIKE) -> Any:
    return _native.relu_squared_backward(dy, x, dx)


@of_tensors
def relu_squared_forward(X: Tensor) -> Tensor:
    """Y in X's shape."""
    return relu_squared(X)


@of_tensors
def relu_squared_backward(X: Tensor, dY: Tensor) -> Tensor:
    """dX in X's shape."""
    return relu_squared_gradient(dY, X)


class LigerReLUSquaredFunction(LigerFunction):
    """`apply(X)` -> max(X, 0)² of X's shape and dtype: float32, float16 or bfloat16, f32 arithmetic, rounded once."""

    operator = relu_squared
    gradients = ("X",)
    reuses = (True,)

    @staticmethod
    def arguments(X):
        return (X,)

    @staticmethod
    def torch_forward(X):
        positive = torch.relu(X.float())
        return (positive * positive).to(X.dtype)  # of a square torch's gradient begins with 2x, which may be infinite
