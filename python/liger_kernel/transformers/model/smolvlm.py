"""SmolVLM with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import SMOLVLM

lce_forward = named_forward(
    SMOLVLM.heads["SmolVLMForConditionalGeneration"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds pixel_values pixel_attention_mask "
    "image_hidden_states labels use_cache output_attentions output_hidden_states cache_position return_dict "
    "logits_to_keep skip_logits lm_kwargs",
)
