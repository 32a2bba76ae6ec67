"""Who computes: for every provider and operator a function of the row's inputs, or the reason why there is none."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import losses
import operators
import torch
from inputs import EPSILON, IGNORE

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
    "trl",
)
PROCESSES = {
    "liger": ("liger",),
    "torch": ("eager", "eager-bf16", "torch-chunked"),
    "compile": ("compile",),
    "reference": ("reference", "reference-f32"),
    "reference-cute": ("reference-cute",),
    "quack": ("quack",),
    "trl": ("trl",),
}
# These write over their inputs, which are made afresh before every call.
OVERWRITES = {("reference", op) for op in ("cross_entropy", "geglu", "mrope", "rope", "swiglu")}


LOSSES = ("cross_entropy", "linear_cross_entropy", "gemm")


class Missing(Exception):
    """This provider does not have this operator here; the text says why."""


def function(provider: str, op: str, dtype: str, sums: str | None = None) -> Callable[..., object]:
    maker = {
        "liger": _function,
        "eager": lambda op: operators.OPERATORS[op].plain,
        "eager-bf16": _eager_bf16,
        "compile": _compile,
        "torch-chunked": _torch_chunked,
        "reference": _reference,
        "reference-f32": _reference_f32,
        "reference-cute": _reference_cute,
        "quack": _quack,
        "trl": _trl,
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


def _function(op: str, sums: torch.dtype | None = None):
    """The Function of the package `liger_kernel` that this process's path leads to, ours or the reference."""
    operator = operators.OPERATORS[op]
    if op == "mhc":
        return _around_a_layer(_import("liger_kernel.transformers.functional").liger_mhc_forward)
    if op in losses.OPERATORS:
        made = getattr(_import(f"liger_kernel.chunked_loss.{operator.module}"), operator.function)(**operator.options)
        return losses.of_module(made, op, "valid_rows" in inspect.signature(made.forward).parameters)
    found = getattr(_import(f"liger_kernel.ops.{operator.module}"), operator.function)
    apply = getattr(found, "apply", found)
    options = operator.options if sums is None else (*operator.options, sums)
    if op in LOSSES:  # the first of several results
        return lambda *inputs: apply(*inputs, *options)[0]
    return lambda *inputs: apply(*inputs, *options)


class _Answer(torch.nn.Module):
    """A layer that keeps what it reads, and answers what it was made with."""

    def __init__(self, f: torch.Tensor):
        super().__init__()
        self.f = f

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.read = x
        return self.f


def _around_a_layer(call: Callable[..., torch.Tensor]):
    def run(x: torch.Tensor, f: torch.Tensor, phi: torch.Tensor, *others: torch.Tensor):
        layer = _Answer(f)
        out = call(x, layer, phi, *others, allow_fp32=True)
        return layer.read, out

    return run


def _eager_bf16(op: str):
    plain = {
        "cross_entropy": operators.cross_entropy_bf16,
        "linear_cross_entropy": operators.linear_cross_entropy_bf16,
        "kl_div": operators.kl_div_bf16,
    }
    if op not in plain:
        raise Missing("differs from eager in the losses only")
    return plain[op]


def _compile(op: str):
    torch._dynamo.reset()
    return torch.compile(operators.OPERATORS[op].plain, dynamic=False)


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
    if op == "gemm":
        raise Missing("no such operator")
    return _function(op, sums)


def _reference_f32(op: str):
    if op != "linear_cross_entropy":
        raise Missing("a variant of the fused linear cross entropy")
    return _reference(op, torch.float32)


def _reference_cute(op: str):
    """The same package where nvidia-cutlass-dsl is installed: its functions by plain name then choose those kernels."""
    if not torch.cuda.is_available():
        raise Missing("needs a GPU")
    _import("cutlass")
    if op == "scaled_cross_entropy":  # which chooses by itself
        return _function(op)
    call = getattr(_import("liger_kernel.functional"), operators.OPERATORS[op].module, None)
    if call is None:
        raise Missing("no such operator")
    if op in LOSSES:
        return lambda *x: call(*x, ignore_index=IGNORE)[0]
    return (lambda *x: call(*x, EPSILON)) if "norm" in op else call


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


TRL_CHUNK = 32768  # columns of a tile, as TRL's trainers ask for


def _trl(op: str):
    """The head of TRL's trainers, with the tokens that count moved together on a GPU, as they do it."""
    if op != "scaled_cross_entropy":
        raise Missing("log-probabilities on a head only")
    head = _import("trl.kernels.chunked_logprob")

    def run(x, weight, target):
        mask = target != IGNORE
        compact = x.is_cuda
        given = (x[mask], target[mask]) if compact else (x, target.clamp(min=0))
        found = head.ChunkedLogProbFunction.apply(
            given[0], weight, None, given[1], 1.0, TRL_CHUNK, None, 1.0, ("entropy",)
        )
        log_prob, entropy = (
            v.new_zeros(mask.shape).masked_scatter(mask, v) if compact else v.masked_fill(~mask, 0) for v in found[:2]
        )
        return -log_prob, entropy.to(x.dtype)

    return run
