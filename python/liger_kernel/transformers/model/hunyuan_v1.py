"""Hunyuan V1 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import HUNYUAN_V1_DENSE

lce_forward = named_forward(
    HUNYUAN_V1_DENSE.heads["HunYuanDenseV1ForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states cache_position logits_to_keep skip_logits return_dict kwargs",
)
