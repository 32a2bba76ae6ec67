"""Qwen3 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import QWEN3

lce_forward = named_forward(
    QWEN3.heads["Qwen3ForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states cache_position logits_to_keep skip_logits return_dict kwargs",
)
