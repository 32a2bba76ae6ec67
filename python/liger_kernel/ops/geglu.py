"""GeGLU: gelu(a) · b with the tanh approximation of GELU.

N. Shazeer: GLU Variants Improve Transformer (2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import NATIVE_DTYPE, rows
from liger_kernel.ops._operator import AnyRows, Asked, Made, Operator, Wish


@Operator
def geglu(gate: AnyRows, up: AnyRows, y: Made = Wish.LIKE) -> Any:
    return _native.geglu_forward(gate, up, y, 0)


@geglu.gradient
def geglu_gradient(dy: AnyRows, gate: AnyRows, up: AnyRows,
                   dgate: Asked = Wish.LIKE[1], dup: Asked = Wish.LIKE[2]) -> Any:  # fmt: skip
    return _native.geglu_backward(dy, gate, up, dgate, dup)


@geglu.mixed
def _two_dtypes(gate: Tensor, up: Tensor) -> Tensor:
    """gelu is rounded to up's dtype, the product to gate's: in f32 with an explicit rounding this is exact."""
    y = _native.geglu_forward(rows(gate.float()), rows(up.float()), Wish.LIKE, NATIVE_DTYPE[up.dtype])
    return y.view(gate.shape).to(gate.dtype)


@of_tensors
def geglu_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a as [rows, cols], b likewise, gelu(a)·b in a's shape)."""
    return a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), geglu(a, b)


@of_tensors
def geglu_backward(a: Tensor, b: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
    """(da, db) in dc's shape."""
    da, db = geglu_gradient(dc, a.reshape(dc.shape), b.reshape(dc.shape), True, True)
    return da, db


class LigerGELUMulFunction(LigerFunction):
    """`apply(a, b)` -> gelu(a)·b, gelu(a) = ½·a·(1 + tanh(√(2/π)·(a + 0.044715·a³))).

    a and b [..., I] of one shape, float32, float16 or bfloat16; f32 arithmetic; gelu is rounded to b's dtype before the
    product, the product to a's dtype.
    """

    operator = geglu
    gradients = ("a", "b")
    reuses = (True, True)

    @staticmethod
    def arguments(a, b):
        return a, b

    @staticmethod
    def torch_forward(a, b):
        return (torch.nn.functional.gelu(a.float(), approximate="tanh").to(b.dtype) * b).to(a.dtype)
