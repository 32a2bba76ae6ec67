"""Autograd Functions and their `x_forward` / `x_backward` helpers, one module per operator.

A module is imported when one of its names is first asked for: whoever uses one operator registers no other.
"""

from __future__ import annotations

import importlib
from typing import Any

# module -> what it offers here
_EXPORTS = {
    "cross_entropy": ("LigerCrossEntropyFunction", "cross_entropy_backward", "cross_entropy_forward"),
    "fused_add_rms_norm": (
        "LigerFusedAddRMSNormFunction",
        "fused_add_rms_norm_backward",
        "fused_add_rms_norm_forward",
    ),
    "fused_linear_cross_entropy": (
        "LigerFusedLinearCrossEntropyFunction",
        "fused_linear_cross_entropy_backward",
        "fused_linear_cross_entropy_forward",
    ),
    "rms_norm": ("LigerRMSNormFunction", "rms_norm_backward", "rms_norm_forward"),
    "rope": ("LigerRopeFunction", "rope_backward", "rope_forward"),
    "swiglu": (
        "LigerFusedGateUpSiLUMulFunction",
        "LigerSiLUMulFunction",
        "swiglu_backward",
        "swiglu_forward",
        "swiglu_fused_gate_up_backward",
        "swiglu_fused_gate_up_forward",
    ),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """From the second time on the name is a plain attribute."""
    module = name if name in _EXPORTS else _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = importlib.import_module(f"{__name__}.{module}")
    value = globals()[name] = found if name == module else getattr(found, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
