"""GLM-4 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import GLM4

lce_forward = named_forward(GLM4.heads["Glm4ForCausalLM"], LANGUAGE_MODEL)
