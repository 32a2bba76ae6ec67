"""What losses of a policy on a linear head derive from: a subclass brings a formula on the tokens' log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel._native import LigerArgumentError
from liger_kernel.chunked_loss._token_loss import (
    Head,
    are_plain,
    detached,
    gradients_times,
    keep_gradients,
    with_gradients,
)
from liger_kernel.ops import LigerLinearLogProbFunction
from liger_kernel.ops._formula import require_shape
from liger_kernel.ops._function import _OwnApply, _WithoutGradient, refuse_second_derivative
from liger_kernel.ops._memory import require_float
from liger_kernel.ops._policy_loss import batch_normalizer, require_ratio
from liger_kernel.ops.linear_logprob import check_options

IGNORED = torch.iinfo(
    torch.int32
).min  # no token, nor a label that others use for none: -100 is refused where it counts


class LigerFusedLinearPPOBase(torch.autograd.Function, metaclass=_OwnApply):
    """The base of losses of a policy: hidden states [B, T, H] and a head [V, H] in, (loss, metrics) out, no full logits.

    A subclass has `ppo_loss_fn`, a static method in differentiable torch operations, called once with the whole batch and with
    keywords alone:

        ppo_loss_fn(per_token_logps=[B, T] float32, attention_mask=, advantages=, full_attention_mask=attention_mask,
                    ref_per_token_logps=, old_per_token_logps=, epsilon_low=, epsilon_high=, beta=, loss_type=,
                    max_completion_length=, importance_sampling_level=, sapo_temperature_pos=, sapo_temperature_neg=,
                    vllm_is_ratio=, delta=, use_bias_correction_kl=, vespo_k_pos=, vespo_lambda_pos=, vespo_k_neg=,
                    vespo_lambda_neg=, num_items_in_batch=) -> (loss, metrics)

    and, to have an order of arguments of its own, a classmethod `forward(cls, ctx, ...)` that answers
    `super().forward(cls=cls, ctx=ctx, ...)`. `reads_masked(**options)` says whether the formula reads log-probabilities of
    masked tokens. It is True here; where it is False they are 0, their ids may be anything, and their rows are left out of the
    products on the CPU, and on a GPU where `valid_rows` bounds the number of the others.

    Gradients exist through the loss alone, for _input, weight and bias, each in its own dtype; backward answers them as (dx,
    dweight, None, None, None, dbias, None, ...). Beside the products a call costs the [B, T] operations of the formula, forward
    and backward. Under torch.compile, torch.func and for tensors without memory the formula stands behind the differentiable
    operator `linear_logprob`. compiled and chunk_size change nothing.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch.is_grad_enabled() and are_plain(*(a for a in args if isinstance(a, Tensor))):
            return super().apply(*args)
        return cls.forward(_WithoutGradient(), *args)  # by torch's own graph, or without any

    @staticmethod
    def ppo_loss_fn(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError("a subclass of LigerFusedLinearPPOBase has a ppo_loss_fn of its own")

    @staticmethod
    def reads_masked(**options: Any) -> bool:
        return True

    @staticmethod
    def chunk_forward(
        input_chunk: Tensor, weight: Tensor, selected_token_ids: Tensor, bias: Tensor | None = None, temperature=1.0
    ) -> Tensor:
        """Log-probabilities [b, t], float32, of the tokens under hidden states [b, t, H]. Differentiable."""
        return LigerLinearLogProbFunction.apply(
            input_chunk, weight, selected_token_ids, bias, None, temperature, None, 1.0, IGNORED
        )

    @staticmethod
    def _compute_dapo_normalizer(attention_mask: Tensor, num_items_in_batch: float | Tensor | None = None) -> Tensor:
        return batch_normalizer(attention_mask, num_items_in_batch)

    @staticmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        selected_token_ids,
        attention_mask,
        advantages,
        bias=None,
        ref_per_token_logps=None,
        old_per_token_logps=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.04,
        loss_type="dapo",
        max_completion_length=None,
        importance_sampling_level="token",
        temperature=1.0,
        compiled=True,
        use_ref_model=False,
        chunk_size=1,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        vllm_is_ratio=None,
        delta=None,
        use_bias_correction_kl=False,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        num_items_in_batch=None,
        valid_rows=None,
    ):
        check_options(temperature, None, 1.0, valid_rows, ())
        _require_tokens(_input, weight, bias, selected_token_ids)
        _require_batch(
            selected_token_ids,
            attention_mask=attention_mask,
            advantages=advantages,
            ref_per_token_logps=ref_per_token_logps,
            old_per_token_logps=old_per_token_logps,
            vllm_is_ratio=vllm_is_ratio,
        )
        options = dict(
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            beta=beta,
            loss_type=loss_type,
            max_completion_length=max_completion_length,
            importance_sampling_level=importance_sampling_level,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vllm_is_ratio=_constant(vllm_is_ratio),
            delta=delta,
            use_bias_correction_kl=use_bias_correction_kl,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            num_items_in_batch=num_items_in_batch,
        )
        beside = (selected_token_ids, attention_mask, _constant(advantages), _constant(old_per_token_logps))
        references = (_constant(ref_per_token_logps), ref_input, ref_weight, ref_bias) if use_ref_model else None
        return _evaluated(cls, ctx, (_input, weight, bias), beside, references, options, float(temperature), valid_rows)

    @staticmethod
    def backward(ctx, grad_output, *_grad_metrics):
        refuse_second_derivative("a loss of a policy on a linear head")
        dx, dweight, dbias = gradients_times(ctx, grad_output)
        dx = None if dx is None else dx.view(ctx.shape)
        return (dx, dweight, None, None, None, dbias, *(None,) * (len(ctx.needs_input_grad) - 6))


def _evaluated(
    cls: type[LigerFusedLinearPPOBase], ctx: Any, operands: tuple, beside: tuple, references: tuple | None, options: dict,
    temperature: float, valid_rows: int | None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """(loss, metrics): with the gradients where autograd has called, by torch's own graph else."""
    targets, mask, advantages, old = beside
    if cls.reads_masked(**options):
        valid_rows = None
    else:
        targets = torch.where(mask != 0, targets, IGNORED)
    reference = None
    if references is not None:
        reference, ref_hidden, ref_weight, ref_bias = references
        if reference is None:
            _require_tokens(ref_hidden, ref_weight, ref_bias, targets, "ref_")
            with torch.no_grad():
                ref_head = _head(ref_hidden, ref_weight, ref_bias, targets, temperature, valid_rows)
                reference = ref_head.log_probs().detach().view(targets.shape)

    def loss_of(log_probs: Tensor) -> tuple[Tensor, Any]:
        return cls.ppo_loss_fn(
            per_token_logps=log_probs.view(targets.shape),
            attention_mask=mask,
            advantages=advantages,
            full_attention_mask=mask,
            ref_per_token_logps=reference,
            old_per_token_logps=old,
            **options,
        )

    hidden, weight, bias = operands
    head = _head(hidden, weight, bias, targets, temperature, valid_rows)
    if isinstance(ctx, _WithoutGradient) and (torch.is_grad_enabled() or not are_plain(*operands, targets, mask)):
        loss, metrics = loss_of(head.log_probs())
        return loss, detached(metrics)
    needs = _needs(ctx, hidden, weight, bias)
    found, gradients = with_gradients(head, loss_of, needs)
    if any(needs):
        keep_gradients(ctx, head, gradients)
        ctx.shape = hidden.shape
    return found


def _constant(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach()


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, valid_rows: int | None
) -> Head:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return Head(flat, weight, targets.reshape(-1), bias, temperature, IGNORED, valid_rows)


def _needs(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[bool, bool, bool]:
    """Whose gradients are wanted: of arguments in the order of this file, and, where a subclass has another, by themselves."""
    if isinstance(ctx, _WithoutGradient):
        return False, False, False
    asked = ctx.needs_input_grad
    of_hidden, of_weight, of_bias = (
        t is not None and (t.requires_grad or (place < len(asked) and asked[place]))
        for t, place in ((hidden, 0), (weight, 1), (bias, 5))
    )
    return of_hidden, of_weight, of_bias


# ---- what is refused ---------------------------------------------------------------------------------------------------

_NAME = "fused_linear_ppo"


def _require_tokens(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, prefix: str = "", /) -> None:
    """Hidden states, head and bias fit each other and the ids."""
    named = {f"{prefix}input" if prefix else "_input": hidden, f"{prefix}weight": weight, f"{prefix}bias": bias}
    first, second, third = named
    for name in (first, second):
        if named[name] is None:
            raise LigerArgumentError(f"{_NAME}: {name} is None")
    require_float(_NAME, **named)
    _require_dimensions(first, hidden, 3)
    _require_dimensions(second, weight, 2)
    if not isinstance(ids, Tensor):
        raise TypeError(f"{_NAME}: selected_token_ids must be a torch.Tensor, not {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise LigerArgumentError(f"{_NAME}: selected_token_ids is {ids.dtype}, but must be int32 or int64")
    require_shape(_NAME, "selected_token_ids", ids, hidden.shape[:2])
    require_shape(_NAME, second, weight, (weight.shape[0], hidden.shape[2]))
    require_shape(_NAME, third, bias, weight.shape[:1])
    _require_device(ids, **named)


def _require_dimensions(name: str, tensor: Tensor, count: int) -> None:
    if tensor.dim() != count:
        raise LigerArgumentError(f"{_NAME}: {name} has {tensor.dim()} dimensions, but must have {count}")


def _require_device(ids: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != ids.device:
            raise LigerArgumentError(f"{_NAME}: {name} is on {tensor.device}, but selected_token_ids on {ids.device}")


def _require_batch(ids: Tensor, **tensors: Tensor | None) -> None:
    """What stands beside the tokens, [B, T] or [B]."""
    for name, tensor in tensors.items():
        if tensor is None and name not in ("attention_mask", "advantages"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{_NAME}: {name} must be a torch.Tensor, not {type(tensor).__name__}")
        if name != "vllm_is_ratio":
            require_shape(_NAME, name, tensor, ids.shape[:1] if name == "advantages" else ids.shape)
    require_ratio(tensors["vllm_is_ratio"], *ids.shape)
    _require_device(ids, **tensors)


__all__ = ["LigerFusedLinearPPOBase"]
