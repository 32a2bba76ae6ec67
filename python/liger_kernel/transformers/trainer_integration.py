"""Where older releases of Hugging Face's Trainer look for the patching function."""

from liger_kernel.transformers.monkey_patch import _apply_liger_kernel

__all__ = ["_apply_liger_kernel"]
