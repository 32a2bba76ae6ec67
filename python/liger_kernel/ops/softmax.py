"""Softmax over the last dimension: y = exp(x) / Σ exp(x)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Made, Operator, Rows, Wish


@Operator
def softmax(x: Rows, y: Made = Wish.LIKE) -> Any:
    return _native.softmax_forward(x, y)


@softmax.gradient
def softmax_gradient(dy: Rows, y: Rows, dx: Made = Wish.LIKE) -> Any:
    return _native.softmax_backward(dy, y, dx)


@of_tensors
def softmax_forward(x: Tensor) -> Tensor:
    """y in x's shape."""
    return softmax(x)


@of_tensors
def softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    """dx from forward's result."""
    return softmax_gradient(dy, y)


class LigerSoftmaxFunction(LigerFunction):
    """`apply(input_)` -> y of input_'s shape and dtype. Arithmetic in f32, rounded once; backward starts from the rounded y."""

    operator = softmax
    gradients = ("input_",)

    @staticmethod
    def arguments(input_):
        return (input_,)

    @staticmethod
    def torch_forward(input_):
        return torch.softmax(input_.float(), -1).to(input_.dtype)
