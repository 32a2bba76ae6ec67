"""Qwen2 with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model_table import QWEN2

lce_forward = named_forward(QWEN2.heads["Qwen2ForCausalLM"], LANGUAGE_MODEL)
