"""Qwen3-Next with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import QWEN3_NEXT

lce_forward = named_forward(
    QWEN3_NEXT.heads["Qwen3NextForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states output_router_logits cache_position logits_to_keep skip_logits return_dict kwargs",
)
