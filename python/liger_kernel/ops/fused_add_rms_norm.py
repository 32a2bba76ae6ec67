"""Residual addition and RMSNorm in one pass: S = X + R, Y = RMSNorm(S)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import LIKE_FIRST, PER_ROW
from liger_kernel.ops._operator import (
    LigerFunction,
    Operator,
    absent,
    new_rows,
    parameter,
    refuse_second_derivative,
    rows,
    workspace,
)
from liger_kernel.ops.rms_norm import _NATIVE_CASTING, LigerRMSNormFunction, casting_number


def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, casting: int
) -> tuple[Tensor, Tensor, Tensor]:
    y, total = new_rows(x), new_rows(x)
    x, residual = rows(x), rows(residual)
    rstd = x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)
    _native.add_rms_norm_forward(
        x, residual, parameter(weight, x.dtype), rows(y), rows(total), rstd, eps, offset, _NATIVE_CASTING[casting]
    )
    return y, total, rstd


def _quick(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, casting: int
) -> tuple[Tensor, Tensor, Tensor]:
    casting = _NATIVE_CASTING[casting]
    return _native.add_rms_norm_forward(x, residual, weight, LIKE_FIRST, LIKE_FIRST, PER_ROW, eps, offset, casting)


def _forward_fake(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, casting: int
) -> tuple[Tensor, Tensor, Tensor]:
    return new_rows(x), new_rows(x), x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)


def _backward(
    dy: Tensor,
    dsum: Tensor | None,
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: float,
    casting: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor]:
    dx = new_rows(total) if need_dx else None
    dy, total, dsum = rows(dy), rows(total), rows(dsum) if dsum is not None else None
    kernel_weight = parameter(weight, total.dtype)
    dweight = torch.empty_like(kernel_weight) if need_dweight and kernel_weight is not None else None
    args = (
        dy,
        dsum,
        total,
        kernel_weight,
        rstd,
        rows(dx) if dx is not None else None,
        dweight,
        offset,
        _NATIVE_CASTING[casting],
    )
    scratch = workspace(total, _native.add_rms_norm_backward_workspace(*args)) if need_dweight else None
    _native.add_rms_norm_backward(*args, scratch)
    dweight = dweight.to(weight.dtype) if dweight is not None else absent(total)
    return dx if dx is not None else absent(total), dweight


def _backward_fake(
    dy: Tensor,
    dsum: Tensor | None,
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    offset: float,
    casting: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        new_rows(total) if need_dx else absent(total),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if need_dweight else absent(total),
    )


add_rms_norm = Operator(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, float offset, int casting) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _quick,
)
add_rms_norm_gradient = Operator(
    "add_rms_norm_backward(Tensor dy, Tensor? dsum, Tensor total, Tensor weight, Tensor rstd, float offset, "
    "int casting, bool need_dx, bool need_dweight) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _x, _residual, weight, _eps, ctx.offset, ctx.casting = inputs
    ctx.two_leaves = True
    _y, total, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, weight, rstd)


def _second(ctx: Any, dx: Tensor) -> Tensor | None:
    """The residual's gradient, given that of x."""
    need_x, need_residual = ctx.needs_input_grad[:2]
    if not need_residual:
        return None
    return dx.clone() if need_x and ctx.two_leaves else dx


def _gradient(ctx: Any, dy: Tensor | None, dsum: Tensor | None, _drstd: Tensor | None = None) -> tuple:
    """dx for x and residual, and dweight.

    Between two intermediate tensors the gradient is handed on twice, as torch's own addition does: autograd copies it
    before anybody writes. Two leaves get a tensor each, because torch.autograd.grad would show them one storage.
    """
    total, weight, rstd = ctx.saved_tensors
    need_x, need_residual, need_dweight = ctx.needs_input_grad[:3]
    if dy is None:
        dweight = torch.zeros_like(weight) if need_dweight else None
        dx = dsum if dsum is not None else torch.zeros_like(total)
        return dx if need_x else None, _second(ctx, dx), dweight, None, None, None
    dx, dweight = add_rms_norm_gradient(
        dy, dsum, total, weight, rstd, ctx.offset, ctx.casting, need_x or need_residual, need_dweight
    )
    return dx if need_x else None, _second(ctx, dx), dweight if need_dweight else None, None, None, None


add_rms_norm.register_gradient(_setup_context, _gradient)


def fused_add_rms_norm_forward(
    X: Tensor, R: Tensor, W: Tensor, eps: float, offset: float, casting_mode: str | int
) -> tuple:
    """(Y, S, RSTD, block size, warps, stages, casting number); the three sizes are opaque and zero here."""
    casting = casting_number(casting_mode)
    y, total, rstd = add_rms_norm(X, R, W, eps, offset, casting)
    return y, total, rstd.to(X.dtype) if casting == -1 else rstd, 0, 0, 0, casting


def fused_add_rms_norm_backward(
    dY: Tensor,
    dS_out: Tensor | None,
    S: Tensor,
    W: Tensor,
    RSTD: Tensor,
    offset: float,
    casting_mode: str | int,
    BLOCK_SIZE: int,
    num_warps: int,
    num_stages: int,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dX, dR, dW) from what fused_add_rms_norm_forward returned."""
    dx, dweight = add_rms_norm_gradient(
        dY, dS_out, S.view(dY.shape), W, RSTD.float(), offset, casting_number(casting_mode), True, True
    )
    return dx, dx.clone(), dweight


class LigerFusedAddRMSNormFunction(LigerFunction):
    """`apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False)` -> (Y, S).

    S = X + R, rounded to X's dtype; Y = RMSNorm(S) as LigerRMSNormFunction. X and R [..., H] of one dtype, W [H].
    The gradient of X and R is RMSNorm's gradient at S plus the upstream of S, in two tensors.
    """

    operator = "fused_add_rms_norm add_rms_norm"
    differentiable = (0, 1, 2)

    @staticmethod
    def forward(ctx, X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        casting = casting_number(casting_mode)
        y, total, rstd = add_rms_norm(X, R, W, eps, offset, casting)
        ctx.offset, ctx.casting = offset, casting
        ctx.two_leaves = torch.compiler.is_compiling() or (X.is_leaf and R.is_leaf)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, W, rstd)
        return y, total

    @staticmethod
    def backward(ctx, dY, dS_out):
        refuse_second_derivative("LigerFusedAddRMSNormFunction")
        return (*_gradient(ctx, dY, dS_out), None)

    @staticmethod
    def torch_forward(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        total = X + R
        return LigerRMSNormFunction.torch_forward(total, W, eps, offset, casting_mode), total
