"""OLMo 3 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import OLMO3

lce_forward = named_forward(OLMO3.heads["Olmo3ForCausalLM"], LANGUAGE_MODEL)
