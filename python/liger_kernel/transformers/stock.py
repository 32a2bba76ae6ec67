"""Is it still what Hugging Face wrote? Only that is replaced; what stands in its place is left alone, and named.

Classes are compared by name and module, not with isinstance: a modelling module may have been reloaded or substituted
since a model was built.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import sys
import types
import weakref
from typing import Any

from torch import nn

from liger_kernel.transformers import patching
from liger_kernel.utils import loaded_class


def written_in(function: Any, package: str) -> bool:
    """Whether `function` and all that it wraps was written in `package` (decorators may be torch's)."""
    home = _folder(package)
    links = [function]
    while (inner := getattr(links[-1], "__wrapped__", None)) is not None and len(links) < 32:
        links.append(inner)
    files = [getattr(getattr(link, "__code__", None), "co_filename", "") for link in links]
    return files[-1].startswith(home) and all(file.startswith((home, _folder("torch"))) for file in files)


@functools.cache
def _folder(package: str) -> str:
    return os.path.join(os.path.dirname(sys.modules[package].__file__ or "?"), "")


def class_of(module: nn.Module) -> type:
    """The class that somebody wrote: without the subclasses that we, or FSDP2, have made of it."""
    cls = patching.unpatched(type(module))
    fsdp = loaded_class("torch.distributed.fsdp", "FSDPModule")
    return cls.__mro__[2] if fsdp and issubclass(cls, fsdp) else cls


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def forward_is_own(cls: type, written: str) -> bool:
    """Whether `cls.forward` is the one of the class with the full name `written`, or ours."""
    forward = inspect.getattr_static(cls, "forward", None)
    if patching.is_ours(forward):
        return True
    inner = inspect.unwrap(forward) if callable(forward) else None
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', '')}"
    return name == f"{written}.forward" and written_in(forward, written.partition(".")[0])


_parameters: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


def parameters_of(function: Any) -> frozenset[str]:
    """The names of a function's parameters, looked up once: a forward is asked at every step."""
    names = _parameters.get(function)
    if names is None:
        names = _parameters[function] = frozenset(inspect.signature(function).parameters)
    return names


def is_somebody_elses(value: Any) -> bool:
    """Of what stands under a name of a modelling module: whether it is a function or class that neither transformers nor
    torch wrote, or a class with another forward. Whatever else there is (a test's double, a kernel from the hub) is not."""
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
        return not written_in(value, "transformers")
    if not isinstance(value, type):
        return False
    name = full_name(value)
    return not name.startswith(("transformers.", "torch.")) or not forward_is_own(value, name)


@functools.cache
def _defined_in(modeling: str) -> frozenset[str]:
    """The functions and classes that the text of a module defines."""
    try:
        text = inspect.getsource(sys.modules[modeling])
    except (KeyError, OSError, TypeError):
        return frozenset()
    definitions = (ast.FunctionDef, ast.ClassDef)
    return frozenset(node.name for node in ast.parse(text).body if isinstance(node, definitions))


def is_anothers(value: Any, name: str, modeling: str) -> bool:
    """Whether a function or class of another module stands under a name that `modeling` itself defines."""
    if not isinstance(value, (types.FunctionType, type)):
        return False
    return value.__module__ != modeling and name in _defined_in(modeling)


def is_own(module: nn.Module, modeling: str) -> bool:
    """Whether a module is of a class of that modelling module and computes what the class says."""
    cls = class_of(module)
    return (
        cls.__module__ == modeling
        and forward_is_own(cls, full_name(cls))
        and not patching._is_wrapper(module, patching._slot(module))
    )


def names_in(function: Any) -> tuple[Any, ...]:
    """The attributes and constants that a function's own code names."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return () if code is None else (*code.co_names, *code.co_consts)


def _spelled_in(function: Any) -> set[Any]:
    """The constants alone, keywords of calls among them: compilers gather those of one call in a tuple, or do not."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    constants = () if code is None else code.co_consts
    return {name for constant in constants for name in (constant if isinstance(constant, tuple) else (constant,))}


def _own_forward(cls: type) -> Any:
    """Hugging Face's own forward of a model's class, or None."""
    for base in cls.__mro__:
        if base.__module__.startswith("transformers.models.") and "forward" in vars(base):
            forward = patching.original(base, "forward")
            if not patching.is_ours(forward):
                return forward
    return None


def forward_names(cls: type, name: str) -> bool:
    """Whether Hugging Face's own forward of a model's class names an attribute: releases differ in what they apply."""
    return name in names_in(_own_forward(cls))


def forward_spells(cls: type, keyword: str) -> bool:
    """Whether that forward gives an argument of a call by this keyword."""
    return keyword in _spelled_in(_own_forward(cls))


# ---- the loss --------------------------------------------------------------------------------------------------------


def _causal_lm_loss() -> Any:
    """Hugging Face's causal-LM loss, also if something else goes by its name now."""
    from transformers.loss import loss_utils

    candidates = (loss_utils.ForCausalLMLoss, *loss_utils.LOSS_MAPPING.values())
    named = (f for f in candidates if getattr(f, "__name__", "") == "ForCausalLMLoss")
    return next((f for f in named if written_in(f, "transformers")), None)


CAUSAL_LM_LOSS = _causal_lm_loss()


def replaced_in_loss() -> str | None:
    """The name of a function that CAUSAL_LM_LOSS calls and that somebody has replaced, if any."""
    reduced = CAUSAL_LM_LOSS.__globals__.get("fixed_cross_entropy")
    if not written_in(reduced, "transformers"):
        return "fixed_cross_entropy"
    computed = nn.functional.cross_entropy
    return None if patching.is_ours(computed) or written_in(computed, "torch") else "torch.nn.functional.cross_entropy"


def replaced_in_projection() -> str | None:
    """The name of a function that an nn.Linear computes with and that somebody has replaced, if any. DeepSpeed's for ZeRO-3
    saves memory, and computes the same."""
    named = {"torch.nn.Linear.forward": nn.Linear.forward, "torch.nn.functional.linear": nn.functional.linear}
    for name, function in named.items():
        known = isinstance(function, types.BuiltinFunctionType) or written_in(function, "torch")
        if not known and not str(getattr(function, "__module__", "")).startswith("deepspeed."):
            return name
    return None


# ---- wrappers --------------------------------------------------------------------------------------------------------


def cause_of_wrapper(forward: Any) -> str:
    """In words, who has put `forward` on an instance."""
    function = patching.function_of(forward)
    if isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None) or type(function).__module__
    if hasattr(forward, "_torchdynamo_orig_callable") or hasattr(function, "_torchdynamo_orig_callable"):
        return "it has been compiled (torch.compile), so patch before compiling"
    if module.startswith("transformers.") and "parallel" in module:
        return f"it has been wrapped for tensor, expert or pipeline parallelism ({module})"
    return f"it has been wrapped by {module}.{getattr(function, '__qualname__', type(function).__name__)}"
