"""RMSNorm: y = x · rstd · (weight + offset), rstd = 1/√(mean(x²) + eps) over the last dimension."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._casting import NATIVE_CASTING, casting_number, rms_norm_in_f32, rms_norm_results
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import PLAIN
from liger_kernel.ops._operator import Asked, Made, Operator, Rows, Weight, Wish


@Operator
def rms_norm(x: Rows, weight: Weight | None, eps: float, offset: float, casting: int,
             y: Made = Wish.LIKE, rstd: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    return _native.rms_norm_forward(x, weight, y, rstd, eps, offset, NATIVE_CASTING[casting])


@rms_norm.gradient
def rms_norm_gradient(dy: Rows, x: Rows, weight: Weight | None, rstd: Tensor, offset: float, casting: int,
                      dx: Asked = Wish.LIKE[1], dweight: Asked = Wish.LIKE[2], scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.rms_norm_backward(dy, x, weight, rstd, dx, dweight, offset, NATIVE_CASTING[casting], scratch)


def gather(tensor: Any) -> Tensor:
    """A DTensor is gathered: a row must be whole for its mean."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@of_tensors
def rms_norm_forward(
    X: Tensor, W: Tensor | None, eps: float, offset: float, casting_mode: str | int, row_mode: bool | None
) -> tuple:
    """(Y, X as [rows, H], RSTD, block size, warps, casting number); the two sizes are opaque and zero here."""
    casting = casting_number(casting_mode)
    y, rstd = rms_norm(X, W, eps, offset, casting)
    return rms_norm_results(y, rstd, X, casting)


@of_tensors
def rms_norm_backward(dY: Tensor, X: Tensor, W: Tensor | None, RSTD: Tensor, offset: float, casting_mode: str | int,
                      BLOCK_SIZE: int, num_warps: int, in_place: bool, row_mode: bool | None,
                      needs_dw: bool | None = None) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(dX in dY's shape, dW or None) from what rms_norm_forward returned; needs_dw None asks for dW where there is a W."""
    flat = dY.reshape(-1, dY.shape[-1])
    needed = W is not None and needs_dw is not False
    dx, dweight = rms_norm_gradient(flat, X, W, RSTD.float(), offset, casting_number(casting_mode), True, needed)
    return dx.view(dY.shape), dweight if needed else None


class LigerRMSNormFunction(LigerFunction):
    """`apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None)` -> Y of X's shape and dtype.

    X [..., H] float32, float16 or bfloat16; W [H] of any of them, or None. Statistics, sums and arithmetic are f32.
    casting_mode: "llama" rounds x·rstd to X's dtype before the weight; "gemma" rounds once, at the end; "none" rounds
    eps, offset and rstd to X's dtype. in_place and row_mode are accepted and change nothing. A DTensor is gathered.
    """

    operator = rms_norm
    gradients = ("X", "W")
    received = staticmethod(gather)

    @staticmethod
    def arguments(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        return X if type(X) in PLAIN else gather(X), W, eps, offset, casting_number(casting_mode)

    @staticmethod
    def torch_forward(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        return rms_norm_in_f32(X, W, eps, offset, casting_number(casting_mode)).to(X.dtype)
