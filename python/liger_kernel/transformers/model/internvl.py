"""InternVL with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import INTERNVL

lce_forward = named_forward(
    INTERNVL.heads["InternVLForConditionalGeneration"],
    "input_ids pixel_values attention_mask position_ids past_key_values inputs_embeds vision_feature_layer "
    "vision_feature_select_strategy labels use_cache output_attentions output_hidden_states return_dict "
    "cache_position logits_to_keep image_sizes skip_logits lm_kwargs",
)
