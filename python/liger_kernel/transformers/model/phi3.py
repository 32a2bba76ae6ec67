"""Phi-3 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import PHI3

lce_forward = named_forward(PHI3.heads["Phi3ForCausalLM"], LANGUAGE_MODEL)
