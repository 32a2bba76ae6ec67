"""Gemma 3 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import GEMMA3, GEMMA3_TEXT

causal_forward = named_forward(
    GEMMA3_TEXT.heads["Gemma3ForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states return_dict cache_position logits_to_keep skip_logits loss_kwargs",
    "causal_forward",
)

multimodal_forward = named_forward(
    GEMMA3.heads["Gemma3ForConditionalGeneration"],
    "input_ids pixel_values attention_mask position_ids past_key_values token_type_ids cache_position "
    "inputs_embeds labels use_cache output_attentions output_hidden_states return_dict logits_to_keep "
    "skip_logits lm_kwargs",
    "multimodal_forward",
)
