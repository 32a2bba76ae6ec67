"""Llama with the loss fused into the output projection."""

from __future__ import annotations

from typing import Any

import torch

from liger_kernel.transformers.model.causal_lm import causal_lm_forward
from liger_kernel.transformers.model.lm_head import head_loss


def lce_forward(
    self,
    input_ids: torch.LongTensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.LongTensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: torch.FloatTensor | None = None,
    labels: torch.LongTensor | None = None,
    use_cache: bool | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    return_dict: bool | None = None,
    cache_position: torch.LongTensor | None = None,
    logits_to_keep: int | torch.Tensor = 0,
    skip_logits: bool | None = None,
    **kwargs: Any,
):
    """LlamaForCausalLM.forward, without materialising the logits where only the loss is wanted.

    `skip_logits` None means: in training, when there are targets. **kwargs may hold `shift_labels` (already shifted
    targets), `num_items_in_batch` (a number or tensor to divide the summed loss by), `ignore_index`,
    `return_token_accuracy`, `return_predicted_tokens`, `accum_dtype`, `use_token_scaling`, and what the base model takes.
    """
    if getattr(self.config, "pretraining_tp", 1) > 1:
        raise Exception("Liger Kernel does not support pretraining_tp > 1")
    return causal_lm_forward(
        self,
        dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **({} if cache_position is None else {"cache_position": cache_position}),
        ),
        labels=labels,
        logits_to_keep=logits_to_keep,
        skip_logits=skip_logits,
        output_attentions=output_attentions,
        output_hidden_states=output_hidden_states,
        return_dict=return_dict,
        kwargs=kwargs,
        fused_loss=lce_maybe_trainable_lm_head,
    )


def lce_maybe_trainable_lm_head(self, hidden_states, hidden_size, labels, shift_labels, **loss_kwargs):
    """The fused loss with `self.lm_head`, also where PEFT trains a copy of it or FSDP owns it."""
    return head_loss(self.lm_head, hidden_states, hidden_size, labels, shift_labels, **loss_kwargs)
