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
from liger_kernel._native import LIKE_FIRST
from liger_kernel.ops._operator import (
    PLAIN,
    LigerArgumentError,
    LigerFunction,
    Operator,
    absent,
    fresh,
    is_plain,
    new_rows,
    refuse_second_derivative,
    rows,
    take_saved,
)
from liger_kernel.utils import infer_device_arch

_NATIVE_DTYPE = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}


def _should_tile(n_cols: int) -> bool:
    """Would an implementation with two kernels take the tiled one? Kept as interface: results never depend on it."""
    return infer_device_arch().startswith("blackwell") and 1 << max(n_cols - 1, 0).bit_length() >= 16384


# ---- two tensors -------------------------------------------------------------------------------------------------------


def _same_dtype(*tensors: Tensor) -> bool:
    return all(t.dtype is tensors[0].dtype for t in tensors)


def _forward(gate: Tensor, up: Tensor, gate_multiplier: float, down_multiplier: float) -> Tensor:
    if _same_dtype(gate, up):
        y = new_rows(gate)
        _native.swiglu_forward(rows(gate), rows(up), rows(y), gate_multiplier, down_multiplier, 0)
        return y
    # silu is rounded to up's dtype, the product to gate's: in f32 with an explicit rounding this is exact
    wide_gate, wide_up = gate.float(), up.float()
    y = new_rows(wide_gate)
    _native.swiglu_forward(rows(wide_gate), rows(wide_up), rows(y), gate_multiplier, 1.0, _NATIVE_DTYPE[up.dtype])
    y = y.to(gate.dtype)
    return y if down_multiplier == 1.0 else y * down_multiplier


def _quick(gate: Tensor, up: Tensor, gate_multiplier: float, down_multiplier: float) -> Tensor:
    return _native.swiglu_forward(gate, up, LIKE_FIRST, gate_multiplier, down_multiplier, 0)


def _forward_fake(gate: Tensor, up: Tensor, gate_multiplier: float, down_multiplier: float) -> Tensor:
    return new_rows(gate)


def _backward(
    dy: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_multiplier: float,
    down_multiplier: float,
    need_gate: bool,
    need_up: bool,
    over_gate: bool = False,
    over_up: bool = False,
) -> tuple[Tensor, Tensor]:
    """over_gate, over_up: the gradient is written over the tensor itself. Eager only, not in the schema."""
    dtypes = gate.dtype, up.dtype
    if not _same_dtype(dy, gate, up):
        dy, gate, up = dy.float(), gate.float(), up.float()
        over_gate = over_up = False
    dgate = (gate.data if over_gate else new_rows(gate)) if need_gate else None
    dup = (up.data if over_up else new_rows(up)) if need_up else None
    outputs = (rows(d) if d is not None else None for d in (dgate, dup))
    _native.swiglu_backward(rows(dy), rows(gate), rows(up), *outputs, gate_multiplier, down_multiplier)
    return (
        dgate.to(dtypes[0]) if dgate is not None else absent(gate, dtypes[0]),
        dup.to(dtypes[1]) if dup is not None else absent(up, dtypes[1]),
    )


def _backward_fake(
    dy: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_multiplier: float,
    down_multiplier: float,
    need_gate: bool,
    need_up: bool,
) -> tuple[Tensor, Tensor]:
    return new_rows(gate) if need_gate else absent(gate), new_rows(up) if need_up else absent(up)


swiglu = Operator(
    "swiglu(Tensor gate, Tensor up, float gate_multiplier, float down_multiplier) -> Tensor",
    _forward,
    _forward_fake,
    _quick,
)
swiglu_gradient = Operator(
    "swiglu_backward(Tensor dy, Tensor gate, Tensor up, float gate_multiplier, float down_multiplier, bool need_gate, "
    "bool need_up) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    gate, up, ctx.gate_multiplier, ctx.down_multiplier = inputs
    ctx.save_for_backward(gate, up)


def _gradient(ctx: Any, dy: Tensor, reuse: bool = False) -> tuple:
    (gate, up), over = take_saved(ctx) if reuse and is_plain(dy) else (ctx.saved_tensors, ())
    need_gate, need_up = ctx.needs_input_grad[:2]
    over = over if any(over) else ()
    dgate, dup = swiglu_gradient(dy, gate, up, ctx.gate_multiplier, ctx.down_multiplier, need_gate, need_up, *over)
    return dgate if need_gate else None, dup if need_up else None, None, None


swiglu.register_gradient(_setup_context, _gradient)


def swiglu_forward(a: Tensor, b: Tensor, gate_multiplier: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(a as [rows, cols], b likewise, silu(gate_multiplier · a) · b in a's shape)."""
    c = swiglu(a, b, gate_multiplier, 1.0)
    return a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), c


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


def _localise(a: Any, b: Any) -> tuple[Tensor, Tensor, tuple]:
    """Local shards of a and b on one mesh, and what it takes to make DTensors of results again."""
    like = a if _is_dtensor(a) else b
    mesh, placements = like.device_mesh, like.placements
    a = a if _is_dtensor(a) else _dtensors().distribute_tensor(a, mesh, placements)
    b = b if _is_dtensor(b) else _dtensors().distribute_tensor(b, mesh, placements)
    return a.to_local(), b.to_local(), (mesh, placements)


class LigerSiLUMulFunction(LigerFunction):
    """`apply(a, b, gate_multiplier=1.0, down_multiplier=1.0)` -> silu(gate_multiplier·a)·b·down_multiplier.

    a and b [..., I] of one shape, float32, float16 or bfloat16; f32 arithmetic; silu is rounded to b's dtype before the
    product, the product to a's dtype, and a down_multiplier other than 1 is a further multiplication in that dtype.
    Of two DTensors, or a DTensor and a tensor, the local shards are computed.
    """

    operator = "swiglu"
    differentiable = (0, 1)

    @staticmethod
    def forward(ctx, a, b, gate_multiplier=1.0, down_multiplier=1.0):
        ctx.sharding = None
        if _is_dtensor(a) or _is_dtensor(b):
            a, b, ctx.sharding = _localise(a, b)
        y = swiglu(a, b, gate_multiplier, down_multiplier)
        ctx.gate_multiplier, ctx.down_multiplier = gate_multiplier, down_multiplier
        ctx.save_for_backward(a, b)
        return y if ctx.sharding is None else _dtensors().DTensor.from_local(y, *ctx.sharding)

    @staticmethod
    def backward(ctx, dc):
        refuse_second_derivative("LigerSiLUMulFunction")
        if ctx.sharding is None:
            return _gradient(ctx, dc, reuse=True)
        DTensor = _dtensors().DTensor
        dc = dc.redistribute(*ctx.sharding).to_local() if _is_dtensor(dc) else dc
        da, db = (g if g is None else DTensor.from_local(g, *ctx.sharding) for g in _gradient(ctx, dc)[:2])
        return da, db, None, None

    @staticmethod
    def torch_forward(a, b, gate_multiplier=1.0, down_multiplier=1.0):
        g = gate_multiplier * a.float()
        y = (torch.nn.functional.silu(g).to(b.dtype) * b).to(a.dtype)
        return y if down_multiplier == 1.0 else y * down_multiplier


# ---- gate and up in one tensor -----------------------------------------------------------------------------------------


def _packed_forward(y: Tensor) -> Tensor:
    half = y.shape[-1] // 2
    c, y = fresh(y.new_empty((*y.shape[:-1], half))), rows(y)
    _native.swiglu_forward(y[..., :half], y[..., half:], rows(c), 1.0, 1.0, 0)
    return c


def _packed_quick(y: Tensor) -> Tensor:
    gate, up = y.chunk(2, -1)
    return _native.swiglu_forward(gate, up, LIKE_FIRST, 1.0, 1.0, 0)


def _packed_forward_fake(y: Tensor) -> Tensor:
    return y.new_empty((*y.shape[:-1], y.shape[-1] // 2))


def _packed_backward(y: Tensor, dc: Tensor, over: bool = False) -> Tensor:
    """over: the gradient is written over y. Eager only, not in the schema."""
    half, dy = y.shape[-1] // 2, y.data if over else new_rows(y)
    y, packed = rows(y), rows(dy)
    _native.swiglu_backward(rows(dc), y[..., :half], y[..., half:], packed[..., :half], packed[..., half:], 1.0, 1.0)
    return dy


def _packed_backward_fake(y: Tensor, dc: Tensor) -> Tensor:
    return new_rows(y)


swiglu_packed = Operator("swiglu_packed(Tensor y) -> Tensor", _packed_forward, _packed_forward_fake, _packed_quick)
swiglu_packed_gradient = Operator(
    "swiglu_packed_backward(Tensor y, Tensor dc) -> Tensor", _packed_backward, _packed_backward_fake
)


def _packed_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _packed_gradient(ctx: Any, dc: Tensor) -> Tensor:
    return swiglu_packed_gradient(ctx.saved_tensors[0], dc)


swiglu_packed.register_gradient(_packed_setup_context, _packed_gradient)


def _check_even(y: Tensor) -> None:
    if y.shape[-1] % 2:
        raise LigerArgumentError(f"swiglu: the last dimension of y is {y.shape[-1]}, but gate and up need an even one")


def swiglu_fused_gate_up_forward(y: Tensor) -> tuple[Tensor, Tensor]:
    """(y, silu(gate)·up) for y = [gate | up] in the last dimension."""
    _check_even(y)
    return y, swiglu_packed(y)


def swiglu_fused_gate_up_backward(y: Tensor, dc: Tensor, in_place: bool = False) -> Tensor:
    """[dgate | dup]."""
    return swiglu_packed_gradient(y, dc)


class LigerFusedGateUpSiLUMulFunction(LigerFunction):
    """`apply(y, in_place=False)` -> silu(gate)·up for y [..., 2F] = [gate | up].

    The values and gradients are those of LigerSiLUMulFunction on the halves. in_place is accepted and changes nothing.
    """

    operator = "swiglu"
    differentiable = (0,)

    @staticmethod
    def forward(ctx, y, in_place=False):
        _check_even(y)
        ctx.save_for_backward(y)
        return swiglu_packed(y)

    @staticmethod
    def backward(ctx, dc):
        refuse_second_derivative("LigerFusedGateUpSiLUMulFunction")
        (y,), over = take_saved(ctx) if is_plain(dc) else (ctx.saved_tensors, ())
        return swiglu_packed_gradient(y, dc, *(over if any(over) else ())), None

    @staticmethod
    def torch_forward(y, in_place=False):
        return LigerSiLUMulFunction.torch_forward(*y.chunk(2, -1))
