"""Qwen3.5 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import QWEN3_5

lce_forward = named_forward(
    QWEN3_5.heads["Qwen3_5ForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache cache_position "
    "logits_to_keep skip_logits kwargs",
)

lce_forward_for_multimodal = named_forward(
    QWEN3_5.heads["Qwen3_5ForConditionalGeneration"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels pixel_values "
    "pixel_values_videos image_grid_thw video_grid_thw mm_token_type_ids logits_to_keep skip_logits kwargs",
    "lce_forward_for_multimodal",
)
