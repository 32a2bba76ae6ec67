"""What losses of a policy on a linear head derive from: a subclass brings a formula on the tokens' log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel.chunked_loss._head_loss import require_beside, require_head
from liger_kernel.chunked_loss._token_loss import (
    IGNORED,
    Head,
    TokenLossFunction,
)
from liger_kernel.ops import LigerLinearLogProbFunction
from liger_kernel.ops._memory import constant
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.ops._policy_loss import batch_normalizer, require_ratio
from liger_kernel.ops.linear_logprob import check_options


class LigerFusedLinearPPOBase(TokenLossFunction):
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

    bias_position = 5
    labels = "selected_token_ids"

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
        cls: Any,
        ctx: Any,
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
        name = cls.__name__
        check_options(temperature, None, 1.0, valid_rows, ())
        require_head(name, selected_token_ids, _input, weight, bias, labels="selected_token_ids")
        _require_batch(
            name,
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
            vllm_is_ratio=constant(vllm_is_ratio),
            delta=delta,
            use_bias_correction_kl=use_bias_correction_kl,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            num_items_in_batch=num_items_in_batch,
        )
        targets = selected_token_ids
        if cls.reads_masked(**options):
            valid_rows = None
        else:
            targets = torch.where(attention_mask != 0, targets, IGNORED)
        about_tokens = targets, float(temperature), valid_rows
        if not use_ref_model:
            ref_per_token_logps = None
        elif ref_per_token_logps is None:
            ref_per_token_logps = _reference(name, *about_tokens, ref_input, ref_weight, ref_bias)
        beside = (advantages, ref_per_token_logps, old_per_token_logps, attention_mask)
        *constants, mask = [constant(t) for t in beside]

        def loss_of(log_probs: Tensor) -> tuple[Tensor, Any]:
            return cls.ppo_loss_fn(
                per_token_logps=log_probs.view(targets.shape),
                attention_mask=mask,
                advantages=constants[0],
                full_attention_mask=mask,
                ref_per_token_logps=constants[1],
                old_per_token_logps=constants[2],
                **options,
            )

        return cls.evaluate(ctx, _head(*about_tokens, _input, weight, bias), _input.shape, loss_of)

    @staticmethod
    def backward(ctx, *grad_output):
        """Gradients of _input, weight and bias at their places, and None for what else apply was given."""
        dx, dweight, dbias = LigerFusedLinearPPOBase.scaled_gradients(ctx, grad_output)
        return (dx, dweight, None, None, None, dbias, *(None,) * (len(ctx.needs_input_grad) - 6))


def _head(
    targets: Tensor, temperature: float, valid_rows: int | None, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> Head:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return Head(flat, weight, targets.reshape(-1), bias, temperature, IGNORED, valid_rows=valid_rows)


def _reference(
    function: str, targets: Tensor, temperature: float, valid_rows: int | None, hidden: Any, weight: Any, bias: Any
) -> Tensor:
    """The tokens' log-probabilities under the reference model, from its hidden states and head."""
    if hidden is None:
        raise LigerArgumentError(f"{function}: use_ref_model is set, but ref_per_token_logps and ref_input are None")
    require_head(function, targets, hidden, weight, bias, "ref_", "selected_token_ids")
    operands = [None if t is None else t.detach() for t in (hidden, weight, bias)]
    head = _head(targets, temperature, valid_rows, *operands)  # type: ignore[arg-type]
    return head.log_probs_for(function, "selected_token_ids").view(targets.shape)


def _require_batch(function: str, ids: Tensor, **tensors: Tensor | None) -> None:
    """What stands beside the tokens, [B, T] or [B]."""
    for name, tensor in tensors.items():
        if tensor is None and name not in ("attention_mask", "advantages"):
            continue
        shape = getattr(tensor, "shape", ()) if name == "vllm_is_ratio" else ids.shape
        require_beside(function, name, tensor, ids.shape[:1] if name == "advantages" else shape, ids)
    require_ratio(tensors["vllm_is_ratio"], *ids.shape)


__all__ = ["LigerFusedLinearPPOBase"]
