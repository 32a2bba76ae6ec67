"""Qwen2.5-VL with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import QWEN2_5_VL

lce_forward = named_forward(
    QWEN2_5_VL.heads["Qwen2_5_VLForConditionalGeneration"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states return_dict pixel_values pixel_values_videos image_grid_thw video_grid_thw "
    "rope_deltas mm_token_type_ids cache_position second_per_grid_ts skip_logits kwargs",
)
