"""Residual addition and RMSNorm in one pass: S = X + R, Y = RMSNorm(S)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._casting import NATIVE_CASTING, casting_number
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, Made, Operator, Rows, Weight, Wish
from liger_kernel.ops.rms_norm import LigerRMSNormFunction


class _AddRMSNorm(Operator):
    differentiable = (0, 1, 2)

    def gradients(self, saved: tuple, options: tuple, upstreams: tuple, needs: list) -> tuple:
        """Of x and residual, which have one gradient, and of weight.

        Between two intermediate tensors it is handed on twice, as torch's own addition does: autograd copies it before anybody
        writes. Two leaves get a tensor each, because torch.autograd.grad would show them one storage.
        """
        (total, weight, rstd), (offset, casting, *leaves), (dy, dtotal) = saved, options, upstreams[:2]
        need_x, need_residual, need_dweight = needs
        if dy is None:
            dweight = torch.zeros_like(weight) if need_dweight else None
            dx = dtotal if dtotal is not None else torch.zeros_like(total)
        else:
            dx, dweight = add_rms_norm_gradient(
                dy, dtotal, total, weight, rstd, offset, casting, need_x or need_residual, need_dweight
            )
        two_leaves = all(leaves)
        second = dx.clone() if need_x and need_residual and two_leaves else dx
        return dx if need_x else None, second if need_residual else None, dweight if need_dweight else None


@_AddRMSNorm
def add_rms_norm(x: Rows, residual: Rows, weight: Weight | None, eps: float, offset: float, casting: int,
                 y: Made = Wish.LIKE, total: Made = Wish.LIKE, rstd: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    return _native.add_rms_norm_forward(x, residual, weight, y, total, rstd, eps, offset, NATIVE_CASTING[casting])


@add_rms_norm.gradient
def add_rms_norm_gradient(dy: Rows, dtotal: Rows | None, total: Rows, weight: Weight | None, rstd: Tensor,
                          offset: float, casting: int, dx: Asked = Wish.LIKE[2], dweight: Asked = Wish.LIKE[3],
                          scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    casting = NATIVE_CASTING[casting]
    return _native.add_rms_norm_backward(dy, dtotal, total, weight, rstd, dx, dweight, offset, casting, scratch)


@of_tensors
def fused_add_rms_norm_forward(
    X: Tensor, R: Tensor, W: Tensor | None, eps: float, offset: float, casting_mode: str | int
) -> tuple:
    """(Y, S, RSTD, block size, warps, stages, casting number); the three sizes are opaque and zero here."""
    casting = casting_number(casting_mode)
    y, total, rstd = add_rms_norm(X, R, W, eps, offset, casting)
    return y, total, rstd.to(X.dtype) if casting == -1 else rstd, 0, 0, 0, casting


@of_tensors
def fused_add_rms_norm_backward(
    dY: Tensor,
    dS_out: Tensor | None,
    S: Tensor,
    W: Tensor | None,
    RSTD: Tensor,
    offset: float,
    casting_mode: str | int,
    BLOCK_SIZE: int,
    num_warps: int,
    num_stages: int,
    in_place: bool,
    needs_dw: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dX, dR, dW or None) from what fused_add_rms_norm_forward returned; needs_dw None asks for dW."""
    needed = W is not None and needs_dw is not False
    dx, dweight = add_rms_norm_gradient(
        dY, dS_out, S.view(dY.shape), W, RSTD.float(), offset, casting_number(casting_mode), True, needed
    )
    return dx, dx.clone(), dweight if needed else None


class LigerFusedAddRMSNormFunction(LigerFunction):
    """`apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False)` -> (Y, S).

    S = X + R, rounded to X's dtype; Y = RMSNorm(S) as LigerRMSNormFunction. X and R [..., H] of one dtype, W [H] or None.
    The gradient of X and R is RMSNorm's gradient at S plus the upstream of S, in two tensors.
    """

    operator = add_rms_norm
    names = "fused_add_rms_norm add_rms_norm"
    gradients = ("X", "R", "W")

    @staticmethod
    def arguments(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        return X, R, W, eps, offset, casting_number(casting_mode)

    @staticmethod
    def remembered(X, R, *_):
        return (X.is_leaf and R.is_leaf,)

    @staticmethod
    def torch_forward(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        total = X + R
        return LigerRMSNormFunction.torch_forward(total, W, eps, offset, casting_mode), total
