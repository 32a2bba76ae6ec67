"""Gemma with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import GEMMA

lce_forward = named_forward(GEMMA.heads["GemmaForCausalLM"], LANGUAGE_MODEL)
