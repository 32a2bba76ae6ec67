"""Kernels for Megatron-Core: modules with its call forms, and `apply_liger_kernel_to_megatron`, which puts them in its places.

Importing this package, or a name of it, neither needs megatron nor imports it. Each name is imported when it is first asked
for.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "LigerMegatronCrossEntropy": "cross_entropy",
    "LigerMegatronRMSNorm": "rms_norm",
    "LigerMegatronSwiGLU": "swiglu",
    "apply_liger_kernel_to_megatron": "monkey_patch",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES.values():
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_HOMES.values()})


__all__ = sorted(_HOMES)  # noqa: PLE0605
