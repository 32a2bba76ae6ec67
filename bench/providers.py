"""Who computes: for every provider and operator a function of the row's inputs, or the reason why there is none."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import rows
import torch
from rows import EPSILON, IGNORE

# In the order in which they are shown. Variants of one package share its process.
NAMES = (
    "liger",
    "eager",
    "eager-bf16",
    "compile",
    "torch-chunked",
    "reference",
    "reference-f32",
    "reference-cute",
    "quack",
)
PROCESSES = {
    "liger": ("liger",),
    "torch": ("eager", "eager-bf16", "torch-chunked"),
    "compile": ("compile",),
    "reference": ("reference", "reference-f32"),
    "reference-cute": ("reference-cute",),
    "quack": ("quack",),
}
# These write over their inputs, which are made afresh before every call.
OVERWRITES = {("reference", op) for op in ("cross_entropy", "geglu", "rope", "swiglu")}


class Missing(Exception):
    """This provider does not have this operator here; the text says why."""


def function(provider: str, op: str, dtype: str, sums: str | None = None) -> Callable[..., object]:
    maker = {
        "liger": _liger,
        "eager": lambda op: rows.PLAIN[op],
        "eager-bf16": _eager_bf16,
        "compile": _compile,
        "torch-chunked": _torch_chunked,
        "reference": _reference,
        "reference-f32": _reference_f32,
        "reference-cute": _reference_cute,
        "quack": _quack,
    }[provider]
    if dtype == "float32" and provider in ("eager-bf16", "reference-f32"):
        raise Missing("a variant for bf16")
    if sums is None:
        return maker(op)
    if provider not in ("liger", "reference"):
        raise Missing("the dtype of its sums cannot be chosen")
    return maker(op, getattr(torch, sums))


def _import(name: str):
    try:
        return importlib.import_module(name)
    except Exception as error:  # a peer may fail in its own ways
        raise Missing(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _liger(op: str, sums: torch.dtype | None = None):
    ops = _import("liger_kernel.ops")
    if op == "rms_norm":
        apply = ops.LigerRMSNormFunction.apply
        return lambda x, w: apply(x, w, EPSILON, 0.0, "llama", True)
    if op == "add_rms_norm":
        apply = ops.LigerFusedAddRMSNormFunction.apply
        return lambda x, r, w: apply(x, r, w, EPSILON, 0.0, "llama", True)
    if op == "rope":
        apply = ops.LigerRopeFunction.apply
        return lambda q, k, cos, sin: apply(q, k, cos, sin)
    if op == "layer_norm":
        apply = ops.LigerLayerNormFunction.apply
        return lambda x, w, b: apply(x, w, b, EPSILON)
    if op == "swiglu":
        return ops.LigerSiLUMulFunction.apply
    if op == "geglu":
        return ops.LigerGELUMulFunction.apply
    if op == "cross_entropy":
        apply = ops.LigerCrossEntropyFunction.apply
        return lambda x, target: apply(x, target, None)[0]
    # a product is not public: the loss's forward holds one, and a pass over its result besides
    apply = ops.LigerFusedLinearCrossEntropyFunction.apply
    options = () if sums is None else (None, None, IGNORE, 0.0, 0.0, "mean", None, False, sums)
    return lambda x, w, target: apply(x, w, target, *options)[0]


def _eager_bf16(op: str):
    plain = {"cross_entropy": rows.cross_entropy_bf16, "linear_cross_entropy": rows.linear_cross_entropy_bf16}
    if op not in plain:
        raise Missing("differs from eager in the losses only")
    return plain[op]


def _compile(op: str):
    torch._dynamo.reset()
    return torch.compile(rows.PLAIN[op], dynamic=False)


def _torch_chunked(op: str):
    if op != "linear_cross_entropy":
        raise Missing("a fused linear cross entropy only")
    if not hasattr(torch.nn.functional, "linear_cross_entropy") or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Missing(f"torch {torch.__version__} has no chunked linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    call = torch.nn.functional.linear_cross_entropy
    return lambda x, w, target: call(x, w, target, ignore_index=IGNORE, options=options)


def _reference(op: str, sums: torch.dtype | None = None):
    """The PyPI package of the same import name, in a process whose path leads to it."""
    if not torch.cuda.is_available():
        raise Missing("its kernels are Triton's, which needs a GPU")
    ops = _import("liger_kernel.ops")
    name = {
        "rms_norm": "LigerRMSNormFunction",
        "add_rms_norm": "LigerFusedAddRMSNormFunction",
        "rope": "LigerRopeFunction",
        "layer_norm": "LigerLayerNormFunction",
        "swiglu": "LigerSiLUMulFunction",
        "geglu": "LigerGELUMulFunction",
        "cross_entropy": "LigerCrossEntropyFunction",
        "linear_cross_entropy": "LigerFusedLinearCrossEntropyFunction",
    }.get(op)
    if name is None:
        raise Missing("no such operator")
    module = {"add_rms_norm": "fused_add_rms_norm", "linear_cross_entropy": "fused_linear_cross_entropy"}.get(op, op)
    owner = ops if hasattr(ops, name) else _import(f"liger_kernel.ops.{module}")
    apply = getattr(owner, name).apply
    if op in ("rms_norm", "add_rms_norm"):
        return lambda *x: apply(*x, EPSILON, 0.0, "llama", True)
    if op == "layer_norm":
        return lambda *x: apply(*x, EPSILON)
    if op == "cross_entropy":
        return lambda x, target: apply(x, target, None, IGNORE, 0.0, 0.0, "mean", None, False)[0]
    if op == "linear_cross_entropy":
        middle = (None, None, IGNORE, 0.0, 0.0, "mean", None, False)
        return lambda x, w, target: apply(x, w, target, *middle, sums)[0]
    return apply


def _reference_f32(op: str):
    if op != "linear_cross_entropy":
        raise Missing("a variant of the fused linear cross entropy")
    return _reference(op, torch.float32)


def _reference_cute(op: str):
    """The same package where nvidia-cutlass-dsl is installed: its functions by plain name then choose those kernels."""
    if not torch.cuda.is_available():
        raise Missing("needs a GPU")
    _import("cutlass")
    functional = _import("liger_kernel.functional")
    name = {"add_rms_norm": "fused_add_rms_norm", "linear_cross_entropy": "fused_linear_cross_entropy"}.get(op, op)
    call = getattr(functional, name, None)
    if call is None:
        raise Missing("no such operator")
    if op in ("rms_norm", "add_rms_norm", "layer_norm"):
        return lambda *x: call(*x, EPSILON)
    if op in ("cross_entropy", "linear_cross_entropy"):
        return lambda *x: call(*x, ignore_index=IGNORE)[0]
    return call


def _quack(op: str):
    if not torch.cuda.is_available():
        raise Missing("needs a GPU")
    if op == "rms_norm":
        call = _import("quack.rmsnorm").rmsnorm
        return lambda x, w: call(x, w, eps=EPSILON)
    if op == "add_rms_norm":
        call = _import("quack.rmsnorm").rmsnorm
        return lambda x, r, w: call(x, w, residual=r, eps=EPSILON, prenorm=True)
    if op == "cross_entropy":
        call = _import("quack.cross_entropy").cross_entropy
        return lambda x, target: call(x, target, ignore_index=IGNORE, reduction="mean")
    if op == "linear_cross_entropy":
        call = _import("quack.linear_cross_entropy").chunked_linear_cross_entropy
        extra = {"use_scaled_exp": False} if "use_scaled_exp" in inspect.signature(call).parameters else {}
        return lambda x, w, target: call(x, w, target, chunk_size=4096, ignore_index=IGNORE, tuned=False, **extra)
    raise Missing("no such operator")
