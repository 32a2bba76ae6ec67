"""Log-probabilities of tokens under a linear head whose vocabulary is split over processes, each with some rows of the weight.

A process makes the statistics of its slice with the kernels of `linear_logprob`, and one all-gather of a few numbers a token makes
them those of the whole vocabulary. Backward starts from these, and needs nothing else of other processes to make the logits'
gradient in its slice; one all-reduce adds up the gradient of the hidden states, in float32.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._function import _DISABLED, OwnApply, WithoutGradient, refuse_second_derivative
from liger_kernel.ops._linear_head import COMPUTE, compute_dtype
from liger_kernel.ops._memory import PLAIN, require_float, stand_for_batches, take_saved
from liger_kernel.ops._operator import LigerArgumentError, is_transformed
from liger_kernel.ops.linear_logprob import (
    OUTPUTS,
    check_options,
    flat_rows,
    kernel_backward,
    kernel_forward,
    linear_logprob,
    profiled,
    require_head,
)
from liger_kernel.ops.scale import cast

NAME = "vocab_parallel_linear_logprob"
_NAMES = {"vocab_parallel_logprob", "linear_logprob"}  # in LIGER_DISABLE
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.13 gave it another name
IGNORED = -100  # among a slice's own targets

# ---- from slices to the vocabulary -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """What this process has of the targets and of the ids: numbers within its slice, and where they are its own."""

    targets: Tensor  # another's: 0, a token that counts
    counts: Tensor
    owned: Tensor
    ids: Tensor | None
    owned_ids: Tensor | None


def slice_of(targets: Tensor, ids: Tensor | None, ignore_index: int, start: int, size: int) -> Slice:
    def own(values: Tensor) -> tuple[Tensor, Tensor]:
        here = values.long() - start
        return here, (here >= 0) & (here < size)

    counts = targets != ignore_index
    here, owned = own(targets)
    owned &= counts
    local = torch.where(owned, here, 0).masked_fill(~counts, IGNORED)
    if ids is None:
        return Slice(local, counts, owned, None, None)
    here, owned_ids = own(ids)
    return Slice(local, counts, owned, torch.where(owned_ids, here, 0), owned_ids)


def gathered(columns: dict[str, Tensor], group: Any) -> dict[str, Tensor]:
    """[rows] or [rows, K] of this process -> [processes, rows] or [processes, rows, K] of all, in the order of their ranks;
    without a group there is this one. Differentiable in this process's."""
    wide = [c if c.dim() == 2 else c.unsqueeze(1) for c in columns.values()]
    packed = torch.cat(wide, 1)
    if group is None:
        everyone = packed.unsqueeze(0)
    else:
        everyone = packed.detach().new_empty(group.size(), *packed.shape)
        _all_gather(everyone.flatten(0, 1), packed.detach(), group=group)
        if packed.requires_grad:
            everyone[group.rank()] = packed
    parts = everyone.split([w.shape[1] for w in wide], 2)
    return {name: p if c.dim() == 2 else p.squeeze(2) for (name, c), p in zip(columns.items(), parts)}


def _log_sum_exp(values: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp over processes as two numbers to be added: the value of `top`, and how much the others add to it, which keeps its
    digits where that is little."""
    largest = values.gather(0, top)
    apart = torch.where(values == largest, 0, values - largest)  # of two of -inf too
    return largest.squeeze(0), apart.exp().scatter(0, top, 0).sum(0).log1p()


def _of_owner(values: Tensor, log_share: Tensor, of_nobodys: Tensor) -> Tensor:
    """log p over the vocabulary from the slices', which are NaN where they are another's. Of two owners: NaN."""
    is_own = ~values.isnan()
    owners = is_own.sum(0)
    found = torch.where(is_own, values + log_share, 0).sum(0)
    return torch.where(owners == 1, found, torch.where(owners == 0, of_nobodys, math.nan))


def whole_of(found: dict[str, Tensor], unowned_is_zero: bool) -> dict[str, Tensor]:
    """The numbers of the vocabulary from those of its slices. With s = Σ exp z of a slice over that of the vocabulary:

    entropy  Σ s·(entropy - log s)        log Σ p²  log Σ s²·(Σ p² of the slice)        log p  that of the slice + log s
    """
    maximum = found["maximum"].amax(0)
    shifted = found["maximum"] - maximum + found["log_sum"]
    top = shifted.detach().argmax(0, keepdim=True)
    largest, more = _log_sum_exp(shifted, top)
    log_sum = largest + more
    log_share = (shifted - log_sum).scatter(0, top, -more.unsqueeze(0))  # near 0 where the others have little
    share = log_share.exp()
    is_some = share > 0
    log_share_of_some = torch.where(is_some, log_share, 0)
    lse = maximum + log_sum
    whole = {"maximum": maximum, "log_sum": log_sum, "lse": lse}
    # times 0 where it is not asked for, so that no gradient is NaN there
    is_nobodys = found["log_prob"].isnan().all(0)
    factor = torch.zeros_like(lse).masked_fill(is_nobodys, -1.0 if unowned_is_zero else math.nan)
    whole["log_prob"] = _of_owner(found["log_prob"], log_share, lse * factor)
    if "entropy" in found:
        entropy = torch.where(is_some, found["entropy"], 0) - log_share_of_some
        whole["entropy"] = (share * entropy).sum(0)
    if "log_sum_sq_probs" in found:
        of_some = 2 * log_share_of_some + torch.where(is_some, found["log_sum_sq_probs"], 0)
        first, others = _log_sum_exp(torch.where(is_some, of_some, -math.inf), top)
        whole["log_sum_sq_probs"] = first + others
    if "mean_logits" in found:
        whole["vocab"] = found["vocab"].sum(0)
        whole["mean_logits"] = (found["mean_logits"] * found["vocab"]).sum(0) / whole["vocab"]
    if "is_top1" in found:
        is_largest = found["maximum"] == maximum
        first = is_largest & (is_largest.cumsum(0) == 1)
        whole["is_top1"] = (first & (found["is_top1"] != 0)).any(0) & ~log_sum.isnan()
    if "selected" in found:
        nan = torch.full_like(found["selected"][0], math.nan)
        whole["selected"] = _of_owner(found["selected"], log_share.unsqueeze(2), nan)
    return whole


# ---- the Function ------------------------------------------------------------------------------------------------------


def require_plain(name: str, values: Any) -> None:
    """Modes that look at torch's operators see none of these."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    fakes = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    plain = fakes is None and all(type(t) in PLAIN and not t.is_meta and not t.is_neg() for t in tensors)
    if not plain or stand_for_batches(*tensors) or is_transformed():
        raise RuntimeError(
            f"{name}: tensors must be plain: no transform of torch.func, no batch of upstreams, no fake, meta or subclassed tensors"
        )


def is_split(group: Any) -> bool:
    """None, and a group of one process, hold a whole vocabulary."""
    return group is not None and group.size() > 1


class LigerVocabParallelLinearLogProbFunction(torch.autograd.Function, metaclass=OwnApply):
    """`apply(hidden, weight, targets, process_group, vocab_start_index=None, bias=None, selected_token_ids=None, temperature=1.0,
    softcap=None, scale=1.0, ignore_index=-100, valid_rows=None, outputs=(), unowned_is_zero=False)` -> as
    `LigerLinearLogProbFunction`, over the vocabulary of all processes of the group, and the same on each.

    weight [V_r, H] and bias [V_r] are this process's rows of the head: the ids [vocab_start_index, vocab_start_index + V_r),
    without it [rank·V_r, (rank + 1)·V_r). With it slices may differ in size; together they are the vocabulary, in the order of ranks.
    hidden and targets are the same on every process, and so has to be what is made of the results: backward takes each
    upstream gradient as that of one loss which all have. The gradient of hidden is the sum over all processes, in float32 until
    it is rounded once; those of weight and bias are of the slice.

    A target that no process has gives NaN, and NaN gradients; with unowned_is_zero its logit is 0. One that two have, because
    slices of different sizes came without their vocab_start_index, gives NaN too. Of equal z in two slices is_top1 takes the first
    one's, where one process compares logits, which a soft cap may have rounded to one z. On no device does a call wait
    for the values of targets. The tensors of one call are on one device, for which the group has a backend (NCCL, gloo).
    Under torch.compile the call stands beside the graph. Transforms of torch.func, forward mode and second derivatives are
    refused.
    """

    @classmethod
    @torch.compiler.disable
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(cls.forward).bind(None, *args, **kwargs)
        bound.apply_defaults()
        args = bound.args[1:]
        require_plain(NAME, args)
        with profiled(f"liger::{NAME}"):
            if torch.is_grad_enabled() and any(t.requires_grad for t in (args[0], args[1], args[5]) if t is not None):
                return super().apply(*args)
            return cls.forward(WithoutGradient(), *args)

    @staticmethod
    def forward(
        ctx, hidden, weight, targets, process_group, vocab_start_index=None, bias=None, selected_token_ids=None,
        temperature=1.0, softcap=None, scale=1.0, ignore_index=-100, valid_rows=None, outputs=(), unowned_is_zero=False,
    ):  # fmt: skip
        check_options(temperature, softcap, scale, valid_rows, outputs)
        x, target = flat_rows(hidden, targets)
        require_float(NAME, hidden=hidden, weight=weight, bias=bias)
        _require(x, weight, target, bias, selected_token_ids)
        size = weight.shape[0]
        start = vocab_start_index
        if start is None:
            start = process_group.rank() * size if is_split(process_group) else 0
        here = slice_of(target, selected_token_ids, ignore_index, start, size)
        options = (IGNORED, -1 if valid_rows is None else valid_rows, float(scale), float(softcap or 0.0),
                   float(temperature), COMPUTE.index(compute_dtype(x, weight)))  # fmt: skip
        operands = (x, weight, here.targets, bias, here.ids)
        needs = ctx.needs_input_grad
        ctx.needs = needs[0], needs[1], bias is not None and needs[5]
        ctx.set_materialize_grads(False)
        process_group = process_group if is_split(process_group) else None
        ctx.names, ctx.shape, ctx.group, ctx.options = tuple(outputs), hidden.shape, process_group, options
        ctx.unowned_is_zero, ctx.by_torch = unowned_is_zero, None
        ctx.dtypes = [None if t is None else t.dtype for t in (x, weight, bias)]
        if _NAMES.isdisjoint(_DISABLED):
            columns, logits = _by_kernels(operands, options, here, outputs)
            whole = whole_of(gathered(columns, process_group), unowned_is_zero)
            normalizer = torch.stack((whole["maximum"], whole["log_sum"]), 1)
            ctx.save_for_backward(
                *operands, here.owned, here.owned_ids, whole["log_prob"], normalizer, whole.get("entropy"),
                whole.get("log_sum_sq_probs"), whole.get("vocab"), logits,
            )  # fmt: skip
            found = _public(whole, here, ctx.names, targets.shape)
        else:
            leaves = [None if t is None else t.detach().float().requires_grad_() for t in (x, weight, bias)]
            with torch.enable_grad():
                columns = _by_torch(leaves, options, here, outputs)
                whole = whole_of(gathered(columns, process_group), unowned_is_zero)
                made = _public(whole, here, ctx.names, targets.shape)
            ctx.by_torch = leaves, made
            found = [m.detach() for m in made]
        if "is_top1" in outputs:
            ctx.mark_non_differentiable(found[1 + ctx.names.index("is_top1")])
        return tuple(found) if len(found) > 1 else found[0]

    @staticmethod
    def backward(ctx, *upstreams):
        refuse_second_derivative("LigerVocabParallelLinearLogProbFunction")
        count = len(ctx.needs_input_grad)
        if all(u is None for u in upstreams):
            return (None,) * count
        require_plain(f"{NAME}_backward", upstreams)
        with profiled(f"liger::{NAME}_backward"):
            dx, dweight, dbias = (_gradients_by_torch if ctx.by_torch else _gradients_by_kernels)(ctx, upstreams)
            if dx is not None:
                dx = dx.contiguous()
                if ctx.group is not None:
                    dist.all_reduce(dx, group=ctx.group)
                dx = (dx if ctx.dtypes[0] is dx.dtype else cast(dx, ctx.dtypes[0])).view(ctx.shape)
        found = {0: dx, 1: dweight, 5: dbias}
        return tuple(found.get(i) for i in range(count))


def _require(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ids: Tensor | None) -> None:
    """In the words of the callers."""
    words = {"x": "hidden", "target": "targets", "selected_ids": "selected_token_ids"}
    try:
        require_head(NAME, x, weight, target, bias, ids)
    except LigerArgumentError as error:
        text = re.sub(r"(?<=: )(x|target|selected_ids)(?= )", lambda match: words[match[1]], str(error))
        raise LigerArgumentError(text) from None


def _public(whole: dict[str, Tensor], here: Slice, names: tuple, shape: torch.Size) -> list[Tensor]:
    """What a caller gets: 0 where nothing counts."""

    def counted(values: Tensor) -> Tensor:
        counts = here.counts if values.dim() == 1 else here.counts.unsqueeze(1)
        return torch.where(counts, values, False if values.dtype is torch.bool else 0).view((*shape, *values.shape[1:]))

    return [counted(whole[name]) for name in ("log_prob", *names, *(("selected",) if here.ids is not None else ()))]


# ---- by the kernels ----------------------------------------------------------------------------------------------------


def _by_kernels(operands: tuple, options: tuple, here: Slice, outputs: tuple) -> tuple[dict, Tensor | None]:
    """The numbers of this slice, and its logits where they are kept."""
    flags = tuple(name in outputs and name != "lse" for name in OUTPUTS)
    made = linear_logprob._results((*operands, *options), (*flags, here.ids is not None), _native.new)
    log_prob, normalizer, *others = made
    logits = kernel_forward(operands, options, (log_prob, *others, normalizer))
    columns = dict(zip((*OUTPUTS, "selected"), others))
    columns |= {"maximum": normalizer[:, 0], "log_sum": normalizer[:, 1], "log_prob": log_prob}
    return of_slice({name: c for name, c in columns.items() if c is not None}, here, operands[1].shape[0]), logits


def of_slice(columns: dict[str, Tensor], here: Slice, size: int) -> dict[str, Tensor]:
    """NaN where the number is another process's. Where nothing counts, whatever there is. In a slice of which nothing has a
    probability a number of its own is -inf."""
    nothing = columns["log_sum"] == -math.inf
    own = columns["log_prob"].masked_fill(nothing, -math.inf)
    columns["log_prob"] = torch.where(here.owned | ~here.counts, own, math.nan)
    if "mean_logits" in columns:
        columns["vocab"] = torch.full_like(columns["log_sum"], size)
    if "is_top1" in columns:
        columns["is_top1"] = (columns["is_top1"] & here.owned).float()
    if here.owned_ids is not None:
        own = columns["selected"].masked_fill(nothing.unsqueeze(1), -math.inf)
        columns["selected"] = torch.where(here.owned_ids, own, math.nan)
    return columns


def _gradients_by_kernels(ctx: Any, given: tuple) -> tuple:
    saved, free = take_saved(ctx)
    operands, owned, owned_ids, log_prob, normalizer, entropy, squares, vocab, logits = saved[:5], *saved[5:]
    rows = operands[0].shape[0]
    upstreams = {
        name: None if u is None else u.float().reshape(rows, *u.shape[len(ctx.shape) - 1 :])
        for name, u in zip(("log_prob", *ctx.names, "selected"), given)
    }
    of_slice = _upstreams_of_slice(upstreams, owned, owned_ids, operands[1].shape[0], vocab)
    if upstreams["log_prob"] is not None and not ctx.unowned_is_zero:
        of_slice[2] = torch.where(log_prob.isnan(), math.nan, of_slice[2])
    known = (torch.where(owned, log_prob, 0), normalizer, entropy, squares)
    kept = logits if free[12] else None
    return kernel_backward(tuple(of_slice), operands, known, ctx.options, ctx.needs, kept, wide_dx=True)


def _upstreams_of_slice(upstreams: dict[str, Any], owned: Tensor, owned_ids: Any, size: int, vocab: Any) -> list[Any]:
    """In the order of the kernels, which know no target and no id but their own: of another's log p = z - lse it is lse that
    this slice has a part in."""
    of_log_prob, of_lse = upstreams["log_prob"], upstreams.get("lse")
    of_mean, of_selected = upstreams.get("mean_logits"), upstreams.get("selected")
    moved = []
    if of_log_prob is not None:
        moved.append(torch.where(owned, 0, of_log_prob))
        of_log_prob = torch.where(owned, of_log_prob, 0)
    if of_selected is not None:
        moved.append(torch.where(owned_ids, 0, of_selected).sum(1))
        of_selected = torch.where(owned_ids, of_selected, 0)
    for of_others in moved:
        of_lse = -of_others if of_lse is None else of_lse - of_others
    if of_mean is not None:
        of_mean = of_mean * (size / vocab)
    return [of_log_prob, upstreams.get("entropy"), of_lse, upstreams.get("log_sum_sq_probs"), of_mean, of_selected]


# ---- by torch, where LIGER_DISABLE says so -------------------------------------------------------------------------------


def _by_torch(leaves: list[Any], options: tuple, here: Slice, outputs: tuple) -> dict[str, Tensor]:
    """The same numbers, differentiable in the leaves. Of 16-bit products torch rounds a hidden state's gradient in each process."""
    _, _, scale, softcap, temperature, compute = options
    products: list[Any] = [None if t is None else t.to(COMPUTE[compute]) for t in leaves]
    x, weight, bias = products
    z = scale * torch.nn.functional.linear(torch.where(here.counts.unsqueeze(1), x, 0), weight, bias).float()
    z = (softcap * torch.tanh(z / softcap) if softcap else z) / temperature
    nothing = (z == -math.inf).all(1)  # has a probability: no number of it is asked for, and no gradient is NaN
    z = torch.where(nothing.unsqueeze(1), 0, z)
    log_p, maximum = z.log_softmax(1), z.detach().amax(1).clamp(min=torch.finfo(torch.float32).min)
    labels = here.targets.clamp(min=0)
    columns = {
        "maximum": maximum.masked_fill(nothing, torch.finfo(torch.float32).min),
        "log_sum": (z.logsumexp(1) - maximum).masked_fill(nothing, -math.inf),
        "log_prob": log_p.gather(1, labels.unsqueeze(1)).squeeze(1),
        "entropy": -torch.where(log_p == -math.inf, 0, log_p.exp() * log_p).sum(1),
        "log_sum_sq_probs": (2 * log_p).logsumexp(1),
        "mean_logits": z.mean(1),
        "is_top1": z.argmax(1) == labels,
    }
    if here.ids is not None:
        columns["selected"] = log_p[:, here.ids]
    always = {"maximum", "log_sum", "log_prob", "selected"}
    return of_slice({n: c for n, c in columns.items() if n in always or n in outputs}, here, weight.shape[0])


def _gradients_by_torch(ctx: Any, upstreams: tuple) -> list:
    leaves, made = ctx.by_torch
    asked = [(m, u) for m, u in zip(made, upstreams) if u is not None]
    wanted = [leaf for leaf, need in zip(leaves, ctx.needs) if need]
    found = iter(torch.autograd.grad([m for m, _ in asked], wanted, [u.float() for _, u in asked], retain_graph=True))
    gradients = [next(found) if need else None for need in ctx.needs]
    return [g if g is None or i == 0 else g.to(ctx.dtypes[i]) for i, g in enumerate(gradients)]


__all__ = ["LigerVocabParallelLinearLogProbFunction", "is_split"]
