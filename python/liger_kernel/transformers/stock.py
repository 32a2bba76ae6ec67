"""What can be learnt of Hugging Face's classes and functions: names, signatures, the causal-LM loss, who has wrapped a forward.

Classes are compared by name and module, not with isinstance: a modelling module may have been reloaded or substituted
since a model was built. Whether their code is still Hugging Face's is asked of `stock_code`.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

from torch import nn

from liger_kernel.transformers import patching, stock_code
from liger_kernel.transformers.stock_code import Code
from liger_kernel.utils import loaded_class


def class_of(module: nn.Module) -> type:
    """The class that somebody wrote: without the subclasses that we, or FSDP2, have made of it."""
    cls = patching.unpatched(type(module))
    fsdp = loaded_class("torch.distributed.fsdp", "FSDPModule")
    return cls.__mro__[2] if fsdp and issubclass(cls, fsdp) else cls


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


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


def spelled_in(function: Any) -> set[Any]:
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


def _forward_below(cls: type) -> Any:
    """That, or one that is not Hugging Face's; None if only ours is there."""
    forward = _own_forward(cls) or patching.forward_below(cls)
    return None if patching.is_ours(forward) else forward


def forward_names(cls: type, name: str) -> bool:
    """Whether the forward of a model's class that ours stands for names an attribute: releases differ in what they apply."""
    return name in names_in(_forward_below(cls))


def forward_spells(cls: type, keyword: str) -> bool:
    """Whether that forward gives an argument of a call by this keyword."""
    return keyword in spelled_in(_forward_below(cls))


_read: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


def forward_reads(cls: type, name: str) -> bool:
    """Whether it reads an attribute of the model itself."""
    forward = _forward_below(cls)
    if forward is None:
        return False
    read = _read.get(forward)
    if read is None:
        read = _read[forward] = stock_code.read_of_receiver(forward)
    return name in read


def handed_on(cls: type, without: frozenset[str]) -> tuple[str, ...]:
    """The parameters of that forward which it gives by keyword to what it calls."""
    forward = _forward_below(cls)
    if forward is None:
        return ()
    return tuple(sorted((parameters_of(forward) & spelled_in(forward)) - without))


# ---- the loss --------------------------------------------------------------------------------------------------------


def _causal_lm_loss() -> Any:
    """Hugging Face's causal-LM loss, also if something else goes by its name now."""
    from transformers.loss import loss_utils

    candidates = (loss_utils.ForCausalLMLoss, *loss_utils.LOSS_MAPPING.values())
    named = (f for f in candidates if getattr(f, "__name__", "") == "ForCausalLMLoss")
    return next((f for f in named if stock_code.written_in(f, "transformers")), None)


CAUSAL_LM_LOSS = _causal_lm_loss()


@functools.cache
def _code_of_loss() -> Code:
    return Code(CAUSAL_LM_LOSS)


def replaced_in_loss() -> str | None:
    """The name of a function that CAUSAL_LM_LOSS calls and that somebody has replaced, if any."""
    return _code_of_loss().replaced()


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
