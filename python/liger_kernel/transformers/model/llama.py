"""Llama with the loss fused into the output projection."""

from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, named_forward
from liger_kernel.transformers.model.lm_head import lce_maybe_trainable_lm_head
from liger_kernel.transformers.model_table import LLAMA

__all__ = ["lce_forward", "lce_maybe_trainable_lm_head"]

lce_forward = named_forward(LLAMA.heads["LlamaForCausalLM"], LANGUAGE_MODEL)
