"""SwiGLU: silu(gate) · up, of two tensors or of one that holds both.

N. Shazeer: GLU Variants Improve Transformer (2020).
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import NATIVE_DTYPE, PLAIN, new_rows, rows
from liger_kernel.ops._operator import AnyRows, Asked, LigerArgumentError, Made, Operator, Rows, Wish
from liger_kernel.utils import infer_device_arch


def _should_tile(n_cols: int) -> bool:
    """Would an implementation with two kernels take the tiled one? Kept as interface: results never depend on it."""
    return infer_device_arch().startswith("blackwell") and 1 << max(n_cols - 1, 0).bit_length() >= 16384


# ---- two tensors -------------------------------------------------------------------------------------------------------


@Operator
def swiglu(gate: AnyRows, up: AnyRows, gate_multiplier: float, down_multiplier: float, y: Made = Wish.LIKE) -> Any:
    return _native.swiglu_forward(gate, up, y, gate_multiplier, down_multiplier, 0)


@swiglu.gradient
def swiglu_gradient(dy: AnyRows, gate: AnyRows, up: AnyRows, gate_multiplier: float, down_multiplier: float,
                    dgate: Asked = Wish.LIKE[1], dup: Asked = Wish.LIKE[2]) -> Any:  # fmt: skip
    return _native.swiglu_backward(dy, gate, up, dgate, dup, gate_multiplier, down_multiplier)


@swiglu.mixed
def _two_dtypes(gate: Tensor, up: Tensor, gate_multiplier: float, down_multiplier: float) -> Tensor:
    """silu is rounded to up's dtype, the product to gate's: in f32 with an explicit rounding this is exact."""
    wide_gate, wide_up = rows(gate.float()), rows(up.float())
    y = _native.swiglu_forward(wide_gate, wide_up, Wish.LIKE, gate_multiplier, 1.0, NATIVE_DTYPE[up.dtype])
    y = y.view(gate.shape).to(gate.dtype)
    return y if down_multiplier == 1.0 else y * down_multiplier


@of_tensors
def swiglu_forward(a: Tensor, b: Tensor, gate_multiplier: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(a as [rows, cols], b likewise, silu(gate_multiplier · a) · b in a's shape)."""
    c = swiglu(a, b, gate_multiplier, 1.0)
    return a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), c


@of_tensors
def swiglu_backward(a: Tensor, b: Tensor, dc: Tensor, gate_multiplier: float = 1.0) -> tuple[Tensor, Tensor]:
    """(da, db) in dc's shape."""
    shape = dc.shape
    da, db = swiglu_gradient(dc, a.reshape(shape), b.reshape(shape), gate_multiplier, 1.0, True, True)
    return da, db


def _is_dtensor(tensor: Any) -> bool:
    return type(tensor) not in PLAIN and hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


@functools.cache
def _dtensors() -> Any:
    """The module of DTensor."""
    module = importlib.import_module("torch.distributed.tensor")
    return module if hasattr(module, "DTensor") else importlib.import_module("torch.distributed._tensor")  # torch 2.4


class _Distribute(torch.autograd.Function):
    """The local shard of a plain tensor, whose gradient is a DTensor then."""

    @staticmethod
    def forward(ctx, tensor, mesh, placements):
        ctx.sharding = (mesh, placements)
        return _dtensors().distribute_tensor(tensor.detach(), mesh, placements).to_local()

    @staticmethod
    def backward(ctx, gradient):
        return _dtensors().DTensor.from_local(gradient, *ctx.sharding), None, None


def _localise(a: Any, b: Any) -> tuple[Tensor, Tensor, tuple]:
    """Local shards of a and b on one mesh, and what it takes to make a DTensor of the result again."""
    like = a if _is_dtensor(a) else b
    sharding = (like.device_mesh, like.placements)
    a, b = (t.to_local() if _is_dtensor(t) else _Distribute.apply(t, *sharding) for t in (a, b))
    return a, b, sharding


class LigerSiLUMulFunction(LigerFunction):
    """`apply(a, b, gate_multiplier=1.0, down_multiplier=1.0)` -> silu(gate_multiplier·a)·b·down_multiplier.

    a and b [..., I] of one shape, float32, float16 or bfloat16; f32 arithmetic; silu is rounded to b's dtype before the
    product, the product to a's dtype, and a down_multiplier other than 1 is a further multiplication in that dtype.
    Of two DTensors, or a DTensor and a tensor, the local shards are computed.
    """

    operator = swiglu
    gradients = ("a", "b")
    reuses = (True, True)

    @classmethod
    def apply(cls, *args):
        if type(args[0]) in PLAIN and type(args[1]) in PLAIN or not (_is_dtensor(args[0]) or _is_dtensor(args[1])):
            return super().apply(*args)
        a, b, sharding = _localise(*args[:2])
        return _dtensors().DTensor.from_local(super().apply(a, b, *args[2:]), *sharding)

    @staticmethod
    def arguments(a, b, gate_multiplier=1.0, down_multiplier=1.0):
        return a, b, gate_multiplier, down_multiplier

    @staticmethod
    def torch_forward(a, b, gate_multiplier=1.0, down_multiplier=1.0):
        g = gate_multiplier * a.float()
        y = (torch.nn.functional.silu(g).to(b.dtype) * b).to(a.dtype)
        return y if down_multiplier == 1.0 else y * down_multiplier


# ---- gate and up in one tensor -----------------------------------------------------------------------------------------


class _Halves(Operator):
    def likes(self, *given):
        return (given[0][..., : given[0].shape[-1] // 2],)


@_Halves
def swiglu_packed(y: AnyRows, c: Made = Wish.LIKE) -> Any:
    gate, up = y.chunk(2, -1)
    return _native.swiglu_forward(gate, up, c, 1.0, 1.0, 0)


@swiglu_packed.gradient
def swiglu_packed_gradient(y: Rows, dc: Rows, dy: Made = Wish.LIKE) -> Any:
    dy = new_rows(y) if isinstance(dy, Wish) else dy
    _native.swiglu_backward(dc, *y.chunk(2, -1), *dy.chunk(2, -1), 1.0, 1.0)
    return dy


def _check_even(y: Tensor) -> None:
    if y.dim() == 0:
        raise LigerArgumentError("swiglu: y has no dimensions, but gate and up lie in its last one")
    if y.shape[-1] % 2:
        raise LigerArgumentError(f"swiglu: the last dimension of y is {y.shape[-1]}, but gate and up need an even one")


@of_tensors
def swiglu_fused_gate_up_forward(y: Tensor) -> tuple[Tensor, Tensor]:
    """(y, silu(gate)·up) for y = [gate | up] in the last dimension."""
    _check_even(y)
    return y, swiglu_packed(y)


@of_tensors
def swiglu_fused_gate_up_backward(y: Tensor, dc: Tensor, in_place: bool = False) -> Tensor:
    """[dgate | dup]."""
    return swiglu_packed_gradient(y, dc)


class LigerFusedGateUpSiLUMulFunction(LigerFunction):
    """`apply(y, in_place=False)` -> silu(gate)·up for y [..., 2F] = [gate | up].

    The values and gradients are those of LigerSiLUMulFunction on the halves. in_place is accepted and changes nothing.
    """

    operator = swiglu_packed
    names = "swiglu"
    gradients = ("y",)
    reuses = (True,)

    @staticmethod
    def arguments(y, in_place=False):
        _check_even(y)
        return (y,)

    @staticmethod
    def torch_forward(y, in_place=False):
        return LigerSiLUMulFunction.torch_forward(*y.chunk(2, -1))
