"""GRPO and its relatives on logits that are there: the formulas of `_policy_loss` on log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import readable, require_shape, unrecorded
from liger_kernel.ops._formula import require_tensors as require_each
from liger_kernel.ops._function import _DISABLED, OwnApply, WithoutGradient, refuse_second_derivative
from liger_kernel.ops._memory import constant, is_plain, kept_labels, require_float, stand_for_batches, take_saved
from liger_kernel.ops._operator import LigerArgumentError, is_transformed
from liger_kernel.ops._policy_loss import (
    PER_TOKEN_ONLY,
    PolicyLoss,
    masked_mean,
    reduced,
    require_level,
    require_ratio,
)
from liger_kernel.ops.cross_entropy import refuse_strays
from liger_kernel.ops.linear_logprob import check_options

_PIECE = 1 << 24  # logits that are float32 at a time

# ---- log-probabilities of given logits ---------------------------------------------------------------------------------


def _pieces(rows: int, vocab: int) -> Iterator[slice]:
    step = max(_PIECE // max(vocab, 1), 1)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _labels(name: str, ids: Tensor, counts: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """[B·(L + 1)]: the token of each row, 0 where there is none to read, and the rows whose id is outside of the vocabulary.
    Callers call the ids `name`."""
    strays = counts & ((ids < 0) | (ids >= vocab))
    values, wrong = readable(ids), readable(strays)
    if values is not None and wrong is not None:
        refuse_strays(name, values, wrong, vocab)
    elif is_debugging(ids):
        refuse_strays(name, ids, strays, vocab)
    ids = torch.where(counts & ~strays, ids, 0).long()
    return tuple(torch.nn.functional.pad(t, (0, 1)).flatten() for t in (ids, strays))  # type: ignore[return-value]


def _log_probs(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's label and the logarithm of its sum of exponentials, float32."""
    flat = logits.reshape(labels.shape[0], logits.shape[-1])
    chosen, normalizers = (torch.empty(labels.shape, dtype=torch.float32, device=logits.device) for _ in range(2))
    for piece in _pieces(*flat.shape):
        z = flat[piece].float() / temperature
        normalizers[piece] = z.logsumexp(-1)
        chosen[piece] = z.gather(-1, labels[piece, None]).squeeze(-1)
    return chosen - normalizers, normalizers


def _of_completion(flat: Tensor, counts: Tensor, strays: Tensor) -> Tensor:
    """[B, L] of [B·(L + 1)]: 0 where nothing is read, NaN where the id is no token."""
    values = torch.where(strays, torch.nan, flat).view(counts.shape[0], counts.shape[1] + 1)[:, :-1]
    return torch.where(counts, values, 0)


def _dlogits(
    logits: Tensor, labels: Tensor, normalizers: Tensor, dlog_probs: Tensor, temperature: float, over: bool
) -> Tensor:
    """dlog_probs·(onehot - softmax)/temperature, rows of 0 where it is 0; in the logits' own memory if `over`."""
    made = logits.data if over else torch.empty_like(logits, memory_format=torch.contiguous_format)
    source, target = (t.reshape(labels.shape[0], logits.shape[-1]) for t in (logits.data, made))
    for piece in _pieces(*source.shape):
        weights = dlog_probs[piece, None] / temperature
        gradient = (source[piece].float() / temperature - normalizers[piece, None]).exp_().mul_(-weights)
        chosen = labels[piece, None]
        gradient.scatter_(-1, chosen, gradient.gather(-1, chosen) + weights)
        target[piece] = gradient.masked_fill_(weights == 0, 0)
    return made


def _dlogits_of_many(
    logits: Tensor, labels: Tensor, normalizers: Tensor, dlog_probs: Tensor, temperature: float
) -> Tensor:
    """The same of a batch of upstreams, [B, L] each, which torch maps over these operations."""
    rows = (*logits.shape[:2], 1)
    softmax = (logits.float() / temperature - normalizers.view(rows)).exp()
    differences = torch.zeros_like(softmax).scatter_(-1, labels.view(rows), 1) - softmax
    weights = torch.cat((dlog_probs, torch.zeros_like(dlog_probs[:, :1])), 1).unsqueeze(-1) / temperature
    return torch.where(weights == 0, 0, differences * weights).to(logits.dtype)


def fused_selective_log_softmax(
    logits: Tensor, input_ids: Tensor, temperature: float = 0.9, mask: Tensor | None = None
) -> Tensor:
    """Log-probabilities [B, L], float32 and without a gradient, of the last L of input_ids under logits [B, L + 1, V]; 0 where
    the last L columns of the mask are 0. No more than a piece of the logits is widened at a time."""
    name = "fused_selective_log_softmax"
    require_each(name, logits=logits, input_ids=input_ids)
    _require_logits(name, logits, temperature)
    assert logits.is_contiguous(), "logits must be contiguous"
    batch, length = logits.shape[0], logits.shape[1] - 1
    for label, tensor in (("input_ids", input_ids), ("mask", mask)):
        if tensor is not None and (tensor.dim() != 2 or tensor.shape[0] != batch or tensor.shape[1] < length):
            raise LigerArgumentError(
                f"{name}: {label} has shape {tuple(tensor.shape)}, but must have ({batch}, {length}) or more columns"
            )
    ids = input_ids[:, input_ids.shape[1] - length :]
    counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, mask.shape[1] - length :] != 0
    _require_beside(name, logits, (batch, length), input_ids=ids, mask=counts)
    with torch.no_grad():
        labels, strays = _labels(f"{name}: input_ids", ids, counts, logits.shape[-1])
        return _of_completion(_log_probs(logits.detach(), labels, temperature)[0], counts, strays)


# ---- the Function ------------------------------------------------------------------------------------------------------


class GrpoLossFunction(torch.autograd.Function, metaclass=OwnApply):
    """`apply(logits [B, L + 1, V], old_logp [B, L] | None, ref_logp | None, completion_ids [B, L], advantages [B],
    completion_mask | None, temperature, beta, eps_low, eps_high, inplace, loss_type="grpo", max_completion_length=None,
    reduce=True, importance_sampling_level="token", sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vllm_is_ratio=None,
    delta=None, use_bias_correction_kl=False, num_items_in_batch=None, phi_seq=None)` -> (loss, kl | None, is_clipped).

    Row t of the logits predicts token t of the completion; the last predicts nothing. reduce=False: [B, L] each, 0 where the
    mask is 0; reduce=True: the loss, the mean of kl and the part of the tokens that is clipped, 0-d. Formulas and reductions
    are those of `LigerFusedLinearGRPOFunction`, but LUSPO leaves masked tokens out and divides by B·L. phi_seq [B, 1] are the
    weights of VESPO, which are computed where it is None.
    Backward may write the gradient into the logits' memory if inplace, the graph is freed and nobody else holds it.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not is_plain(*tensors) or is_transformed() or "grpo_loss" in _DISABLED:
            return cls._composed(*args)
        if torch.is_grad_enabled() and args[0].requires_grad:
            return super().apply(*args)
        return cls.forward(WithoutGradient(), *args)

    @staticmethod
    def forward(
        ctx,
        logits,
        old_logp,
        ref_logp,
        completion_ids,
        advantages,
        completion_mask,
        temperature,
        beta,
        eps_low,
        eps_high,
        inplace,
        loss_type="grpo",
        max_completion_length=None,
        reduce=True,
        importance_sampling_level="token",
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        vllm_is_ratio=None,
        delta=None,
        use_bias_correction_kl=False,
        num_items_in_batch=None,
        phi_seq=None,
    ):
        require_tensors(logits, old_logp, ref_logp, completion_ids, advantages, completion_mask, temperature)
        loss = PolicyLoss(
            loss_type, importance_sampling_level, beta, eps_low, eps_high, delta,
            (sapo_temperature_pos, sapo_temperature_neg), use_bias_correction_kl, vespo_weights=constant(phi_seq),
            skips_masked=True,
        )  # fmt: skip
        counts = torch.ones_like(completion_ids) if completion_mask is None else completion_mask
        counts = counts != 0
        length = counts.shape[1] if max_completion_length is None else max_completion_length
        constants = [constant(t) for t in (advantages, old_logp, ref_logp, vllm_is_ratio)]

        def results(log_probs: Tensor) -> tuple:
            terms, kl, is_clipped = loss.terms(log_probs, counts, *constants)
            terms = torch.where(counts, terms, 0)
            others = [None if t is None else torch.where(counts, t, 0) for t in (kl, is_clipped.float())]
            if not reduce:
                return terms, *others
            means = [None if t is None else masked_mean(t, counts) for t in others]
            return reduced(terms, counts, loss_type, length, num_items_in_batch), *means

        labels, strays = _labels("completion_ids", completion_ids, counts, logits.shape[-1])
        if ctx is None:
            read = torch.nn.functional.pad(counts, (0, 1)).unsqueeze(-1)  # what is not may be NaN
            log_p = (torch.where(read, logits.float(), 0) / temperature).log_softmax(-1).flatten(0, 1)
            chosen = log_p.gather(-1, labels[:, None]).squeeze(-1)
            value, *others = results(_of_completion(chosen, counts, strays))
            return (value, *(None if t is None else t.detach() for t in others))
        chosen, normalizers = _log_probs(logits.detach(), labels, temperature)
        leaf = _of_completion(chosen, counts, strays).requires_grad_()
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            value, *others = results(leaf)
        if ctx.needs_input_grad[0]:
            ctx.formula = (value, leaf)
            ctx.temperature, ctx.inplace = temperature, inplace
            ctx.save_for_backward(logits, kept_labels(labels), normalizers)
        others = [None if t is None else t.detach() for t in others]
        ctx.mark_non_differentiable(*(t for t in others if t is not None))
        ctx.set_materialize_grads(False)
        return (value.detach(), *others)

    @staticmethod
    def backward(ctx, dvalue, *_others):
        refuse_second_derivative("GrpoLossFunction")
        count = len(ctx.needs_input_grad)
        if dvalue is None:
            return (None,) * count
        value, leaf = ctx.formula
        dlog_probs = torch.zeros_like(leaf)
        if value.requires_grad:
            (dlog_probs,) = torch.autograd.grad(value, leaf, dvalue, retain_graph=True)
        if stand_for_batches(dvalue):
            return (_dlogits_of_many(*ctx.saved_tensors, dlog_probs, ctx.temperature), *(None,) * (count - 1))
        saved, free = take_saved(ctx)
        weights = torch.nn.functional.pad(dlog_probs, (0, 1)).flatten()
        dlogits = _dlogits(*saved, weights, ctx.temperature, ctx.inplace and free[0])
        return (dlogits, *(None,) * (count - 1))

    @classmethod
    def _composed(cls, *args: Any) -> Any:
        """The same from torch's own operations, which compile and transform."""
        return cls.forward(None, *args)


# ---- what is refused ---------------------------------------------------------------------------------------------------


def _require_logits(function: str, logits: Tensor, temperature: float) -> None:
    require_float(function, logits=logits)
    if logits.dim() != 3 or logits.shape[1] == 0:
        raise LigerArgumentError(f"{function}: logits has shape {tuple(logits.shape)}, but must have (B, L + 1, V)")
    check_options(temperature, None, 1.0, None, ())


def _require_beside(function: str, logits: Tensor, shape: tuple, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, not {type(tensor).__name__}")
        require_shape(function, name, tensor, shape)
        if tensor.device != logits.device:
            raise LigerArgumentError(f"{function}: {name} is on {tensor.device}, but logits is on {logits.device}")
        if name.endswith("_ids") and tensor.dtype not in (torch.int32, torch.int64):
            raise LigerArgumentError(f"{function}: {name} is {tensor.dtype}, but must be int32 or int64")


@unrecorded
def require_tensors(
    logits: Tensor, old_logp: Tensor | None, ref_logp: Tensor | None, ids: Tensor, advantages: Tensor,
    mask: Tensor | None, temperature: float,
) -> None:  # fmt: skip
    """What would be broadcast, or be no tensor."""
    _require_logits("grpo_loss", logits, temperature)
    shape = (logits.shape[0], logits.shape[1] - 1)
    given = {"completion_ids": ids, "completion_mask": mask, "old_logp": old_logp, "ref_logp": ref_logp}
    _require_beside("grpo_loss", logits, shape, **given)
    one_each = shape[:1] if getattr(advantages, "ndim", 1) == 1 else (shape[0], 1)
    _require_beside("grpo_loss", logits, one_each, advantages=advantages)


@unrecorded
def require_call(
    logits: Tensor, old_logp: Tensor | None, ref_logp: Tensor | None, ids: Tensor, advantages: Tensor,
    mask: Tensor | None, temperature: float, beta: float, loss_type: str, level: str, ratio: Tensor | None,
    delta: float | None, temperatures: tuple[float, float],
) -> None:  # fmt: skip
    """Of a call on logits. Names are those of `triton_grpo_loss`."""
    assert logits is not None and ids is not None and advantages is not None, (
        "logits, completion_ids and advantages must be given"
    )
    assert beta == 0 or ref_logp is not None, "beta is not 0, but ref_logp is None"
    assert level in ("token", "sequence"), f"importance_sampling_level is {level!r}, but must be 'token' or 'sequence'"
    require_level(level, loss_type)
    if delta is not None and loss_type in PER_TOKEN_ONLY:
        raise ValueError(f"delta is given, but loss_type {loss_type!r} does not read it")
    if loss_type == "sapo" and min(temperatures) <= 0:
        raise ValueError(f"sapo_temperature_pos and sapo_temperature_neg are {temperatures}, but must be larger than 0")
    require_tensors(logits, old_logp, ref_logp, ids, advantages, mask, temperature)
    for name, tensor in (("logits", logits), ("completion_ids", ids), ("completion_mask", mask)):
        assert tensor is None or tensor.is_contiguous(), f"{name} must be contiguous"
    _require_beside("grpo_loss", logits, getattr(ratio, "shape", ()), vllm_is_ratio=ratio)
    require_ratio(ratio, *ids.shape)


__all__ = ["GrpoLossFunction", "fused_selective_log_softmax"]
