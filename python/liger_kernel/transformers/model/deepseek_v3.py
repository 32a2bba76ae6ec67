"""DeepSeek-V3 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import DEEPSEEK_V3

lce_forward = named_forward(DEEPSEEK_V3.heads["DeepseekV3ForCausalLM"], LANGUAGE_MODEL)
