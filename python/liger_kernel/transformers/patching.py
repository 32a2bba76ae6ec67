"""Replacing attributes so that they can be put back: the half of patching that knows nothing of Hugging Face.

Two kinds of places. An attribute of a module or class (`replace`) is recorded in a list here. An attribute of one
nn.Module instance (`set_on_instance`, `bind`) is recorded on that instance, so that the record lives and dies, and is
deep-copied and pickled, with it. Three rules hold for both: the first original is recorded once; it is never one of our
own functions; and it is put back only where our replacement still stands, because a third party may have patched, or
reloaded the module, after us.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


class Absent:
    """Stands for "the attribute was not there". The class itself is the value: it survives copying and pickling."""


_RECORD = "_liger_originals"  # the instance attribute: {attribute name: (original or Absent, ours)}


def is_ours(value: Any) -> bool:
    """Whether a function, bound method, class or object was made by this package."""
    function = getattr(value, "__func__", value)
    module = getattr(function, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == __name__.partition(".")[0]


# ---- attributes of modules and classes -------------------------------------------------------------------------------


@dataclass
class _Replacement:
    owner: Callable[[], Any]  # a weak reference: a record must not keep a reloaded module's old classes alive
    name: str
    original: Any
    ours: Any


_replacements: list[_Replacement] = []


def _weak(owner: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


def _record_of(owner: Any, name: str) -> _Replacement | None:
    return next((r for r in _replacements if r.name == name and r.owner() is owner), None)


def replace(owner: Any, name: str, new: Any) -> bool:
    """`owner.name = new`, recorded. False, and nothing done, if `owner` has no such attribute."""
    current = getattr(owner, name, Absent)
    if current is Absent:
        return False
    inherited = isinstance(owner, type) and name not in vars(owner)
    record = _record_of(owner, name)
    if record is None:
        if is_ours(current):  # put there by hand: what stood there before is not known, so it stays
            return True
        record = _Replacement(_weak(owner), name, Absent if inherited else current, new)
        _replacements.append(record)
    elif not is_ours(current):  # reloaded, or replaced by a third party, since the last time
        record.original = current
    record.ours = new
    setattr(owner, name, new)
    return True


def restore_all() -> None:
    """Undo every `replace` that still stands."""
    while _replacements:
        record = _replacements.pop()
        owner = record.owner()
        if owner is None or getattr(owner, record.name, Absent) is not record.ours:
            continue
        if record.original is Absent:
            delattr(owner, record.name)
        else:
            setattr(owner, record.name, record.original)


# ---- attributes of one nn.Module -------------------------------------------------------------------------------------


def set_on_instance(module: nn.Module, name: str, value: Any) -> None:
    """`module.name = value` in the instance's own dictionary, recorded."""
    record = module.__dict__.setdefault(_RECORD, {})
    current = module.__dict__.get(name, Absent)
    if name not in record:
        record[name] = (Absent if is_ours(current) else current, value)
    else:
        original, _ = record[name]
        foreign = callable(current) and current is not Absent and not is_ours(current)
        record[name] = (current if foreign else original, value)
    module.__dict__[name] = value


def holds_ours(module: nn.Module, name: str = "forward") -> bool:
    """Whether `module.name` is one of our methods, on the surface or below wrappers that were put over it."""
    value: Any = module.__dict__.get(name)
    for candidate in (value, module.__dict__.get("_old_forward"), module.__dict__.get("_original_forward")):
        if candidate is not None and (is_ours(candidate) or is_ours(inspect.unwrap(_function(candidate)))):
            return True
    return False


def _function(value: Any) -> Any:
    return getattr(value, "__func__", value)


def _is_wrapper(module: nn.Module, forward: Any) -> bool:
    """Whether `forward` of the instance is neither ours nor just the method of its class, stored on the instance."""
    return forward is not None and not is_ours(forward) and _function(forward) is not type(module).forward


def bind(module: nn.Module, name: str, function: Callable[..., Any]) -> bool:
    """Make `function` the method `name` of this one instance. False, and nothing done, where that would lose a wrapper.

    A `forward` that somebody else put on the instance is kept: accelerate's calls `_old_forward`, so that is what is
    bound then; any other wrapper (tensor or expert parallelism, pipelines) cannot be looked into.
    """
    slot = name
    if name == "forward" and _is_wrapper(module, module.__dict__.get("forward")):
        if hasattr(module, "_hf_hook") and "_old_forward" in module.__dict__:
            slot = "_old_forward"
        else:
            return False
    set_on_instance(module, slot, types.MethodType(function, module))
    return True


def restore_instance(module: nn.Module) -> None:
    """Undo every `set_on_instance` and `bind` on this module (not on its children) that still stands."""
    record = module.__dict__.pop(_RECORD, None)
    if not record:
        return
    for name, (original, ours) in record.items():
        current = module.__dict__.get(name, Absent)
        if current is not Absent and (current == ours or not callable(current)):
            _put_back(module, name, original)
        elif name == "forward" and is_ours(module.__dict__.get("_old_forward")):
            # accelerate has moved our forward aside, and expects something to call there
            module.__dict__["_old_forward"] = types.MethodType(type(module).forward, module)
        elif name == "_old_forward" and is_ours(module.__dict__.get("forward")):
            _put_back(module, "forward", original)  # accelerate has taken its hook off


def _put_back(module: nn.Module, name: str, original: Any) -> None:
    if original is Absent or (name == "forward" and _function(original) is type(module).forward):
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = original
