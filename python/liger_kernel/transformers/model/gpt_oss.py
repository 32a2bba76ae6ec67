"""GPT-OSS with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import named_forward
from liger_kernel.transformers.model_table import GPT_OSS

lce_forward = named_forward(
    GPT_OSS.heads["GptOssForCausalLM"],
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states output_router_logits cache_position logits_to_keep skip_logits kwargs",
)
