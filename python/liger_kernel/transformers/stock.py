"""Is it still what Hugging Face wrote? Only that is replaced; what stands in its place is left alone, and named.

Classes are compared by name and module, not with isinstance: a modelling module may have been reloaded or substituted
since a model was built.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
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


def names_in(function: Any) -> tuple[Any, ...]:
    """The attributes and constants that a function's own code names."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return () if code is None else (*code.co_names, *code.co_consts)


def forward_names(cls: type, name: str) -> bool:
    """Whether Hugging Face's own forward of a model's class names an attribute: releases differ in what they apply."""
    for base in cls.__mro__:
        if base.__module__.startswith("transformers.models.") and "forward" in vars(base):
            forward = patching.original(base, "forward")
            if not patching.is_ours(forward):
                return name in names_in(forward)
    return False


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
