"""Log-probabilities of tokens under a linear head, and other numbers of each token's distribution: no full logits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _native
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import readable, require_shape
from liger_kernel.ops._function import LigerFunction, refuse_second_derivative
from liger_kernel.ops._linear_head import (
    COMPUTE,
    NAMED_BUDGET,
    compute_dtype,
    padded_logits,
    require_matrices,
    require_temperature,
)
from liger_kernel.ops._memory import (
    PLAIN,
    fresh,
    have_no_memory,
    is_plain,
    kept,
    kept_labels,
    matrix,
    require_float,
    take_saved,
)
from liger_kernel.ops._operator import Asked, EachShaped, LigerArgumentError, Made, Wish
from liger_kernel.ops.cross_entropy import check_targets
from liger_kernel.ops.scale import cast

OUTPUTS = ("entropy", "lse", "log_sum_sq_probs", "mean_logits", "is_top1")  # beside the log-probability

_INDICES = (torch.int32, torch.int64)
_is_profiling = torch.autograd._profiler_enabled

Count = torch.SymInt  # an integer that is another one in each call: torch.compile makes no new graph for it

# ---- the library -------------------------------------------------------------------------------------------------------


def _head(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ids: Tensor | None, compute: int) -> tuple:
    """Operands in the order of the C structs, as the products take them."""
    dtype = COMPUTE[compute]
    return (matrix(x.to(dtype)), weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous(),
            target.contiguous(), None if ids is None else ids.contiguous())  # fmt: skip


def _bound(target: Tensor, ignore_index: int, valid_rows: int) -> int:
    """How many rows are multiplied at most. Where one can look at them and not wait, they are counted."""
    if valid_rows < 0 and type(target) in PLAIN and target.device.type == "cpu":
        return int(target.ne(ignore_index).sum())
    return valid_rows if 0 <= valid_rows < target.shape[0] else target.shape[0]


def may_keep(x: Tensor, options: tuple) -> bool:
    """May logits live until backward, which saves making them again? If somebody has named a budget, as far as it holds them;
    by itself on a CPU in float32, where memory costs less than a product."""
    return NAMED_BUDGET > 0 or (x.device.type == "cpu" and COMPUTE[options[-1]] is torch.float32)


_IN_DWEIGHT = 2  # the library's logits_kept


class Kept(NamedTuple):
    """The logits of all rows that are multiplied, rows padded; or memory for the weight's gradient that begins with them."""

    memory: Tensor
    in_dweight: bool


def kernel_forward(
    operands: tuple, options: tuple, results: tuple, keep: bool = False, trains_weight: bool = False
) -> Kept | None:
    """Fills the results. Where all logits were there at once it answers them: backward may consume them. `keep`: they are, too,
    where the budget that somebody has named holds them, or they cost no more than an f32 accumulator of the weight's gradient.
    If the weight is trained they lie where that gradient will be, if they are half of it or more: it waits for backward, too."""
    x, weight, target, bias, ids = operands
    *numbers, compute = options
    head = _head(x, weight, target, bias, ids, compute)
    numbers[1] = most = _bound(target, numbers[0], numbers[1])
    chunk = _native.linear_logprob_forward_chunk_rows(*head, *(None,) * 9, *numbers, keep)
    vocab, dtype = weight.shape[0], COMPUTE[compute]
    memory: Any = None
    buffer: Any = None
    in_dweight = keep and trains_weight and chunk >= most > 0 and _fits_dweight(head, numbers, weight.dtype is dtype)
    if in_dweight:
        memory = fresh(torch.empty(weight.shape, dtype=dtype, device=x.device))
        buffer = memory.view(-1)[: most * vocab].view(most, vocab)
    elif chunk:
        memory = padded_logits(x, chunk, vocab, dtype)
        buffer = memory[:, :vocab]
    _native.linear_logprob_forward(*head, buffer, *results, *numbers, keep, Wish.SCRATCH)
    return Kept(memory, in_dweight) if memory is not None and chunk >= most else None


def kernel_backward(
    upstreams: tuple,
    operands: tuple,
    known: tuple,
    options: tuple,
    needs: tuple,
    kept: Kept | None,
    final: bool = True,
    wide_dx: bool = False,
) -> tuple:
    """The gradients of x, weight and bias. Kept logits are lost. Not `final`: they are to be multiplied before they are
    rounded, so dweight and dbias are float32, and dx is of the products' dtype. `wide_dx`: dx is float32, for a sum over
    processes."""
    x, weight, target, bias, ids = operands
    log_prob, normalizer, entropy, log_sum_sq_probs = known
    *numbers, compute = options
    dtype, vocab = COMPUTE[compute], weight.shape[0]
    head = _head(x, weight, target, bias, ids if upstreams[5] is not None else None, compute)
    numbers[1] = most = _bound(target, numbers[0], numbers[1])
    given = [None if u is None else u.float().contiguous() for u in upstreams]
    needed = (log_prob if given[0] is not None else None, normalizer, entropy if given[1] is not None else None,
              log_sum_sq_probs if given[3] is not None else None)  # fmt: skip
    of_dx = torch.float32 if wide_dx else dtype
    dx = fresh(torch.empty(x.shape, dtype=of_dx, device=x.device)) if needs[0] else None
    cols = vocab if kept is not None else _slice_cols(head, numbers, dx)
    exact = dtype if weight.dtype is dtype and final else torch.float32
    logits: Tensor | None = None
    dweight: Tensor | None = None
    if kept is not None and kept.in_dweight:
        dweight = kept.memory.contiguous()
    elif needs[1]:
        dweight = fresh(torch.empty(weight.shape, dtype=exact, device=x.device))
    if kept is not None and not kept.in_dweight:
        logits = kept.memory
    elif kept is None and most:
        logits = padded_logits(x, most, cols, dtype)
    dbias = x.new_empty(vocab, dtype=torch.float32) if needs[2] else None
    _native.linear_logprob_backward(
        *head, None if logits is None else logits[:, :cols], *needed, *given, dx, dweight, dbias,
        *numbers, 0 if kept is None else _IN_DWEIGHT if kept.in_dweight else 1, Wish.SCRATCH,
    )  # fmt: skip
    del logits  # what is rounded may take its memory
    if not final:
        return dx, dweight, dbias
    likes = (None if wide_dx else x, weight, bias)
    return tuple(
        g if g is None or like is None or g.dtype is like.dtype else cast(g, like.dtype)
        for g, like in zip((dx, dweight, dbias), likes)
    )


def one_pass(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, temperature: float, ignore_index: int,
    valid_rows: int, needs: tuple[bool, bool, bool], weigh: Callable[[Tensor], tuple[Any, Tensor | None]],
) -> tuple[Any, tuple, Tensor | None]:  # fmt: skip
    """`weigh(log_probs)` -> (anything, its gradient or None); that thing, and the gradients of x, weight and bias, all times
    the power of two that is the third answer, where there is one. The tensors are plain. valid_rows as the operator takes it:
    -1 if nobody has counted them.

    There is a power where products are float16, which small gradients of an unscaled loss would leave before they are scaled.
    """
    operands = (x, weight, target, bias, None)
    options = (ignore_index, valid_rows, 1.0, 0.0, temperature, COMPUTE.index(compute_dtype(x, weight)))
    log_probs, normalizer, *others = linear_logprob._results((*operands, *options), (False,) * 6, _native.new)
    results = (log_probs, *others, normalizer)
    kept = kernel_forward(operands, options, results, keep=any(needs), trains_weight=needs[1])
    found, dlog_probs = weigh(log_probs)
    if not any(needs):
        return found, (None,) * 3, None
    if dlog_probs is None:
        zeros = [torch.zeros_like(t) if need and t is not None else None for t, need in zip((x, weight, bias), needs)]
        return found, tuple(zeros), None
    factor = None
    if COMPUTE[options[-1]] is torch.float16 and dlog_probs.numel():
        exponent = torch.frexp(dlog_probs.abs().amax()).exponent.clamp(min=-126)  # its power is a float32 number
        factor = torch.ldexp(torch.ones_like(dlog_probs[0]), -exponent)
        dlog_probs = dlog_probs * factor
    known = (log_probs, normalizer, None, None)
    upstreams = (dlog_probs, *(None,) * 5)
    return found, kernel_backward(upstreams, operands, known, options, needs, kept, factor is None), factor


def _slice_cols(head: tuple, numbers: list, dx: Tensor | None) -> int:
    return _native.linear_logprob_backward_slice_cols(*head, *(None,) * 11, dx, None, None, *numbers, 0)


def _fits_dweight(head: tuple, numbers: list, rounded_once: bool) -> bool:
    """Can, and should, all logits be kept where the weight's gradient will be? Fewer would have much more memory wait with them."""
    half_or_more = rounded_once and head[1].dtype is not torch.float16 and 2 * numbers[1] >= head[1].shape[1]
    return (
        half_or_more
        and _native.linear_logprob_backward_slice_cols(*head, *(None,) * 12, head[1], None, *numbers, _IN_DWEIGHT) == 0
    )


# ---- the operators -----------------------------------------------------------------------------------------------------


def require_head(
    operator: str, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, ids: Tensor | None
) -> None:
    require_float(operator, x=x, weight=weight, bias=bias)
    require_matrices(operator, x=x, weight=weight)
    require_shape(operator, "weight", weight, (weight.shape[0], x.shape[1]))
    require_shape(operator, "bias", bias, weight.shape[:1])
    require_shape(operator, "target", target, x.shape[:1])
    for name, value in (("target", target), ("selected_ids", ids)):
        if value is not None and value.dtype not in _INDICES:
            raise LigerArgumentError(f"{operator}: {name} is {value.dtype}, but must be int32 or int64")
    if ids is not None and ids.dim() != 1:
        raise LigerArgumentError(f"{operator}: selected_ids has {ids.dim()} dimensions, but must have 1")
    if 0 in weight.shape:
        raise LigerArgumentError(f"{operator}: weight has shape {tuple(weight.shape)}, but no size may be 0")


class OnAHead(EachShaped):
    """Operands are brought to what products take inside of the call."""

    floats: tuple[int, ...]

    def prepared(self, *args: Any) -> Any:
        return self.eager(*args)

    def require_floats(self, args: tuple, words: dict[str, str] | None = None) -> None:
        named = {self.inputs[i].name: args[i] for i in self.floats}
        require_float(self.name, **{(words or {}).get(name, name): value for name, value in named.items()})

    def now(self, *args: Any) -> Any:
        return self.traced(*args) if have_no_memory(*args) else super().now(*args)


class _LinearLogprob(OnAHead):
    floats = (0, 1, 3)

    def shapes(self, x: Tensor, _weight: Tensor, _target: Tensor, _bias: Any, ids: Tensor | None, *_: Any) -> tuple:
        rows, f32 = x.shape[0], torch.float32
        selected = ((rows, 0 if ids is None else ids.numel()), f32)
        return ((rows,), f32), ((rows, 2), f32), *(((rows,), f32),) * 4, ((rows,), torch.bool), selected

    def require(self, *args: Any) -> None:
        require_head(self.name, *args[:5])


@_LinearLogprob
def linear_logprob(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, selected_ids: Tensor | None,
    ignore_index: int, valid_rows: Count, scale: float, softcap: float, temperature: float, compute: int,
    log_prob: Made = Wish.LIKE, normalizer: Made = Wish.LIKE, entropy: Asked = Wish.LIKE, lse: Asked = Wish.LIKE,
    log_sum_sq_probs: Asked = Wish.LIKE, mean_logits: Asked = Wish.LIKE, is_top1: Asked = Wish.LIKE,
    selected: Asked = Wish.LIKE,
) -> Any:  # fmt: skip
    results = (log_prob, entropy, lse, log_sum_sq_probs, mean_logits, is_top1, selected, normalizer)
    ids = None if selected is None else selected_ids
    options = (ignore_index, valid_rows, scale, softcap, temperature, compute)
    return kernel_forward((x, weight, target, bias, ids), options, results)


def of_results(upstreams: tuple, x: Tensor) -> tuple:
    """None where it is that of a result which nobody asked for: torch.compile may make zeros of the empty tensor that stands for
    it."""
    return tuple(None if u is None or u.shape[0] != x.shape[0] else u for u in upstreams)


class _Gradients(OnAHead):
    floats = (6, 7, 9)

    def shapes(self, *given: Any) -> tuple:
        x, weight, bias = given[6], given[7], given[9]
        return x, weight, bias if bias is not None else ((0,), torch.float32)

    def eager(self, *args: Any) -> Any:
        return kernel_backward(of_results(args[:6], args[6]), args[6:11], args[11:15], args[15:21], args[21:], None)


def _gradient(
    dlog_prob: Tensor | None, dentropy: Tensor | None, dlse: Tensor | None, dlog_sum_sq_probs: Tensor | None,
    dmean_logits: Tensor | None, dselected: Tensor | None, x: Tensor, weight: Tensor, target: Tensor,
    bias: Tensor | None, selected_ids: Tensor | None, log_prob: Tensor, normalizer: Tensor, entropy: Tensor | None,
    log_sum_sq_probs: Tensor | None, ignore_index: int, valid_rows: Count, scale: float, softcap: float,
    temperature: float, compute: int, dx: Asked = Wish.LIKE, dweight: Asked = Wish.LIKE, dbias: Asked = Wish.LIKE,
) -> Any:  # fmt: skip
    """What is read of it is the signature: `_Gradients.eager` makes the call."""


linear_logprob.gradient(_gradient, _Gradients)


def forward_products(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """For FlopCounterMode: 2 N V H of the logits."""
    return 2 * x[0] * x[1] * weight[0]


def backward_products(*given: Any, **_: Any) -> int:
    """The logits again, and as many for each gradient but the bias's."""
    x, weight, (need_dx, need_dweight) = given[6], given[7], given[-3:-1]
    return 2 * x[0] * x[1] * weight[0] * (1 + bool(need_dx) + bool(need_dweight))


register_flop_formula(torch.ops.liger.linear_logprob)(forward_products)
register_flop_formula(torch.ops.liger.linear_logprob_backward)(backward_products)

# ---- the Function ------------------------------------------------------------------------------------------------------


def check_options(
    temperature: float, softcap: float | None, scale: float, valid_rows: int | None, outputs: Any
) -> None:
    """What is refused of them, for a caller who may be a user."""
    require_temperature(temperature)
    if softcap is not None and not 0 < softcap < math.inf:
        raise LigerArgumentError(f"softcap is {softcap}, but must be None, or finite and larger than 0")
    if not -math.inf < scale < math.inf:
        raise LigerArgumentError(f"scale is {scale}, but must be finite")
    if valid_rows is not None and (isinstance(valid_rows, bool) or not isinstance(valid_rows, int) or valid_rows < 0):
        raise LigerArgumentError(f"valid_rows is {valid_rows!r}, but must be None, or an integer of 0 or more")
    if isinstance(outputs, str) or any(name not in OUTPUTS for name in outputs) or len(set(outputs)) != len(outputs):
        raise LigerArgumentError(f"outputs is {outputs!r}, but must be a sequence of some of {list(OUTPUTS)}")


def flat_rows(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(hidden, Tensor) and isinstance(targets, Tensor) and targets.shape != hidden.shape[:-1]:
        raise LigerArgumentError(
            f"linear_logprob: targets has shape {tuple(targets.shape)}, but hidden has {tuple(hidden.shape)}"
        )
    return hidden.reshape(math.prod(hidden.shape[:-1]), hidden.shape[-1]), targets.reshape(-1)


def profiled(context: str) -> Any:
    return torch.profiler.record_function(context) if _is_profiling() else contextlib.nullcontext()


class LigerLinearLogProbFunction(LigerFunction):
    """`apply(hidden, weight, targets, bias=None, selected_token_ids=None, temperature=1.0, softcap=None, scale=1.0,
    ignore_index=-100, valid_rows=None, outputs=())` -> log p of the targets, or a tuple of it and what `outputs` names.

    z = softcap(scale·(hidden·weightᵀ + bias))/temperature with softcap(v) = c·tanh(v/c), p = softmax(z). hidden [..., H],
    weight [V, H], targets [...] int32 or int64, bias [V] or None. All results are float32 of targets' shape, and 0 where
    the target is ignore_index: the log-probability always; then, in the order of `outputs`, of "entropy" -Σ p log p, "lse"
    log Σ exp z, "log_sum_sq_probs" log Σ p², "mean_logits" Σ z/V, and "is_top1", whether the target is the first of the
    largest logits (bool, no gradient); with selected_token_ids [K] last log p of these ids over the whole vocabulary, [..., K].

    Differentiable in hidden, weight and bias through all of them. Logits are rounded to the products' dtype, autocast's where
    it is on; backward makes them again, a slice of the vocabulary at a time, unless they were so few that they were kept, or
    LIGER_LOSS_WORKSPACE_MB is set and holds them all (not under torch.compile).
    Rows that are ignored are left out of the products on the CPU; on a GPU if valid_rows, an integer that the caller has on
    the host, bounds the others from above. Surplus rows cost as much as others; too small a bound makes every result NaN on
    a GPU, which is not waited for, and is an error on the CPU.
    """

    operator = linear_logprob
    gradients = ("hidden", "weight", "bias")
    held = ("targets", "selected_token_ids")

    @classmethod
    def _taken(cls, args: tuple) -> tuple[dict, tuple, tuple]:
        """The public arguments by name; the operator's tensors and its options."""
        given = dict(zip(cls.parameters, cls.complete(args)))
        weight, ids, cap, valid = (given[n] for n in ("weight", "selected_token_ids", "softcap", "valid_rows"))
        check_options(given["temperature"], cap, given["scale"], valid, given["outputs"])
        hidden, targets = flat_rows(given["hidden"], given["targets"])
        if is_debugging(targets):
            check_targets(targets, weight.shape[0], given["ignore_index"])
        require_float("linear_logprob", hidden=hidden, weight=weight, bias=given["bias"])
        options = (given["ignore_index"], -1 if valid is None else valid, float(given["scale"]), float(cap or 0.0),
                   float(given["temperature"]), COMPUTE.index(compute_dtype(hidden, weight)))  # fmt: skip
        return given, (hidden, weight, targets, given["bias"], ids), options

    @staticmethod
    def arguments(*args):
        _given, operands, options = LigerLinearLogProbFunction._taken(args)
        return *operands, *options

    @classmethod
    def _flags(cls, given: dict) -> tuple:
        return *(name in given["outputs"] for name in OUTPUTS), given["selected_token_ids"] is not None

    @staticmethod
    def _public(given: dict, log_prob: Tensor, others: tuple) -> Any:
        """What a caller gets, of the operator's results behind the normalizer."""
        shape, found = given["targets"].shape, dict(zip(OUTPUTS, others))
        results = [log_prob.view(shape), *(found[name].view(shape) for name in given["outputs"])]
        if given["selected_token_ids"] is not None:
            results.append(others[5].view(*shape, others[5].shape[1]))
        return tuple(results) if len(results) > 1 else results[0]

    @staticmethod
    def forward(ctx, *args):
        cls = LigerLinearLogProbFunction
        cls.check_shapes(args)
        given, operands, options = cls._taken(args)
        needs, flags, kept_logits = ctx.needs_input_grad, cls._flags(given), None
        if is_plain(*operands):
            with profiled("liger::linear_logprob"):
                log_prob, normalizer, *others = linear_logprob._results((*operands, *options), flags, _native.new)
                keep = any(needs) and may_keep(operands[0], options)
                results = (log_prob, *others, normalizer)
                kept_logits = kernel_forward(operands, options, results, keep, trains_weight=needs[1])
        else:
            log_prob, normalizer, *others = linear_logprob(*operands, *options, *flags)
        ctx.needs = (needs[0], needs[1], given["bias"] is not None and len(needs) > 3 and needs[3])
        ctx.set_materialize_grads(False)
        if any(ctx.needs):
            x, weight, target, bias, ids = operands
            ctx.options, ctx.names, ctx.shape = options, tuple(given["outputs"]), given["hidden"].shape
            known = (log_prob, normalizer, others[0], others[2])
            memory, ctx.in_dweight = kept_logits or (None, False)
            ctx.save_for_backward(x, weight, kept_labels(target), bias, kept(ids), *known, memory)
        public = cls._public(given, log_prob, tuple(others))
        if "is_top1" in given["outputs"]:
            ctx.mark_non_differentiable(public[1 + given["outputs"].index("is_top1")])
        return public

    @staticmethod
    def backward(ctx, dlog_prob, *others):
        refuse_second_derivative("LigerLinearLogProbFunction")
        count = len(ctx.needs_input_grad)
        named = dict(zip((*ctx.names, "selected"), others))
        upstreams = (dlog_prob, *(named.get(name) for name in (*OUTPUTS[:4], "selected")))
        if all(u is None for u in upstreams):
            return (None,) * count
        leading = len(ctx.shape) - 1
        flat = [None if u is None else u.reshape(math.prod(ctx.shape[:-1]), *u.shape[leading:]) for u in upstreams]
        saved, free = take_saved(ctx)
        operands, known = saved[:5], saved[5:9]
        kept_logits = Kept(saved[9], ctx.in_dweight) if free[9] else None
        if is_plain(*flat, *operands):
            with profiled("liger::linear_logprob_backward"):
                found = kernel_backward(tuple(flat), operands, known, ctx.options, ctx.needs, kept_logits)
        else:
            found = linear_logprob.derivative(*flat, *operands, *known, *ctx.options, *ctx.needs)
        dx, dweight, dbias = (g if need else None for g, need in zip(found, ctx.needs))
        dx = None if dx is None else dx.view(ctx.shape)
        return (dx, dweight, None, dbias, *(None,) * 7)[:count]

    @classmethod
    def compiled(cls, *args):
        given, operands, options = cls._taken(args)
        log_prob, _normalizer, *others = linear_logprob.traced(*operands, *options, *cls._flags(given))
        return cls._public(given, log_prob, tuple(others))

    @classmethod
    def check(cls, *args):
        given, (x, weight, target, bias, ids), _options = cls._taken(args)
        require_head(cls.operator.name, x, weight, target, bias, ids)
        values = readable(target)
        if values is not None:
            check_targets(values, weight.shape[0], given["ignore_index"])

    @staticmethod
    def torch_forward(
        hidden,
        weight,
        targets,
        bias=None,
        selected_token_ids=None,
        temperature=1.0,
        softcap=None,
        scale=1.0,
        ignore_index=-100,
        valid_rows=None,
        outputs=(),
    ):
        dtype = compute_dtype(hidden, weight)
        counts, labels = targets != ignore_index, torch.where(targets == ignore_index, 0, targets).long()
        hidden = torch.where(counts.unsqueeze(-1), hidden, 0)  # what is not read may be NaN
        z = (
            scale
            * torch.nn.functional.linear(*(None if t is None else t.to(dtype) for t in (hidden, weight, bias))).float()
        )
        z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
        log_p = z.log_softmax(-1)
        p = log_p.exp()
        values = {
            "entropy": lambda: torch.special.entr(p).sum(-1),
            "lse": lambda: z.logsumexp(-1),
            "log_sum_sq_probs": lambda: (2 * log_p).logsumexp(-1),
            "mean_logits": lambda: z.mean(-1),
            "is_top1": lambda: z.argmax(-1) == labels,
        }
        chosen = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        results = [
            torch.where(counts, value, 0)
            for value in (chosen, *(values[name]() for name in outputs if name != "is_top1"))
        ]
        if "is_top1" in outputs:
            results.insert(1 + list(outputs).index("is_top1"), counts & values["is_top1"]())
        if selected_token_ids is not None:
            results.append(torch.where(counts.unsqueeze(-1), log_p[..., selected_token_ids.long()], 0))
        return tuple(results) if len(results) > 1 else results[0]


__all__ = ["OUTPUTS", "LigerArgumentError", "LigerLinearLogProbFunction"]
