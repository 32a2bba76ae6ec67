"""GRPO and its relatives on logits that are there. On hidden states and a head, `liger_kernel.chunked_loss` needs no logits."""

from __future__ import annotations

from torch import Tensor

from liger_kernel.ops._policy_loss import get_gamma_weights, masked_mean, reduced
from liger_kernel.ops.grpo_loss import GrpoLossFunction, fused_selective_log_softmax, require_call


def triton_grpo_loss(
    logits, old_logp, ref_logp, completion_ids, advantages, completion_mask=None, temperature=0.9, beta=0.04,
    eps_low=0.2, eps_high=0.4, inplace=True, loss_type="dapo", max_completion_length=None,
    importance_sampling_level="token", reduce=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
    vllm_is_ratio=None, delta=None, use_bias_correction_kl=False, num_items_in_batch=None, vespo_k_pos=2.0,
    vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
):  # fmt: skip
    """The loss of a policy from its logits [B, L + 1, V], of which row t predicts token t of completion_ids [B, L]; old_logp and
    ref_logp [B, L] or None, advantages [B], completion_mask [B, L], of any dtype, or None.

    reduce=False: (loss, kl | None, is_clipped), [B, L] each, 0 where the mask is 0; reduce=True: (loss, [mean of kl, if beta is
    not 0, part of the tokens that is clipped]). See `GrpoLossFunction`. inplace permits the gradient to be formed in the logits'
    memory where nobody else can see it. The name is that of the function's first implementation.
    """
    temperatures = (sapo_temperature_pos, sapo_temperature_neg)
    require_call(
        logits, old_logp, ref_logp, completion_ids, advantages, completion_mask, temperature, beta, loss_type,
        importance_sampling_level, vllm_is_ratio, delta, temperatures,
    )  # fmt: skip
    phi = None
    if loss_type == "vespo":
        mask = completion_ids.new_ones(completion_ids.shape) if completion_mask is None else completion_mask
        log_p = fused_selective_log_softmax(logits, completion_ids, temperature, mask)
        log_ratio = log_p - (log_p if old_logp is None else old_logp)
        numbers = (vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg)
        phi = get_gamma_weights(advantages, log_ratio, mask, vllm_is_ratio, *numbers)
    loss, kl, is_clipped = GrpoLossFunction.apply(
        logits, old_logp, ref_logp, completion_ids, advantages, completion_mask, temperature, beta, eps_low, eps_high,
        inplace, loss_type, max_completion_length, reduce, importance_sampling_level, *temperatures, vllm_is_ratio,
        delta, use_bias_correction_kl, num_items_in_batch, phi,
    )  # fmt: skip
    if not reduce:
        return loss, kl, is_clipped
    return loss, [value for value in (kl, is_clipped) if value is not None]


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Over the tokens where the mask is not 0; 0 where there is none."""
    return values.mean() if mask is None else masked_mean(values, mask)


def _reduce_grpo_loss(
    per_token_loss: Tensor,
    completion_mask: Tensor,
    loss_type: str,
    max_completion_length: int | None,
    num_items_in_batch: float | Tensor | None = None,
) -> Tensor:
    """The loss of a batch from the losses of its tokens."""
    length = per_token_loss.shape[1] if max_completion_length is None else max_completion_length
    return reduced(per_token_loss, completion_mask, loss_type, length, num_items_in_batch)


__all__ = ["triton_grpo_loss"]
