"""RMSNorm: y = x · rstd · (weight + offset), rstd = 1/√(mean(x²) + eps) over the last dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import LIKE_FIRST, PER_ROW
from liger_kernel.ops._operator import (
    PLAIN,
    LigerArgumentError,
    LigerFunction,
    Operator,
    absent,
    new_rows,
    parameter,
    refuse_second_derivative,
    rows,
    workspace,
)

_CASTING_MODES = {"llama": 0, "gemma": 1, "none": -1}
_NATIVE_CASTING = {0: 0, 1: 1, -1: 2}  # the package's numbers -> liger_casting


def casting_number(mode: str | int) -> int:
    """0 llama, 1 gemma, -1 none, from the name or the number."""
    if mode == "llama":
        return 0
    number = _CASTING_MODES.get(mode) if isinstance(mode, str) else mode
    if number not in _NATIVE_CASTING:
        raise LigerArgumentError(f"Invalid casting mode: {mode!r}; it must be one of {list(_CASTING_MODES)}")
    return number


# ---- the operators: torch.ops.liger.rms_norm and its gradient ---------------------------------------------------------


def _forward(x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: int) -> tuple[Tensor, Tensor]:
    y, x = new_rows(x), rows(x)
    rstd = x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)
    weight = parameter(weight, x.dtype)
    _native.rms_norm_forward(x, weight, rows(y), rstd, eps, offset, _NATIVE_CASTING[casting])
    return y, rstd


def _quick(x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: int) -> tuple[Tensor, Tensor]:
    return _native.rms_norm_forward(x, weight, LIKE_FIRST, PER_ROW, eps, offset, _NATIVE_CASTING[casting])


def _forward_fake(x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: int) -> tuple[Tensor, Tensor]:
    return new_rows(x), x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    offset: float,
    casting: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor]:
    dx = new_rows(x) if need_dx else None
    dy, x = rows(dy), rows(x)
    kernel_weight = parameter(weight, x.dtype)
    dweight = torch.empty_like(kernel_weight) if need_dweight and kernel_weight is not None else None
    args = (dy, x, kernel_weight, rstd, rows(dx) if dx is not None else None, dweight, offset, _NATIVE_CASTING[casting])
    scratch = workspace(x, _native.rms_norm_backward_workspace(*args)) if dweight is not None else None
    _native.rms_norm_backward(*args, scratch)
    if dweight is not None and weight is not None:
        dweight = dweight.to(weight.dtype)
    return dx if dx is not None else absent(x), dweight if dweight is not None else absent(x)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    offset: float,
    casting: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor]:
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight is not None else None
    return new_rows(x) if need_dx else absent(x), dweight if need_dweight and dweight is not None else absent(x)


rms_norm = Operator(
    "rms_norm(Tensor x, Tensor? weight, float eps, float offset, int casting) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _quick,
)
rms_norm_gradient = Operator(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, float offset, int casting, bool need_dx, "
    "bool need_dweight) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _eps, ctx.offset, ctx.casting = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _gradient(ctx: Any, dy: Tensor | None, _drstd: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 5
    x, weight, rstd = ctx.saved_tensors
    need_dx, need_dweight = ctx.needs_input_grad[0], weight is not None and ctx.needs_input_grad[1]
    dx, dweight = rms_norm_gradient(dy, x, weight, rstd, ctx.offset, ctx.casting, need_dx, need_dweight)
    return dx if need_dx else None, dweight if need_dweight else None, None, None, None


rms_norm.register_gradient(_setup_context, _gradient)

# ---- the Function and its helpers -------------------------------------------------------------------------------------


def _gather(tensor: Any) -> Tensor:
    """A DTensor is gathered: a row must be whole for its mean."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rms_norm_forward(
    X: Tensor, W: Tensor | None, eps: float, offset: float, casting_mode: str | int, row_mode: bool | None
) -> tuple:
    """(Y, X as [rows, H], RSTD, block size, warps, casting number); the two sizes are opaque and zero here."""
    casting = casting_number(casting_mode)
    y, rstd = rms_norm(X, W, eps, offset, casting)
    if casting == -1:
        rstd = rstd.to(X.dtype)  # exact: the kernel has rounded it
    return y, X.reshape(-1, X.shape[-1]), rstd, 0, 0, casting


def rms_norm_backward(
    dY: Tensor,
    X: Tensor,
    W: Tensor | None,
    RSTD: Tensor,
    offset: float,
    casting_mode: str | int,
    BLOCK_SIZE: int,
    num_warps: int,
    in_place: bool,
    row_mode: bool | None,
) -> tuple[Tensor, Tensor | None]:
    """(dX in dY's shape, dW or None) from what rms_norm_forward returned."""
    flat = dY.reshape(-1, dY.shape[-1])
    dx, dweight = rms_norm_gradient(flat, X, W, RSTD.float(), offset, casting_number(casting_mode), True, W is not None)
    return dx.view(dY.shape), dweight if W is not None else None


class LigerRMSNormFunction(LigerFunction):
    """`apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None)` -> Y of X's shape and dtype.

    X [..., H] float32, float16 or bfloat16; W [H] of any of them, or None. Statistics, sums and arithmetic are f32.
    casting_mode: "llama" rounds x·rstd to X's dtype before the weight; "gemma" rounds once, at the end; "none" rounds
    eps, offset and rstd to X's dtype. in_place and row_mode are accepted and change nothing. A DTensor is gathered.
    """

    operator = "rms_norm"
    differentiable = (0, 1)

    @staticmethod
    def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        casting = casting_number(casting_mode)
        X = X if type(X) in PLAIN else _gather(X)
        y, rstd = rms_norm(X, W, eps, offset, casting)
        ctx.options = offset, casting
        ctx.save_for_backward(X, W, rstd)
        return y

    @staticmethod
    def backward(ctx, dY):
        refuse_second_derivative("LigerRMSNormFunction")
        X, W, rstd = ctx.saved_tensors
        need_dx, need_dweight = ctx.needs_input_grad[0], W is not None and ctx.needs_input_grad[1]
        dY = dY if type(dY) in PLAIN else _gather(dY)
        dx, dweight = rms_norm_gradient(dY, X, W, rstd, *ctx.options, need_dx, need_dweight)
        return dx if need_dx else None, dweight if need_dweight else None, None, None, None, None, None

    @staticmethod
    def torch_forward(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        casting, x = casting_number(casting_mode), X.float()
        if casting == -1:
            eps, offset = (torch.tensor(v, dtype=X.dtype).item() for v in (eps, offset))
        rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        normal = x * (rstd.to(X.dtype).float() if casting == -1 else rstd)
        if W is None:
            return normal.to(X.dtype)
        if casting == 0:
            normal = normal.to(X.dtype).float()
        scale = (W + offset).float() if casting == -1 else W.float() + offset
        return (normal * scale).to(X.dtype)
