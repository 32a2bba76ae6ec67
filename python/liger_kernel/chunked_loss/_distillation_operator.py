"""Distillation as one operator, which is what torch.compile sees of it: a distance in the graph would hold the logits of all
tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from liger_kernel._native import Wish
from liger_kernel.chunked_loss._distillation import Distillation, Model
from liger_kernel.ops._distillation import FormsGradients
from liger_kernel.ops._linear_head import COMPUTE, compute_dtype
from liger_kernel.ops._operator import Asked, Made

# ---- distances by name -------------------------------------------------------------------------------------------------


class Loss(Protocol):
    """A Function with a distance."""

    @staticmethod
    def distillation_loss_fn(student_logits: Tensor, teacher_logits: Tensor, **options: Any) -> Tensor: ...

    @staticmethod
    def check_labels(labels: Tensor, vocab: int, ignore_index: int) -> None: ...


_losses: WeakValueDictionary[str, Any] = WeakValueDictionary()


def named(function: type) -> str:
    """A name for the operator, which no other class has while this one is there."""
    name = base = f"{function.__module__}.{function.__qualname__}"
    count = 1
    while name in _losses:
        count += 1
        name = f"{base}#{count}"
    _losses[name] = function
    return name


# ---- the operator ------------------------------------------------------------------------------------------------------

_AUTOGRAD = [
    getattr(torch._C.DispatchKey, name)
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView")
    if hasattr(torch._C.DispatchKey, name)
]


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """In an operator, where the dispatcher has left autograd behind: it is there again, for a formula of the operator's own."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD:
        excluded = excluded.remove(key)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        yield


class _OfThree(FormsGradients):
    """A bias has a gradient too, and beside the loss there are its parts."""

    differentiable = (0, 1, 2)


@_OfThree
def linear_distillation(
    x: Tensor, weight: Tensor, bias: Tensor | None, teacher_x: Tensor, teacher_weight: Tensor,
    teacher_bias: Tensor | None, labels: Tensor, name: str, beta: float, takes_beta: bool, ignore_index: int, hard: float,
    has_hard: bool, soft: float, all_losses: bool, temperature: float, chunk_size: int, compute: int, teacher_compute: int,
    loss: Made = Wish.SCALAR, soft_loss: Made = Wish.SCALAR, hard_loss: Made = Wish.SCALAR, dx: Asked = Wish.LIKE,
    dweight: Asked = Wish.LIKE[1], dbias: Asked = Wish.LIKE[2],
) -> Any:  # fmt: skip
    if name not in _losses:
        raise RuntimeError(f"linear_distillation: the class {name}, which this call was compiled with, is not there")
    function = _losses[name]
    function.check_labels(labels, weight.shape[0], ignore_index)
    problem = Distillation(
        student=Model.of(x, weight, bias, COMPUTE[compute]).in_memory(),
        teacher=Model.of(teacher_x, teacher_weight, teacher_bias, COMPUTE[teacher_compute]).in_memory(),
        more=teacher_weight.shape[0] - weight.shape[0],
        labels=labels,
        ignore_index=ignore_index,
        hard=hard if has_hard else None,
        soft=soft,
        all_losses=all_losses,
        temperature=temperature,
        distance=function.distillation_loss_fn,
        options={"beta": beta} if takes_beta else {},
    )
    needs = tuple(wish != Wish.NOTHING for wish in (dx, dweight, dbias))
    with recording():
        losses, gradients, factor = problem.in_chunks(chunk_size, needs)
    if factor is None:
        likes = (x, weight, bias)
        return *losses, *(None if g is None or t is None else g.to(t.dtype) for g, t in zip(gradients, likes))
    return *losses, *(None if g is None else g.float().div_(factor) for g in gradients)


linear_distillation.register_derivative()


def compiled(problem: Distillation, name: str, heads: tuple, chunk_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, of which the first has gradients. `heads`: hidden states, weight and bias of both models."""
    x, weight, bias, teacher_x, teacher_weight, teacher_bias = heads
    now = torch.is_grad_enabled()
    loss, soft, hard, *_ = linear_distillation.traced(
        x.reshape(-1, x.shape[-1]), weight, bias, teacher_x.reshape(-1, teacher_x.shape[-1]), teacher_weight, teacher_bias,
        problem.labels, name, float(problem.options.get("beta", 0.0)), "beta" in problem.options, problem.ignore_index,
        problem.hard or 0.0, problem.hard is not None, problem.soft, problem.all_losses, problem.temperature, chunk_size,
        COMPUTE.index(compute_dtype(x, weight)), COMPUTE.index(compute_dtype(teacher_x, teacher_weight)),
        *(now and t is not None and t.requires_grad for t in (x, weight, bias)),
    )  # fmt: skip
    return loss, soft, hard


__all__ = ["compiled", "named"]
