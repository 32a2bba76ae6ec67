"""The loss of a causal language model from its last hidden states: shift, flatten, fused projection and cross entropy.

Other packages replace these functions and `functional.liger_fused_linear_cross_entropy`, so each is looked up in its
module when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import liger_kernel.transformers.functional as F
from liger_kernel.transformers.functional import CrossEntropyOutput

# What a model's keyword arguments may set of liger_fused_linear_cross_entropy. Written out, not read from its signature:
# somebody's replacement of that function must not change what reaches it. What the functions below set themselves
# (operands, reduction, softcap) is not among them.
_LOSS_OPTIONS = frozenset(
    {
        "bias",
        "ce_weight",
        "lse_square_scale",
        "label_smoothing",
        "return_z_loss",
        "accum_dtype",
        "use_token_scaling",
        "chunk_mem_const",
    }
)


# Those that change a loss, or ask for more than it: Hugging Face's loss has none of them.
_OPTIONS_OF_OURS = (
    "ce_weight",
    "lse_square_scale",
    "label_smoothing",
    "use_token_scaling",
    "return_token_accuracy",
    "return_predicted_tokens",
)


def asks_for_options(kwargs: Mapping[str, Any]) -> bool:
    """Whether a model's keyword arguments ask for what Hugging Face's loss has not."""
    for name in _OPTIONS_OF_OURS:  # in one expression torch 2.11 could not compile it
        value = kwargs.get(name)
        if isinstance(value, torch.Tensor) or value:
            return True
    return False


def unpack_cross_entropy_result(
    result: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(loss, z_loss, token_accuracy, predicted_tokens) from a CrossEntropyOutput, a tuple of one to four, or a loss."""
    if isinstance(result, CrossEntropyOutput):
        return result.loss, result.z_loss, result.token_accuracy, result.predicted_tokens
    if isinstance(result, tuple):
        loss, z_loss, token_accuracy, predicted_tokens = (*result, None, None, None)[:4]
        return loss, z_loss, token_accuracy, predicted_tokens
    return result, None, None, None


def fixed_fused_linear_cross_entropy(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    target: torch.Tensor,
    num_items_in_batch: int | torch.Tensor | None = None,
    ignore_index: int = -100,
    final_logit_softcapping: float | None = None,
    accum_dtype: torch.dtype | None = None,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    **kwargs: Any,
) -> torch.Tensor | CrossEntropyOutput:
    """The loss of hidden_states [BT, H] · lm_head_weightᵀ [V, H] for target [BT].

    With `num_items_in_batch`, a number or a tensor, the sum over targets divided by it; else the mean. A 0-d tensor, or
    a CrossEntropyOutput if the accuracy or the predicted tokens were asked for. Of **kwargs the options of the operator
    are used.
    """
    options = {name: value for name, value in kwargs.items() if name in _LOSS_OPTIONS}
    result = F.liger_fused_linear_cross_entropy(
        hidden_states,
        lm_head_weight,
        target,
        reduction="mean" if num_items_in_batch is None else "sum",
        ignore_index=ignore_index,
        softcap=final_logit_softcapping,
        accum_dtype=accum_dtype,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
        **options,
    )
    loss, _, token_accuracy, predicted_tokens = unpack_cross_entropy_result(result)
    loss = _per_item(loss, num_items_in_batch)
    if return_token_accuracy or return_predicted_tokens:
        return CrossEntropyOutput(loss=loss, token_accuracy=token_accuracy, predicted_tokens=predicted_tokens)
    return loss


def _per_item(loss: torch.Tensor, num_items_in_batch: int | torch.Tensor | None) -> torch.Tensor:
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device, non_blocking=True)
    return loss / num_items_in_batch


def _flat_targets(labels: torch.Tensor | None, shift_labels: torch.Tensor | None, ignore_index: int) -> torch.Tensor:
    if shift_labels is None:
        assert labels is not None, "LigerForCausalLMLoss: neither labels nor shift_labels are given"
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    return shift_labels.reshape(-1)


def LigerForCausalLMLoss(
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor | None,
    hidden_size: int,
    num_items_in_batch: int | torch.Tensor | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    final_logit_softcapping: float | None = None,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    **kwargs: Any,
) -> torch.Tensor | CrossEntropyOutput:
    """The next-token loss of hidden_states [..., hidden_size] and lm_head_weight [V, hidden_size].

    `labels` [B, T] are shifted here: position t is compared with label t + 1 and the last one is ignored. `shift_labels`
    are used as they are. **kwargs may hold anything; options of the fused operator among them are used.
    """
    return fixed_fused_linear_cross_entropy(
        hidden_states.reshape(-1, hidden_size),
        lm_head_weight,
        _flat_targets(labels, shift_labels, ignore_index).to(hidden_states.device),
        num_items_in_batch,
        ignore_index,
        final_logit_softcapping,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
        **{name: value for name, value in kwargs.items() if name in _LOSS_OPTIONS},
    )


def loss_of_logits(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: int | torch.Tensor | None = None,
    ignore_index: int = -100,
    use_token_scaling: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The same loss with the same options from logits [..., V] that are there: (loss, None, accuracy, predictions)."""
    logits = logits.reshape(-1, logits.shape[-1])
    target = _flat_targets(labels, shift_labels, ignore_index).to(logits.device)
    weight = kwargs.pop("ce_weight", None)
    options = {name: value for name, value in kwargs.items() if name in _OPTIONS_OF_OURS}
    reduction = "mean" if num_items_in_batch is None else "sum"
    result = F.liger_cross_entropy(
        logits,
        target,
        weight,
        ignore_index=ignore_index,
        reduction="none" if use_token_scaling else reduction,
        **options,
    )
    loss, _, token_accuracy, predicted_tokens = unpack_cross_entropy_result(result)
    if use_token_scaling:
        plain = F.liger_cross_entropy(logits.detach(), target, ignore_index=ignore_index, reduction="none")
        loss = (loss * torch.exp(-plain)).sum()
        valid = target != ignore_index
        if reduction == "mean":
            loss = loss / (valid.sum() if weight is None else weight[target[valid]].sum())
        if token_accuracy is not None:  # of each row
            token_accuracy = token_accuracy[valid].mean()
    return _per_item(loss, num_items_in_batch), None, token_accuracy, predicted_tokens
