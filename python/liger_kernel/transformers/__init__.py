"""Modules, functions and Hugging Face patching. Importing this package needs torch, but not transformers.

The kernels are imported at once; everything that needs transformers is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
from liger_kernel.transformers.fused_add_rms_norm import LigerFusedAddRMSNorm
from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rope import liger_rotary_pos_emb
from liger_kernel.transformers.swiglu import (
    LigerBlockSparseTop2MLP,
    LigerFalconH1SwiGLUMLP,
    LigerPhi3SwiGLUMLP,
    LigerQwen3MoeSwiGLUMLP,
    LigerSwiGLUMLP,
)
from liger_kernel.utils import _is_installed

if TYPE_CHECKING:
    from liger_kernel.transformers.auto_model import AutoLigerKernelForCausalLM
    from liger_kernel.transformers.monkey_patch import (
        _apply_liger_kernel,
        _apply_liger_kernel_to_instance,
        apply_liger_kernel_to_llama,
        revert_liger_kernel,
    )

_MONKEY_PATCH = "liger_kernel.transformers.monkey_patch"

# name -> the module that defines it
_LAZY = {
    "AutoLigerKernelForCausalLM": "liger_kernel.transformers.auto_model",
    "_apply_liger_kernel": _MONKEY_PATCH,
    "_apply_liger_kernel_to_instance": _MONKEY_PATCH,
    "apply_liger_kernel_to_llama": _MONKEY_PATCH,
    "revert_liger_kernel": _MONKEY_PATCH,
}


def is_transformers_available() -> bool:
    """Whether Hugging Face's transformers can be imported. It is not imported by asking."""
    return _is_installed("transformers")


def __getattr__(name: str) -> Any:
    if name not in _LAZY and name != "monkey_patch":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not is_transformers_available():
        raise ImportError(f"{__name__}.{name} needs the package transformers, which is not installed")
    if name == "monkey_patch":
        return importlib.import_module(_MONKEY_PATCH)
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "monkey_patch"})


__all__ = [
    "LigerBlockSparseTop2MLP",
    "LigerCrossEntropyLoss",
    "LigerFalconH1SwiGLUMLP",
    "LigerFusedAddRMSNorm",
    "LigerFusedLinearCrossEntropyLoss",
    "LigerPhi3SwiGLUMLP",
    "LigerQwen3MoeSwiGLUMLP",
    "LigerRMSNorm",
    "LigerSwiGLUMLP",
    "is_transformers_available",
    "liger_rotary_pos_emb",
]
if is_transformers_available():
    __all__ += [  # noqa: PLE0604
        "AutoLigerKernelForCausalLM",
        "_apply_liger_kernel",
        "_apply_liger_kernel_to_instance",
        "apply_liger_kernel_to_llama",
        "revert_liger_kernel",
    ]
