"""OLMo 2 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import OLMO2

lce_forward = named_forward(OLMO2.heads["Olmo2ForCausalLM"], LANGUAGE_MODEL)
