"""int8 activations times weights of two bits, -1, 0 and 1 (or 2). Four weights of a column are a byte, a quarter of k apart."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import formula
from liger_kernel.ops._function import _DISABLED
from liger_kernel.ops._operator import LigerArgumentError, Made, Shaped, Wish, is_transformed

_PLAIN_TORCH = not _DISABLED.isdisjoint(("int2_matmul", "mm_int8int2"))


class _Int2Matmul(Shaped):
    """Of integers, which have no gradient. What the sizes of its arguments are, the library checks."""

    dtype = torch.int32

    def shape(self, a: Tensor, b: Tensor) -> tuple:
        return a.shape[:-1] + b.shape[1:]

    def prepared(self, a: Tensor, b: Tensor) -> Tensor:
        return self.eager(a.contiguous(), b.contiguous())


@_Int2Matmul
def int2_matmul(a: Tensor, b: Tensor, c: Made = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:
    _native.int2_matmul(a, b, c, scratch)
    return c


def _check_weights(name: str, weights: Tensor, bits: int) -> None:
    if bits != 2:
        raise LigerArgumentError(f"{name}: bits is {bits}, but must be 2")
    if weights.dim() == 0 or weights.is_floating_point() or weights.is_complex():
        what = f"{weights.dim()}-dimensional {weights.dtype}"
        raise LigerArgumentError(f"{name}: the weights are {what}, but must be integers of one dimension or more")


def pack_weights(intweights: Tensor, bits: int = 2) -> Tensor:
    """Weights of -1, 0, 1 (and 2) in any integer dtype, [K, ...] -> uint8 [R, ...], R = K / 4 rounded up.

    Byte row r has rows r, r + R, r + 2R and r + 3R, the first in its lowest two bits, each as weight + 1 (of another number,
    what these two bits are). Rows that are missing where K is no multiple of 4 are -1. The argument is left as it is.
    """
    _check_weights("pack_weights", intweights, bits)
    rows, *rest = intweights.shape
    packed = (rows + 3) // 4
    codes = (intweights.to(torch.uint8) + 1) & 3
    if rows != 4 * packed:
        codes = torch.cat((codes, codes.new_zeros((4 * packed - rows, *rest))))
    first, second, third, fourth = codes.reshape(4, packed, *rest).unbind()
    return first | second << 2 | third << 4 | fourth << 6


def unpack_weights(packed: Tensor, bits: int = 2) -> Tensor:
    """uint8 [R, ...], of any strides -> int32 [4R, ...]: what `pack_weights` was given, from -1 to 2."""
    _check_weights("unpack_weights", packed, bits)
    return torch.cat([packed >> 2 * i & 3 for i in range(4)]).to(torch.int32) - 1


class _Formula:
    """The same from torch's operations: sums of float64, exact below 2^53, wrap around as those of int32 do."""

    held = ()

    @staticmethod
    def check(a: Tensor, b: Tensor) -> None:
        for name, tensor, dtype in (("a", a, torch.int8), ("b", b, torch.uint8)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"matmul: {name} must be a torch.Tensor, not {type(tensor).__name__}")
            if tensor.dim() != 2:
                raise LigerArgumentError(f"matmul: {name} has {tensor.dim()} dimensions, but must have 2")
            if tensor.dtype is not dtype:
                raise LigerArgumentError(f"matmul: {name} is {tensor.dtype}, but must be {dtype}")
        if a.device != b.device:
            raise LigerArgumentError(f"matmul: b is on {b.device}, but a is on {a.device}")
        if a.shape[1] != 4 * b.shape[0]:
            sizes = f"a has {a.shape[1]} columns, but b has {b.shape[0]} rows of four weights"
            raise LigerArgumentError(f"matmul: {sizes}, which are {4 * b.shape[0]}")
        if not a.is_contiguous():
            raise LigerArgumentError(f"matmul: a has strides {a.stride()}, but must be contiguous")

    @staticmethod
    def torch_forward(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ unpack_weights(b).double()).to(torch.int64).to(torch.int32)


def _runs_in_torch() -> bool:
    if torch.compiler.is_dynamo_compiling():  # in a way that dynamo can trace
        return _PLAIN_TORCH or torch._C._are_functorch_transforms_active() or _forward_ad._current_level >= 0
    return _PLAIN_TORCH or is_transformed()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] int8, contiguous, times the weights of b [K/4, N] uint8 (`pack_weights`), of any strides -> int32 [M, N].

    Exact; where K is 2^23 or more, sums that an int32 does not hold wrap around. Nothing has a gradient, and no unpacked
    copy of the weights outlives the call.
    """
    if _runs_in_torch():
        return formula(_Formula, (a, b))
    _Formula.check(a, b)
    return int2_matmul(a, b)
