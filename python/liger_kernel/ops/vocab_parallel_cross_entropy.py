"""Cross entropy of logits whose vocabulary is split over the processes of a tensor-parallel group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.ops._function import _DISABLED, OwnApply, WithoutGradient, refuse_second_derivative
from liger_kernel.ops._memory import fresh, matrix, require_float
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.ops.linear_logprob import profiled
from liger_kernel.ops.vocab_parallel_logprob import (
    IGNORED,
    Slice,
    gathered,
    is_split,
    of_slice,
    require_plain,
    slice_of,
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

    Forward gathers three or five numbers a token from each process. Under torch.compile the call stands beside the graph;
    transforms of torch.func, forward mode and second derivatives are refused.
    """

    @classmethod
    @torch.compiler.disable
    def apply(cls, *args: Any) -> Any:
        require_plain(NAME, args)
        with profiled(f"liger::{NAME}"):
            if torch.is_grad_enabled() and args[0].requires_grad:
                return super().apply(*args)
            return cls.forward(WithoutGradient(), *args)

    @staticmethod
    def forward(
        ctx, vocab_parallel_logits, target, tp_group, ignore_index, label_smoothing, label_smoothing_formula,
        label_smoothing_mode,
    ):  # fmt: skip
        validate_formula_and_mode(label_smoothing_formula, label_smoothing_mode)
        require_float(NAME, vocab_parallel_logits=vocab_parallel_logits)
        if vocab_parallel_logits.dim() != 3:
            raise LigerArgumentError(
                f"{NAME}: vocab_parallel_logits must be 3-D, [S, B, V], but has shape {tuple(vocab_parallel_logits.shape)}"
            )
        if vocab_parallel_logits.shape[2] == 0:
            raise LigerArgumentError(f"{NAME}: vocab_parallel_logits has no columns")
        if target.dtype not in (torch.int32, torch.int64):
            raise LigerArgumentError(f"{NAME}: target is {target.dtype}, but must be int32 or int64")
        if target.shape != vocab_parallel_logits.shape[:2]:
            raise LigerArgumentError(
                f"{NAME}: target has shape {tuple(target.shape)}, but vocab_parallel_logits {tuple(vocab_parallel_logits.shape)}"
            )
        group = tp_group if is_split(tp_group) else None
        logits = matrix(vocab_parallel_logits.reshape(-1, vocab_parallel_logits.shape[2]))
        size, processes = logits.shape[1], 1 if group is None else group.size()
        here = slice_of(target.reshape(-1), None, ignore_index, 0 if group is None else group.rank() * size, size)
        averaged = processes * size if label_smoothing_mode == "global" else size
        ctx.alpha = label_smoothing * (averaged / max(averaged - 1, 1) if label_smoothing_formula == "megatron" else 1)
        ctx.averaged, ctx.shape = averaged, vocab_parallel_logits.shape
        columns = (_by_kernel if _is_native() else _by_torch)(logits, here, ctx.alpha > 0)
        own_mean = columns.get("mean_logits")
        whole = whole_of(gathered(columns, group), False)
        log_prob, log_sum = whole["log_prob"], whole["log_sum"]
        log_prob = torch.where(log_prob.isnan() & ~log_sum.isnan(), -log_sum, log_prob)
        loss = -(1 - ctx.alpha) * log_prob
        if ctx.alpha > 0:
            mean = whole["mean_logits"] if label_smoothing_mode == "global" else own_mean
            loss -= ctx.alpha * (mean - whole["maximum"] - log_sum)
        normalizer = torch.stack((whole["maximum"], log_sum), 1)
        ctx.save_for_backward(logits, here.targets, here.owned, log_prob, normalizer)
        return torch.where(here.counts, loss, 0).view(target.shape)

    @staticmethod
    def backward(ctx, upstream):
        refuse_second_derivative("LigerVocabParallelCEFunction")
        require_plain(f"{NAME}_backward", (upstream,))
        logits, target, owned, log_prob, normalizer = ctx.saved_tensors
        u = upstream.float().reshape(-1)
        of_target = torch.where(owned, (ctx.alpha - 1) * u, 0)  # what is left of u is that of lse
        of_mean = u * (-ctx.alpha * (logits.shape[1] / ctx.averaged)) if ctx.alpha > 0 else None
        with profiled(f"liger::{NAME}_backward"):
            if not _is_native():
                dlogits = _gradient_by_torch(logits, target, normalizer, u, of_target, of_mean)
            else:
                dlogits = fresh(torch.empty(logits.shape, dtype=logits.dtype, device=logits.device))
                _native.logprob_backward(
                    logits, target, torch.where(owned, log_prob, 0), normalizer, None, None, of_target, None, u + of_target,
                    None, of_mean, dlogits, IGNORED, 1.0, 0.0, 1.0, Wish.SCRATCH,
                )  # fmt: skip
        return dlogits.view(ctx.shape), *(None,) * 6


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
