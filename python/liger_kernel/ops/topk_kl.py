"""A linear head and its divergence from a teacher of whom the most probable ids are known: there is no memory for the full logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _native
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._distillation import (
    FormedLoss,
    FormsGradients,
    called,
    counted_rows,
    finish,
    formed_backward,
    formed_forward,
    gradient_where,
    share_of_a_row,
    total,
)
from liger_kernel.ops._formula import readable, require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._linear_head import (
    COMPUTE,
    accumulator,
    compute_dtype,
    padded_logits,
    require_matrices,
    require_temperature,
)
from liger_kernel.ops._memory import matrix, require_float
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Wish
from liger_kernel.ops.cross_entropy import refuse_strays

REDUCTIONS = ("batchmean", "mean", "sum")  # by the library's number
NO_ID = -1  # an empty place of a list
_IGNORED = 1  # of a mask

# ---- the operator ------------------------------------------------------------------------------------------------------


class _LinearTopKKL(FormsGradients):
    differentiable = (0, 1, 4)


@_LinearTopKKL
def linear_topk_kl(
    x: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor, bias: Tensor | None, labels: Tensor | None,
    ignore_index: int, temperature: float, reduction: int, compute: int,
    loss: Made = Wish.SCALAR, dx: Asked = Wish.LIKE, dweight: Asked = Wish.LIKE[1], dbias: Asked = Wish.LIKE[4],
) -> Any:  # fmt: skip
    dtype, vocab = COMPUTE[compute], weight.shape[0]
    operands = (matrix(x.to(dtype)), weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous(),
                matrix(ids), matrix(logprobs), None if labels is None else labels.contiguous())  # fmt: skip
    wanted = [wish != Wish.NOTHING for wish in (dx, dweight, dbias)]
    raw = dtype is torch.float16 and any(wanted)
    options = (ignore_index, temperature, reduction, raw)
    chunk = _native.linear_topk_kl_chunk_rows(
        *operands, None, None, None, operands[1] if dweight != Wish.NOTHING else None, None, *options
    )
    one = chunk == 0 or chunk >= x.shape[0]
    sums = accumulator(weight, dtype, not raw and one and weight.dtype is not torch.float32) if wanted[1] else None
    bias_sums = x.new_empty(vocab, dtype=torch.float32) if wanted[2] else None
    logits = padded_logits(x, chunk, vocab, dtype)[:, :vocab] if chunk else None
    loss, x_sums = _native.linear_topk_kl(*operands, logits, loss, dx, sums, bias_sums, *options, Wish.SCRATCH)
    del logits  # the rounded gradient may take its memory
    factor = None
    if raw and REDUCTIONS[reduction] != "sum":
        factor = share_of_a_row(labels, ignore_index, x, 1.0 / vocab if REDUCTIONS[reduction] == "mean" else 1.0)
    gradients = (x_sums, sums, None if bias is None else bias_sums)
    return (loss, *finish(gradients, (x, weight, bias), factor, raw, operands[5], ignore_index))


linear_topk_kl.register_derivative()


def _count_products(x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """For FlopCounterMode: 2 N V H of the logits, and as many for each gradient but the bias's."""
    return 2 * x[0] * x[1] * weight[0] * (1 + sum(map(bool, rest[-3:-1])))


register_flop_formula(torch.ops.liger.linear_topk_kl)(_count_products)

# ---- the Function ------------------------------------------------------------------------------------------------------


def check_options(reduction: str, temperature: float) -> None:
    if reduction not in REDUCTIONS:
        raise LigerArgumentError(f"reduction must be one of {', '.join(REDUCTIONS)}, but is {reduction!r}")
    require_temperature(temperature)


def _strays(ids: Tensor, vocab: int, ignore_mask: Tensor | None) -> Tensor:
    """Where there is neither an id nor an empty place, in rows that count."""
    wrong = (ids < NO_ID) | (ids >= vocab)
    return wrong if ignore_mask is None else wrong & ~ignore_mask.unsqueeze(-1)


def _refuse_strays(ids: Tensor, vocab: int, ignore_mask: Tensor | None) -> None:
    refuse_strays("topk_ids", ids, _strays(ids, vocab, ignore_mask), vocab, f" or {NO_ID}")


def _check(
    hidden: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor, bias: Tensor | None, ignore_mask: Tensor | None
) -> None:
    name = "topk_kl"
    require_float(name, hidden=hidden, weight=weight, topk_logprobs=logprobs, bias=bias)
    for what, given in (("topk_ids", ids), ("ignore_mask", ignore_mask)):
        if given is not None and not isinstance(given, Tensor):
            raise TypeError(f"{name}: {what} must be a torch.Tensor, not {type(given).__name__}")
    require_matrices(name, hidden=hidden, weight=weight, topk_ids=ids)
    require_shape(name, "weight", weight, (weight.shape[0], hidden.shape[1]))
    require_shape(name, "topk_ids", ids, (hidden.shape[0], ids.shape[1]))
    require_shape(name, "topk_logprobs", logprobs, ids.shape)
    require_shape(name, "bias", bias, weight.shape[:1])
    require_shape(name, "ignore_mask", ignore_mask, hidden.shape[:1])
    if ids.dtype not in (torch.int32, torch.int64):
        raise LigerArgumentError(f"{name}: topk_ids is {ids.dtype}, but must be int32 or int64")
    if ids.shape[1] == 0:
        raise LigerArgumentError(f"{name}: topk_ids has shape {tuple(ids.shape)}, but must have 1 id or more")
    if 0 in weight.shape:
        raise LigerArgumentError(f"{name}: weight has shape {tuple(weight.shape)}, but no size may be 0")
    if ignore_mask is not None and ignore_mask.dtype is not torch.bool:
        raise LigerArgumentError(f"{name}: ignore_mask is {ignore_mask.dtype}, but must be bool")


def _labels(ignore_mask: Tensor | None) -> Tensor | None:
    return None if ignore_mask is None else ignore_mask.to(torch.int32)


class LigerTopKKLFunction(FormedLoss, LigerFunction):
    """`apply(hidden, weight, topk_ids, topk_logprobs, bias=None, ignore_mask=None, reduction="batchmean", temperature=1.0)` ->
    loss, a float32 scalar.

    hidden [N, H], weight [V, H], bias [V] or None, topk_ids [N, k] int32 or int64, topk_logprobs [N, k] of any of the three float
    dtypes, ignore_mask [N] bool or None: True where a row does not count. With p = softmax((hidden·weightᵀ + bias)/temperature),
    q = exp(topk_logprobs) at the ids S of a row, the teacher's at the same temperature, r = 1 - Σ q and s the sum of p outside S a
    row is Σ_S q·(log q - log p) + r·(log r - log s); a term whose factor is 0 is 0. "batchmean" is the mean over rows that count,
    "mean" over their N·V elements, "sum" the sum.

    An id of -1 is an empty place of a list, whatever its logprob; a logprob of -inf says that an id has a probability of 0. Other
    ids outside [0, V) are refused on the CPU (ValueError) and make NaN of their row on a GPU, as an id that stands twice does
    on both, and a row whose q add up to more than 1: beyond what roundings explain, 2^-10 and -Σ q·log q times that of the
    logprobs' dtype; below, r is 0. Where S is all there is (other logits are -inf, or none are left) an r so small is 0 as well, and
    a larger one makes the loss infinite.

    Gradients of hidden, weight and bias are formed in forward; the parameters' accumulate in f32 and are rounded once. The
    teacher gets none. Under autocast the products run in its dtype.
    """

    operator = linear_topk_kl
    names = "topk_kl linear_topk_kl"
    gradients = ("hidden", "weight", "bias")
    held = ("topk_ids", "topk_logprobs", "ignore_mask")

    @staticmethod
    def forward(ctx, *args):
        return formed_forward(LigerTopKKLFunction, ctx, args)

    @staticmethod
    def backward(ctx, dloss):
        return formed_backward(LigerTopKKLFunction, ctx, dloss)

    @classmethod
    def loss_and_gradients(cls, given, *needs):
        return called(cls.operator, cls.arguments(*given.values()), *needs)

    @staticmethod
    def labels(given):
        return _labels(given["ignore_mask"]), _IGNORED

    @classmethod
    def arguments(cls, *args):
        *tensors, ignore_mask, reduction, temperature = cls.complete(args)
        check_options(reduction, temperature)
        _check(*tensors, ignore_mask)
        x, weight, ids = tensors[:3]
        if is_debugging(ids):
            _refuse_strays(ids, weight.shape[0], ignore_mask)
        compute = COMPUTE.index(compute_dtype(x, weight))
        return (*tensors, _labels(ignore_mask), _IGNORED, float(temperature), REDUCTIONS.index(reduction), compute)

    @classmethod
    def check(cls, *args):
        given = dict(zip(cls.parameters, cls.complete(args)))
        cls.arguments(*args)
        ids, mask = readable(given["topk_ids"]), given["ignore_mask"]
        mask = mask if mask is None else readable(mask)
        if ids is not None and (mask is None) == (given["ignore_mask"] is None):
            _refuse_strays(ids, given["weight"].shape[0], mask)

    @staticmethod
    def torch_forward(
        hidden,
        weight,
        topk_ids,
        topk_logprobs,
        bias=None,
        ignore_mask=None,
        reduction="batchmean",
        temperature=1.0,
    ):
        dtype, labels = compute_dtype(hidden, weight), _labels(ignore_mask)
        hidden = counted_rows(labels, _IGNORED, hidden)
        head = (None if t is None else t.to(dtype) for t in (hidden, weight, bias))
        z = gradient_where(labels, _IGNORED, torch.nn.functional.linear(*head).float() / temperature)
        rows = _divergence(z, topk_ids.long(), topk_logprobs)
        loss = total(rows, labels, _IGNORED, reduction != "sum")
        return loss / z.shape[-1] if reduction == "mean" else loss


def _divergence(z: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """Of each row, from its logits."""
    vocab, there = z.shape[-1], ids != NO_ID
    places, strays = ids.clamp(0, vocab - 1), _strays(ids, vocab, None)
    log_q = torch.where(there, logprobs.float(), -math.inf)
    times = torch.zeros_like(z, dtype=torch.int32).scatter_add(-1, places, there.int())
    outside = torch.where(times > 0, -math.inf, z)
    something = (outside != -math.inf).any(-1)
    rest, broken = _rest(log_q, something, torch.finfo(logprobs.dtype).eps / 2)
    lse, q = z.logsumexp(-1), log_q.exp()
    log_s = torch.where(something.unsqueeze(-1), outside, z).logsumexp(-1) - lse
    log_s = torch.where(something, log_s, -math.inf)
    log_p = z.gather(-1, places) - lse.unsqueeze(-1)
    rows = torch.where(q < torch.finfo(q.dtype).tiny, 0, q * (log_q - log_p)).sum(-1)
    rows = rows + torch.where(rest == 0, 0, rest * (rest.log() - log_s))
    broken = broken | strays.any(-1) | (times > 1).any(-1)
    return rows * torch.where(broken, math.nan, 1.0)


def _rest(log_q: Tensor, something: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """1 - Σ q, where it is not rounding, and whether Σ q is above 1 and that is not rounding. The one q that may be above 1/2 is
    not taken from 1 but 1 from it."""
    q, sure = log_q.exp(), log_q > -math.log(2)
    rest = 1 - torch.where(sure, 1 + torch.zeros_like(q), 0).sum(-1) - torch.where(sure, log_q.expm1(), 0).sum(-1)
    rest = rest - torch.where(sure, 0, q).sum(-1)
    rounding = 2.0**-10 + unit * torch.where(q == 0, 0, q * (-log_q).clamp(min=0)).sum(-1)
    broken = ~(rest >= -rounding)
    return torch.where((rest < 0) | (~something & (rest <= rounding)), 0, rest), broken


__all__ = ["LigerTopKKLFunction"]
