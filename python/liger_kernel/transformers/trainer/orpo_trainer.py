"""Where other packages look for the FSDP redirection."""

from liger_kernel.transformers.fsdp import _FSDPForwardRedirection

__all__ = ["_FSDPForwardRedirection"]
