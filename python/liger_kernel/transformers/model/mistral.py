"""Mistral with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import MISTRAL

lce_forward = named_forward(MISTRAL.heads["MistralForCausalLM"], LANGUAGE_MODEL)
