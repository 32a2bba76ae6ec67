"""Modulated RMSNorm: y = (1 + scale) · RMSNorm(x) + shift, with scale and shift of a group of rows.

W. Peebles, S. Xie: Scalable Diffusion Models with Transformers (2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._casting import NATIVE_CASTING, casting_number, rms_norm_in_f32, rms_norm_results
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Modulation, Operator, Rows, Weight, Wish, as_of

_HALVES = (torch.float16, torch.bfloat16)


def _are_mixed(x: Tensor, *parameters: Tensor | None) -> bool:
    """Is one of them of a 16-bit dtype that is not x's? The library would refuse it."""
    for t in parameters:  # a generator would take half a microsecond
        if t is not None and t.dtype is not x.dtype and t.dtype in _HALVES:
            return True
    return False


def _widened(*tensors: Any) -> list:
    """In f32, which costs less than to be refused first."""
    return [t.float() if t is not None and t.dtype in _HALVES else t for t in tensors]


@Operator
def modulated_rms_norm(x: Rows, weight: Weight | None, scale: Modulation, shift: Modulation | None, eps: float,
                       offset: float, casting: int, y: Made = Wish.LIKE, rstd: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    casting = NATIVE_CASTING[casting]
    if scale.dtype is not x.dtype and _are_mixed(x, weight, scale, shift):
        weight, scale, shift = _widened(weight, scale, shift)
    return _native.modulated_rms_norm_forward(x, weight, scale, shift, y, rstd, eps, offset, casting)


@modulated_rms_norm.gradient
def modulated_rms_norm_gradient(dy: Rows, x: Rows, weight: Weight | None, scale: Modulation, rstd: Tensor,
                                shift: Modulation | None, offset: float, casting: int, dx: Asked = Wish.LIKE[1],
                                dweight: Asked = Wish.LIKE[2], dscale: Asked = Wish.LIKE[3],
                                dshift: Asked = Wish.LIKE[5], scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    """Of shift its likeness is needed: the library makes its gradient like that of scale, where they are alike."""
    given, casting = (x, weight, scale, shift), NATIVE_CASTING[casting]
    of_two_dtypes = shift is not None and shift.dtype is not scale.dtype
    mixed = (of_two_dtypes or scale.dtype is not x.dtype) and isinstance(dx, Wish)
    mixed = mixed and (of_two_dtypes or _are_mixed(x, weight, scale))
    if mixed:
        weight, scale, shift = _widened(weight, scale, shift)
    dshift = as_of(scale, shift, dshift, Wish.LIKE[3])
    made = _native.modulated_rms_norm_backward(
        dy, x, weight, scale, rstd, dx, dweight, dscale, dshift, offset, casting, scratch
    )
    if not mixed:
        return made
    return tuple(m if m is None or t is None else m.to(t.dtype) for m, t in zip(made, given))


def _check(X: Tensor, scale: Tensor, shift: Tensor | None) -> None:
    cols, rows = X.shape[-1:], X.shape[:-1].numel()
    for name, given in (("scale", scale), ("shift", shift)):
        if given is not None and (given.dim() == 0 or given.shape[-1:] != cols):
            raise LigerArgumentError(
                f"modulated_rms_norm: {name} has shape {tuple(given.shape)}, but its last dimension must be that of X, "
                f"whose shape is {tuple(X.shape)}"
            )
    groups = scale.shape[:-1].numel()
    if rows % groups if groups else rows:
        raise LigerArgumentError(
            f"modulated_rms_norm: scale has {groups} rows, but X has {rows}, which are not as many equal groups"
        )
    if shift is not None and shift.shape[:-1].numel() != groups:
        raise LigerArgumentError(
            f"modulated_rms_norm: shift has {shift.shape[:-1].numel()} rows, but scale has {groups}"
        )


@of_tensors
def modulated_rms_norm_forward(
    X: Tensor, W: Tensor | None, scale: Tensor, shift: Tensor | None, eps: float, offset: float, casting_mode: str | int
) -> tuple:
    """(Y, X as [rows, H], RSTD, block size, warps, casting number); the two sizes are opaque and zero here."""
    casting = casting_number(casting_mode)
    y, rstd = modulated_rms_norm(X, W, scale, shift, eps, offset, casting)
    return rms_norm_results(y, rstd, X, casting)


@of_tensors
def modulated_rms_norm_backward(dY: Tensor, X: Tensor, W: Tensor | None, scale: Tensor, shift: Tensor | None,
                                RSTD: Tensor, offset: float, casting_mode: str | int, BLOCK_SIZE: int, num_warps: int,
                                rows_per_modulation: int, in_place: bool) -> tuple:  # fmt: skip
    """(dX in dY's shape, dW or None, dscale, dshift or None). The number of rows of a group follows from the shapes."""
    needs = (True, W is not None, True, shift is not None)
    given = (X.reshape(dY.shape), W, scale, RSTD.float(), shift, offset, casting_number(casting_mode))
    dx, dweight, dscale, dshift = modulated_rms_norm_gradient(dY, *given, *needs)
    return dx, dweight if needs[1] else None, dscale, dshift if needs[3] else None


class LigerModulatedRMSNormFunction(LigerFunction):
    """`apply(X, W, scale, shift, eps, offset=0.0, casting_mode="llama", in_place=True)` -> Y of X's shape and dtype.

    Y = (1 + scale)·RMSNorm(X) + shift. X [..., H]; W [H] or None; scale [..., H] with a number of rows that divides X's:
    (H,), (B, H), (B, 1, H), X's own shape. Of X's rows as many belong to each row of scale, one after the other. shift likewise,
    with as many rows, or None. float32, float16 or bfloat16, each its own. Arithmetic and sums are f32. casting_mode: "llama"
    rounds x·rstd to X's dtype, "gemma" RMSNorm(X), "none" eps, offset and rstd. in_place is accepted and changes nothing.
    """

    operator = modulated_rms_norm
    gradients = ("X", "W", "scale", "shift")

    @staticmethod
    def arguments(X, W, scale, shift, eps, offset=0.0, casting_mode="llama", in_place=True):
        return X, W, scale, shift, eps, offset, casting_number(casting_mode)

    @classmethod
    def check(cls, X, W, scale, shift, *options):
        if X.dim() == 0:
            raise LigerArgumentError("modulated_rms_norm: X has no dimensions, but its last one is normalised")
        _check(X, scale, shift)
        super().check(X, W, scale, shift, *options)

    @staticmethod
    def torch_forward(X, W, scale, shift, eps, offset=0.0, casting_mode="llama", in_place=True):
        casting, cols = casting_number(casting_mode), X.shape[-1:]
        ones = torch.ones(cols, dtype=torch.float32, device=X.device) if W is None else W
        normal = rms_norm_in_f32(X, ones, eps, offset if W is not None else 0.0, casting)
        if casting == 1:
            normal = normal.to(X.dtype).float()
        groups = (scale.shape[:-1].numel(), -1, *cols) if scale.numel() else (0, 0, *cols)
        grouped = normal.reshape(groups) * (1.0 + scale.float().reshape(-1, 1, *cols))
        grouped = grouped if shift is None else grouped + shift.float().reshape(-1, 1, *cols)
        return grouped.reshape(X.shape).to(X.dtype)
