"""Log-probabilities of tokens under a linear head whose vocabulary is split over processes, each with some rows of the weight.

A process makes the statistics of its slice with the kernels of `linear_logprob`, and one all-gather of a few numbers a token makes
them those of the whole vocabulary. Backward starts from these, and needs nothing else of other processes to make the logits'
gradient in its slice; one all-reduce adds up the gradient of the hidden states, in float32.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.ops._formula import require_tensors
from liger_kernel.ops._function import _DISABLED, OwnApply, WithoutGradient, refuse_second_derivative
from liger_kernel.ops._linear_head import COMPUTE, compute_dtype
from liger_kernel.ops._memory import PLAIN, have_no_memory, require_float, stand_for_batches, take_saved
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, is_transformed
from liger_kernel.ops.linear_logprob import (
    OUTPUTS,
    Count,
    Kept,
    OnAHead,
    backward_products,
    check_options,
    flat_rows,
    forward_products,
    kernel_backward,
    kernel_forward,
    linear_logprob,
    may_keep,
    of_results,
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


# ---- tensors and groups ------------------------------------------------------------------------------------------------


def require_plain(name: str, values: Any, names: Any = None) -> None:
    """Modes that look at torch's operators see none of these. `names`: of the values, in the callers' words."""
    if is_transformed():
        raise RuntimeError(
            f"{name}: tensors must be plain, but a transform of torch.func, or forward mode, looks at them"
        )
    for word, value in zip(names or ("a gradient",) * len(values), values):
        if isinstance(value, Tensor) and stand_for_batches(value):
            raise RuntimeError(f"{name}: tensors must be plain, but {word} is a batch of upstreams")
        if isinstance(value, Tensor) and type(value) not in PLAIN:
            raise RuntimeError(f"{name}: tensors must be plain, but {word} is a {type(value).__name__}")


class _Waited(torch.autograd.Function):
    """Of a collective's result that is under way, the result."""

    @staticmethod
    def forward(ctx, value):
        return value.trigger_wait()

    @staticmethod
    def backward(ctx, upstream):
        return upstream


def waited(values: Any) -> tuple:
    """As they are, but for results of collectives that are under way: plain tensors."""
    collectives = sys.modules.get("torch.distributed._functional_collectives")
    kind = getattr(collectives, "AsyncCollectiveTensor", ())
    return tuple(_Waited.apply(v) if kind and isinstance(v, kind) else v for v in values)


def are_seen_by_shape(values: Any) -> bool:
    """Is there no memory, but an operator can say of what shape its results are?"""
    fakes = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return fakes is not None or have_no_memory(*values)


def is_split(group: Any) -> bool:
    """None, and a group of one process, hold a whole vocabulary. A compiled graph that is for this group alone asks for its name:
    that of a larger one would find the graph again."""
    return group is not None and group.group_name is not None and group.size() > 1


def name_of(group: Any) -> str:
    """By which an operator finds it again: none if it is no split."""
    return group.group_name if is_split(group) else ""


def group_of(name: str) -> Any:
    return dist.distributed_c10d._resolve_process_group(name) if name else None  # type: ignore[arg-type]


# ---- the operator, for who sees no values ------------------------------------------------------------------------------


class _Split(OnAHead):
    floats = (0, 1, 3)

    def shapes(self, x: Tensor, _weight: Tensor, _target: Tensor, _bias: Any, ids: Tensor | None, *_: Any) -> tuple:
        rows, f32 = x.shape[0], torch.float32
        selected = ((rows, 0 if ids is None else ids.numel()), f32)
        one = ((rows,), f32)
        return one, ((rows, 2), f32), *(one,) * 4, ((rows,), torch.bool), selected, one

    def require(self, *args: Any) -> None:
        _require(*args[:5])

    def eager(self, *args: Any) -> Any:
        *operands, group, start, ignore_index, valid_rows, scale, softcap, temperature, compute, unowned_is_zero = args[
            :14
        ]
        asked = dict(zip((*OUTPUTS, "selected", "vocab"), args[14:]))
        outputs = tuple(name for name in OUTPUTS if asked[name])
        here = slice_of(operands[2], operands[4], ignore_index, start, operands[1].shape[0])
        options = (IGNORED, valid_rows, scale, softcap, temperature, compute)
        head = (*operands[:2], here.targets, operands[3], here.ids)
        columns, _logits = _by_kernels(head, options, here, outputs)
        whole = whole_of(gathered(columns, group_of(group)), unowned_is_zero)
        found = dict(zip(("log_prob", *outputs, "selected"), _public(whole, here, outputs, operands[2].shape)))
        others = [found.get(name) if asked[name] else None for name in (*OUTPUTS, "selected")]
        normalizer = torch.stack((whole["maximum"], whole["log_sum"]), 1)
        return found["log_prob"], normalizer, *others, whole.get("vocab")


@_Split
def vocab_parallel_logprob(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, selected_ids: Tensor | None, group: str, start: int,
    ignore_index: int, valid_rows: Count, scale: float, softcap: float, temperature: float, compute: int,
    unowned_is_zero: bool, log_prob: Made = Wish.LIKE, normalizer: Made = Wish.LIKE, entropy: Asked = Wish.LIKE,
    lse: Asked = Wish.LIKE, log_sum_sq_probs: Asked = Wish.LIKE, mean_logits: Asked = Wish.LIKE,
    is_top1: Asked = Wish.LIKE, selected: Asked = Wish.LIKE, vocab: Asked = Wish.LIKE,
) -> Any:  # fmt: skip
    """What is read of it is the signature: `_Split.eager` makes the call."""


class _SplitGradients(OnAHead):
    floats = (6, 7, 9)

    def shapes(self, *given: Any) -> tuple:
        x, weight, bias = given[6], given[7], given[9]
        return x, weight, bias if bias is not None else ((0,), torch.float32)

    def eager(self, *args: Any) -> Any:
        upstreams = dict(zip(("log_prob", *OUTPUTS[:4], "selected"), of_results(args[:6], args[6])))
        x, weight, target, bias, ids, log_prob, normalizer, entropy, squares, vocab, group, start, ignore_index = args[
            6:19
        ]
        *options, unowned_is_zero = args[19:25]
        here = slice_of(target, ids, ignore_index, start, weight.shape[0])
        dx, *others = _gradients_of_slice(
            upstreams, (x, weight, here.targets, bias, here.ids), (here.owned, here.owned_ids),
            (log_prob, normalizer, entropy, squares, vocab), (IGNORED, *options), args[25:], None, unowned_is_zero,
        )  # fmt: skip
        return added_up(dx, group_of(group), x.dtype, x.shape), *others


def _gradient(
    dlog_prob: Tensor | None, dentropy: Tensor | None, dlse: Tensor | None, dlog_sum_sq_probs: Tensor | None,
    dmean_logits: Tensor | None, dselected: Tensor | None, x: Tensor, weight: Tensor, target: Tensor,
    bias: Tensor | None, selected_ids: Tensor | None, log_prob: Tensor, normalizer: Tensor, entropy: Tensor | None,
    log_sum_sq_probs: Tensor | None, vocab: Tensor | None, group: str, start: int, ignore_index: int, valid_rows: Count,
    scale: float, softcap: float, temperature: float, compute: int, unowned_is_zero: bool, dx: Asked = Wish.LIKE,
    dweight: Asked = Wish.LIKE, dbias: Asked = Wish.LIKE,
) -> Any:  # fmt: skip
    """As above."""


vocab_parallel_logprob.gradient(_gradient, _SplitGradients)
register_flop_formula(torch.ops.liger.vocab_parallel_logprob)(forward_products)
register_flop_formula(torch.ops.liger.vocab_parallel_logprob_backward)(backward_products)


# ---- the Function ------------------------------------------------------------------------------------------------------


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
    To torch.compile, and where there are shapes alone, a call is one operator. Transforms of torch.func, forward mode and second
    derivatives are refused, and so are tensors that stand for others (DTensor), but for results of collectives, which are waited for.
    """

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return _compiled(*args, **kwargs) if _is_native() else cls._now(*args, **kwargs)
        return cls._now(*args, **kwargs)

    @classmethod
    @torch.compiler.disable
    def _now(cls, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(cls.forward)
        bound = signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        args = waited(bound.args[1:])
        if are_seen_by_shape(args) and not is_transformed():
            return _compiled(*args)
        require_plain(NAME, args, list(signature.parameters)[1:])
        with profiled(f"liger::{NAME}"):
            operands = (args[0], args[1], args[5])
            if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands):
                return super().apply(*args)
            return cls.forward(WithoutGradient(), *args)

    @staticmethod
    def forward(
        ctx, hidden, weight, targets, process_group, vocab_start_index=None, bias=None, selected_token_ids=None,
        temperature=1.0, softcap=None, scale=1.0, ignore_index=-100, valid_rows=None, outputs=(), unowned_is_zero=False,
    ):  # fmt: skip
        given = (temperature, softcap, scale, valid_rows, outputs)
        (x, _, target, *_), start = _prepared(
            hidden, weight, targets, process_group, vocab_start_index, bias, selected_token_ids, given
        )
        here = slice_of(target, selected_token_ids, ignore_index, start, weight.shape[0])
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
        if _is_native():
            keep = any(ctx.needs) and may_keep(x, options)
            columns, logits = _by_kernels(operands, options, here, outputs, keep)
            whole = whole_of(gathered(columns, process_group), unowned_is_zero)
            normalizer = torch.stack((whole["maximum"], whole["log_sum"]), 1)
            ctx.save_for_backward(
                *operands, here.owned, here.owned_ids, whole["log_prob"], normalizer, whole.get("entropy"),
                whole.get("log_sum_sq_probs"), whole.get("vocab"), logits,
            )  # fmt: skip
            found = _public(whole, here, ctx.names, targets.shape)
        else:
            dtype = COMPUTE[options[-1]]
            leaves = [None if t is None else t.detach().to(dtype).float().requires_grad_() for t in (x, weight, bias)]
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
        upstreams = waited(upstreams)
        require_plain(f"{NAME}_backward", upstreams)
        with profiled(f"liger::{NAME}_backward"):
            dx, dweight, dbias = (_gradients_by_torch if ctx.by_torch else _gradients_by_kernels)(ctx, upstreams)
            dx = added_up(dx, ctx.group, ctx.dtypes[0], ctx.shape)
        found = {0: dx, 1: dweight, 5: dbias}
        return tuple(found.get(i) for i in range(count))


def _is_native() -> bool:
    return _NAMES.isdisjoint(_DISABLED)


def added_up(dx: Tensor | None, group: Any, dtype: torch.dtype, shape: torch.Size) -> Tensor | None:
    """The gradient of hidden states from those of all slices, rounded once."""
    if dx is None:
        return None
    dx = dx.contiguous()
    if group is not None:
        dist.all_reduce(dx, group=group)
    return (dx if dtype is dx.dtype else cast(dx, dtype)).view(shape)


def _prepared(
    hidden: Any, weight: Any, targets: Any, group: Any, start: int | None, bias: Any, ids: Any, options: tuple
) -> tuple:
    """The operands, of matrices and vectors, and where the slice begins."""
    require_tensors(NAME, hidden=hidden, weight=weight, targets=targets)
    check_options(*options)
    x, target = flat_rows(hidden, targets)
    require_float(NAME, hidden=hidden, weight=weight, bias=bias)
    _require(x, weight, target, bias, ids)
    if start is None:
        start = group.rank() * weight.shape[0] if is_split(group) else 0
    return (x, weight, target, bias, ids), start


def _compiled(
    hidden, weight, targets, process_group, vocab_start_index=None, bias=None, selected_token_ids=None, temperature=1.0,
    softcap=None, scale=1.0, ignore_index=-100, valid_rows=None, outputs=(), unowned_is_zero=False,
):  # fmt: skip
    """As `forward`, by the operator."""
    given = (temperature, softcap, scale, valid_rows, outputs)
    operands, start = _prepared(
        hidden, weight, targets, process_group, vocab_start_index, bias, selected_token_ids, given
    )
    flags = (*(name in outputs for name in OUTPUTS), selected_token_ids is not None, "mean_logits" in outputs)
    log_prob, _normalizer, *others = vocab_parallel_logprob.traced(
        *operands, name_of(process_group), start, ignore_index, -1 if valid_rows is None else valid_rows, float(scale),
        float(softcap or 0.0), float(temperature), COMPUTE.index(compute_dtype(*operands[:2])), unowned_is_zero, *flags,
    )  # fmt: skip
    found, shape = dict(zip((*OUTPUTS, "selected"), others)), targets.shape
    results = [log_prob.view(shape), *(found[name].view(shape) for name in outputs)]
    if selected_token_ids is not None:
        results.append(found["selected"].view(*shape, found["selected"].shape[1]))
    return tuple(results) if len(results) > 1 else results[0]


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


def _by_kernels(
    operands: tuple, options: tuple, here: Slice, outputs: tuple, keep: bool = False
) -> tuple[dict, Tensor | None]:
    """The numbers of this slice, and its logits where they are kept."""
    flags = tuple(name in outputs and name != "lse" for name in OUTPUTS)
    made = linear_logprob._results((*operands, *options), (*flags, here.ids is not None), _native.new)
    log_prob, normalizer, *others = made
    kept = kernel_forward(operands, options, (log_prob, *others, normalizer), keep)
    logits = None if kept is None else kept.memory
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
    known = (log_prob, normalizer, entropy, squares, vocab)
    kept = Kept(logits, in_dweight=False) if free[12] else None
    return _gradients_of_slice(
        upstreams, operands, (owned, owned_ids), known, ctx.options, ctx.needs, kept, ctx.unowned_is_zero
    )


def _gradients_of_slice(
    upstreams: dict[str, Any], operands: tuple, owned: tuple, known: tuple, options: tuple, needs: tuple, kept: Any,
    unowned_is_zero: bool,
) -> tuple:  # fmt: skip
    """`owned`: which targets and ids are this slice's; `known`: numbers of the whole vocabulary. The gradient of the hidden states
    is float32, and a part of it."""
    log_prob, normalizer, entropy, squares, vocab = known
    of_slice = _upstreams_of_slice(upstreams, owned[0], owned[1], operands[1].shape[0], vocab)
    if upstreams["log_prob"] is not None and not unowned_is_zero:
        of_slice[2] = torch.where(log_prob.isnan(), math.nan, of_slice[2])
    of_own = (torch.where(owned[0], log_prob, 0), normalizer, entropy, squares)
    return kernel_backward(tuple(of_slice), operands, of_own, options, needs, kept, wide_dx=True)


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
    """The same numbers, differentiable in the leaves, which are float32: so are gradients, and the logits' are rounded."""
    _, _, scale, softcap, temperature, compute = options
    x, weight, bias = leaves
    z = torch.nn.functional.linear(torch.where(here.counts.unsqueeze(1), x, 0), weight, bias)
    z = scale * z.to(COMPUTE[compute]).float()
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
