"""Modules, functions and Hugging Face patching. Importing this package needs torch, but not transformers.

Each name is imported when it is first asked for: those of the operators, which `liger_kernel._exports` lists, and those
that need transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from liger_kernel import _exports
from liger_kernel.utils import _is_installed

_MONKEY_PATCH = "liger_kernel.transformers.monkey_patch"
_APPLY = "apply_liger_kernel_to_"

_NOT_BY_STAR = {  # as the interface has it
    "LigerExperts": f"{__name__}.swiglu",
    "LigerVocabParallelCrossEntropy": f"{__name__}.vocab_parallel_cross_entropy",
}
_OFFERED = {**_exports.homes(__name__, "modules"), **_NOT_BY_STAR}
_NEEDS_TRANSFORMERS = {
    "AutoLigerKernelForCausalLM": "liger_kernel.transformers.auto_model",
    "_apply_liger_kernel": _MONKEY_PATCH,
    "_apply_liger_kernel_to_instance": _MONKEY_PATCH,
    "apply_liger_kernel": _MONKEY_PATCH,
    "revert_liger_kernel": _MONKEY_PATCH,
    **{f"{_APPLY}{family}": _MONKEY_PATCH for family in _exports.FAMILIES},
}


def is_transformers_available() -> bool:
    """Whether Hugging Face's transformers can be imported. It is not imported by asking."""
    return _is_installed("transformers")


def __getattr__(name: str) -> Any:
    if name == "functional":
        return importlib.import_module(f"{__name__}.functional")
    if name not in _NEEDS_TRANSFORMERS and name != "monkey_patch" and not name.startswith(_APPLY):
        return _exports.find(__name__, name, _OFFERED)
    if not is_transformers_available():
        raise ImportError(f"{__name__}.{name} needs the package transformers, which is not installed")
    if name == "monkey_patch":
        return importlib.import_module(_MONKEY_PATCH)
    home = importlib.import_module(_NEEDS_TRANSFORMERS.get(name, _MONKEY_PATCH))
    by_type = getattr(home, "MODEL_TYPE_TO_APPLY_LIGER_FN", {}).get(name.removeprefix(_APPLY))  # also of text models
    if not hasattr(home, name) and by_type is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name, by_type)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED, *_NEEDS_TRANSFORMERS, "functional", "monkey_patch"})


__all__ = [*sorted(_OFFERED.keys() - _NOT_BY_STAR.keys()), "is_transformers_available"]  # noqa: PLE0604
if is_transformers_available():
    __all__ += sorted(_NEEDS_TRANSFORMERS)  # noqa: PLE0604
