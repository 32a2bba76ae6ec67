"""Gemma 4 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import GEMMA4_TEXT

causal_forward = named_forward(
    GEMMA4_TEXT.heads["Gemma4ForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states return_dict cache_position logits_to_keep skip_logits loss_kwargs",
    "causal_forward",
)
