"""Cross entropy of logits whose vocabulary is split over the processes of a tensor-parallel group."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.ops._formula import require_tensors
from liger_kernel.ops._function import _DISABLED, OwnApply, WithoutGradient, refuse_second_derivative
from liger_kernel.ops._memory import fresh, matrix, require_float
from liger_kernel.ops._operator import EachShaped, LigerArgumentError, Made, is_transformed
from liger_kernel.ops.linear_logprob import Count, profiled
from liger_kernel.ops.vocab_parallel_logprob import (
    IGNORED,
    Slice,
    are_seen_by_shape,
    gathered,
    group_of,
    is_split,
    name_of,
    of_slice,
    require_plain,
    slice_of,
    waited,
    whole_of,
)

NAME = "vocab_parallel_cross_entropy"
FORMULAS, MODES = ("pytorch", "megatron"), ("global", "partition")


def validate_formula_and_mode(label_smoothing_formula: str, label_smoothing_mode: str) -> None:
    for name, value, known in (
        ("label_smoothing_formula", label_smoothing_formula, FORMULAS),
        ("label_smoothing_mode", label_smoothing_mode, MODES),
    ):
        if value not in known:
            raise LigerArgumentError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, known))}")


class LigerVocabParallelCEFunction(torch.autograd.Function, metaclass=OwnApply):
    """`apply(vocab_parallel_logits, target, tp_group, ignore_index, label_smoothing, label_smoothing_formula,
    label_smoothing_mode)` -> the loss of each token, float32 [S, B].

    vocab_parallel_logits [S, B, V_r] are this process's columns, the ids [r·V_r, (r + 1)·V_r); target [S, B] are ids of the whole
    vocabulary. tp_group None, or of one process, is no split. With m the largest logit and Z = Σ exp(x - m) over all processes

        loss = (1 - α)·(log Z - (x_target - m)) - α·mean(x - m - log Z)

    and α = label_smoothing ("pytorch"), or times K/(K - 1) ("megatron"); the mean is over the vocabulary and K its size
    ("global"), or over this process's slice ("partition"). 0 where target is ignore_index. Of a target that no process has
    x_target - m counts as 0. The gradient, (softmax - α/K - (1 - α)·onehot) times the upstream, needs no communication; the
    logits are not written to.

    Forward gathers three or five numbers a token from each process. What torch.compile sees, and what is refused, is as in
    `LigerVocabParallelLinearLogProbFunction`.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        return _compiled(*args) if torch.compiler.is_compiling() and _is_native() else cls._now(*args)

    @classmethod
    @torch.compiler.disable
    def _now(cls, *args: Any) -> Any:
        args = waited(args)
        if are_seen_by_shape(args) and not is_transformed():
            return _compiled(*args)
        require_plain(NAME, args, list(inspect.signature(cls.forward).parameters)[1:])
        with profiled(f"liger::{NAME}"):
            if torch.is_grad_enabled() and isinstance(args[0], Tensor) and args[0].requires_grad:
                return super().apply(*args)
            return cls.forward(WithoutGradient(), *args)

    @staticmethod
    def forward(
        ctx, vocab_parallel_logits, target, tp_group, ignore_index, label_smoothing, label_smoothing_formula,
        label_smoothing_mode,
    ):  # fmt: skip
        options = (ignore_index, label_smoothing, label_smoothing_formula, label_smoothing_mode)
        smoothing = _prepared(vocab_parallel_logits, target, tp_group, *options[1:])
        logits = matrix(vocab_parallel_logits.reshape(-1, vocab_parallel_logits.shape[2]))
        here = _slice_here(logits, target.reshape(-1), tp_group, ignore_index)
        loss, log_prob, normalizer = _losses(logits, here, tp_group, smoothing)
        ctx.smoothing, ctx.shape = smoothing, vocab_parallel_logits.shape
        ctx.save_for_backward(logits, here.targets, here.owned, log_prob, normalizer)
        return loss.view(target.shape)

    @staticmethod
    def backward(ctx, upstream):
        refuse_second_derivative("LigerVocabParallelCEFunction")
        (upstream,) = waited((upstream,))
        require_plain(f"{NAME}_backward", (upstream,))
        with profiled(f"liger::{NAME}_backward"):
            dlogits = _gradient_of_slice(*ctx.saved_tensors, upstream.float().reshape(-1), ctx.smoothing)
        return dlogits.view(ctx.shape), *(None,) * 6


class Smoothing(NamedTuple):
    """Of labels: the part that is taken from them, and over how many logits it is spread, of all processes or of one."""

    alpha: float
    averaged: int
    of_all: bool


def _prepared(logits: Any, target: Any, group: Any, label_smoothing: float, formula: str, mode: str) -> Smoothing:
    """Of arguments that are right."""
    validate_formula_and_mode(formula, mode)
    require_tensors(NAME, vocab_parallel_logits=logits, target=target)
    require_float(NAME, vocab_parallel_logits=logits)
    if logits.dim() != 3:
        raise LigerArgumentError(
            f"{NAME}: vocab_parallel_logits must be 3-D, [S, B, V], but has shape {tuple(logits.shape)}"
        )
    if logits.shape[2] == 0:
        raise LigerArgumentError(f"{NAME}: vocab_parallel_logits has no columns")
    if target.dtype not in (torch.int32, torch.int64):
        raise LigerArgumentError(f"{NAME}: target is {target.dtype}, but must be int32 or int64")
    if target.shape != logits.shape[:2]:
        raise LigerArgumentError(
            f"{NAME}: target has shape {tuple(target.shape)}, but vocab_parallel_logits {tuple(logits.shape)}"
        )
    averaged = logits.shape[2] * (group.size() if is_split(group) and mode == "global" else 1)
    alpha = label_smoothing * (averaged / max(averaged - 1, 1) if formula == "megatron" else 1)
    return Smoothing(float(alpha), averaged, mode == "global")


def _slice_here(logits: Tensor, target: Tensor, group: Any, ignore_index: int) -> Slice:
    size = logits.shape[1]
    return slice_of(target, None, ignore_index, group.rank() * size if is_split(group) else 0, size)


def _losses(logits: Tensor, here: Slice, group: Any, smoothing: Smoothing) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, log p of the targets, and the largest logit and the logarithm of the sum, of all processes."""
    alpha = smoothing.alpha
    columns = (_by_kernel if _is_native() else _by_torch)(logits, here, alpha > 0)
    own_mean: Any = columns.get("mean_logits")
    whole = whole_of(gathered(columns, group if is_split(group) else None), False)
    log_prob, log_sum = whole["log_prob"], whole["log_sum"]
    log_prob = torch.where(log_prob.isnan() & ~log_sum.isnan(), -log_sum, log_prob)
    loss = -(1 - alpha) * log_prob
    if alpha > 0:
        loss -= alpha * ((whole["mean_logits"] if smoothing.of_all else own_mean) - whole["maximum"] - log_sum)
    return torch.where(here.counts, loss, 0), log_prob, torch.stack((whole["maximum"], log_sum), 1)


def _gradient_of_slice(
    logits: Tensor, target: Tensor, owned: Tensor, log_prob: Tensor, normalizer: Tensor, u: Tensor, smoothing: Smoothing
) -> Tensor:
    of_target = torch.where(owned, (smoothing.alpha - 1) * u, 0)  # what is left of u is that of lse
    of_mean = u * (-smoothing.alpha * (logits.shape[1] / smoothing.averaged)) if smoothing.alpha > 0 else None
    if not _is_native():
        return _gradient_by_torch(logits, target, normalizer, u, of_target, of_mean)
    dlogits = fresh(torch.empty(logits.shape, dtype=logits.dtype, device=logits.device))
    _native.logprob_backward(
        logits, target, torch.where(owned, log_prob, 0), normalizer, None, None, of_target, None, u + of_target,
        None, of_mean, dlogits, IGNORED, 1.0, 0.0, 1.0, Wish.SCRATCH,
    )  # fmt: skip
    return dlogits


# ---- the operator, for who sees no values ------------------------------------------------------------------------------


class _Split(EachShaped):
    def shapes(self, logits: Tensor, *_: Any) -> tuple:
        rows, f32 = logits.shape[0], torch.float32
        return ((rows,), f32), ((rows,), f32), ((rows, 2), f32)

    def require_floats(self, args: tuple, words: dict[str, str] | None = None) -> None:
        require_float(self.name, logits=args[0])

    def eager(self, *args: Any) -> Any:
        logits, target, name, ignore_index, *smoothing = args
        logits, group = matrix(logits), group_of(name)
        return _losses(logits, _slice_here(logits, target, group, ignore_index), group, Smoothing(*smoothing))


@_Split
def vocab_parallel_cross_entropy(
    logits: Tensor, target: Tensor, group: str, ignore_index: int, alpha: float, averaged: Count, of_all: bool,
    loss: Made = Wish.LIKE, log_prob: Made = Wish.LIKE, normalizer: Made = Wish.LIKE,
) -> Any:  # fmt: skip
    """What is read of it is the signature: `_Split.eager` makes the call."""


class _SplitGradient(EachShaped):
    def shapes(self, _dloss: Tensor, logits: Tensor, *_: Any) -> tuple:
        return (logits,)

    def require_floats(self, args: tuple, words: dict[str, str] | None = None) -> None:
        require_float(self.name, logits=args[1])

    def eager(self, *args: Any) -> Any:
        dloss, logits, target, log_prob, normalizer, name, ignore_index, *smoothing = args
        logits = matrix(logits)
        here = _slice_here(logits, target, group_of(name), ignore_index)
        known = (here.targets, here.owned, log_prob, normalizer)
        return _gradient_of_slice(logits, *known, dloss.float().contiguous(), Smoothing(*smoothing))


def _gradient(
    dloss: Tensor, logits: Tensor, target: Tensor, log_prob: Tensor, normalizer: Tensor, group: str, ignore_index: int,
    alpha: float, averaged: Count, of_all: bool, dlogits: Made = Wish.LIKE[1],
) -> Any:  # fmt: skip
    """As above."""


vocab_parallel_cross_entropy.gradient(_gradient, _SplitGradient)


def _compiled(logits, target, tp_group, ignore_index, label_smoothing, label_smoothing_formula, label_smoothing_mode):
    """As `forward`, by the operator."""
    options = (label_smoothing, label_smoothing_formula, label_smoothing_mode)
    smoothing = _prepared(logits, target, tp_group, *options)
    loss, *_ = vocab_parallel_cross_entropy.traced(
        logits.reshape(-1, logits.shape[2]), target.reshape(-1), name_of(tp_group), ignore_index, *smoothing
    )
    return loss.view(target.shape)


# ---- by a kernel or by torch -------------------------------------------------------------------------------------------


def _is_native() -> bool:
    return NAME not in _DISABLED


def _by_kernel(logits: Tensor, here: Slice, mean: bool) -> dict[str, Tensor]:
    rows = logits.shape[0]
    log_prob, normalizer = (logits.new_empty(shape, dtype=torch.float32) for shape in ((rows,), (rows, 2)))
    means = torch.empty_like(log_prob) if mean else None
    _native.logprob_forward(
        logits, here.targets, log_prob, None, None, None, means, None, normalizer, IGNORED, 1.0, 0.0, 1.0
    )
    columns = {"maximum": normalizer[:, 0], "log_sum": normalizer[:, 1], "log_prob": log_prob}
    return of_slice(columns | ({} if means is None else {"mean_logits": means}), here, logits.shape[1])


def _by_torch(logits: Tensor, here: Slice, mean: bool) -> dict[str, Tensor]:
    z = torch.where(here.counts.unsqueeze(1), logits, 0).float()
    maximum, labels = z.amax(1).clamp(min=torch.finfo(torch.float32).min), here.targets.clamp(min=0)
    log_sum = z.logsumexp(1) - maximum
    own = z.gather(1, labels.unsqueeze(1)).squeeze(1) - maximum - log_sum
    columns = {"maximum": maximum, "log_sum": log_sum, "log_prob": own} | ({"mean_logits": z.mean(1)} if mean else {})
    return of_slice(columns, here, logits.shape[1])


def _gradient_by_torch(
    logits: Tensor, target: Tensor, normalizer: Tensor, u: Tensor, of_target: Tensor, of_mean: Tensor | None
) -> Tensor:
    counts = (target != IGNORED).unsqueeze(1)
    p = (torch.where(counts, logits, 0).float() - normalizer[:, :1] - normalizer[:, 1:]).exp()
    dz = u.unsqueeze(1) * p
    if of_mean is not None:
        dz += (of_mean / logits.shape[1]).unsqueeze(1)
    dz.scatter_add_(1, target.clamp(min=0).unsqueeze(1), of_target.unsqueeze(1))
    return torch.where(counts, dz, 0).to(logits.dtype)


__all__ = ["LigerVocabParallelCEFunction", "validate_formula_and_mode"]
