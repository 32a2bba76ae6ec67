"""PaliGemma with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import PALIGEMMA

lce_forward = named_forward(
    PALIGEMMA.heads["PaliGemmaForConditionalGeneration"],
    "input_ids pixel_values attention_mask position_ids past_key_values token_type_ids cache_position "
    "inputs_embeds labels use_cache output_attentions output_hidden_states return_dict logits_to_keep "
    "skip_logits lm_kwargs",
)
