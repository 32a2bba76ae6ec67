"""Our rotation in a modelling module, as long as the family's own functions and tables stand.

Ours reads one column of cos and sin for each pair, because both halves of the family's tables are equal. So, besides the
code of the function that ours replaces, it is watched who makes the tables: the rotary classes of the modelling module and
the rotary modules of its models, those that are patched and those that are built, or put in place, afterwards. The layers
of a model share the tables of one call, so this is looked at once for each table.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers import patching, stock
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.other_dtypes import is_compiling
from liger_kernel.transformers.stock_code import Code, Place

logger = logging.getLogger("liger_kernel.transformers.monkey_patch")

_CHILD = "rotary_emb"
_CLASS = "RotaryEmbedding"  # how the names of the classes end
_rotations: weakref.WeakSet[Any] = weakref.WeakSet()  # the functions made here
_building: list[Any] = []  # the handle of the hook that waits for rotary modules


def code_of(modeling: Any, name: str, accepted: bool = False) -> Code:
    """What rotates, and what makes the tables. `accepted`: see `Code`."""
    entries = vars(modeling)
    classes = [key for key, value in entries.items() if key.endswith(_CLASS) and isinstance(value, type)]
    return Code(
        Place(entries, name),
        *(Place(entries, key) for key in classes),
        *(entries[key] for key in classes),
        accepted=accepted,
    )


def is_own(rotary: nn.Module, modeling: str) -> bool:
    """Whether a module is of a rotary class of a modelling module, and nothing has been put on this one. What has been put
    into the class is in `code_of`."""
    cls = stock.class_of(rotary)
    if cls.__module__ != modeling or not cls.__name__.endswith(_CLASS) or "_call_impl" in rotary.__dict__:
        return False
    return not (patching._is_wrapper(rotary, patching._slot(rotary)) or rotary._forward_hooks)


def watch_model(model: nn.Module) -> None:
    for module in model.modules():
        if module._modules.get(_CHILD) is not None:
            _watch_child(module, _CHILD, None)


def modules_in(model: nn.Module) -> list[nn.Module]:
    found = (module._modules.get(_CHILD) for module in model.modules())
    return [module for module in found if module is not None]


def _watch_child(parent: nn.Module, name: str, child: Any) -> None:
    """Also torch's hook for every child that a module is given."""
    if name == _CHILD:
        homes = {base.__module__ for base in type(parent).__mro__}
        for rotation in _rotations:
            if rotation.modeling in homes:
                rotation.parents.add(parent)


def forget() -> None:
    """All patches of modules have been undone."""
    while _building:
        _building.pop().remove()


def while_stock(modeling: Any, name: str, ours: Callable[..., Any], accepted: bool = False) -> Callable[..., Any]:
    """What stands for the function `name` of a modelling module: `ours`, or that function where its code, or a table's, is
    another by now."""
    standing = getattr(modeling, name)
    if standing in _rotations:
        return standing  # type: ignore[no-any-return]
    code, parents, home = code_of(modeling, name, accepted), weakref.WeakSet[nn.Module](), modeling.__name__
    about = modeling
    last: list[Any] = [lambda: None, False]  # a reference to the last table, and whether all has changed by then

    def changed() -> bool:
        children = (parent._modules.get(_CHILD) for parent in parents)
        foreign = (type(child).__name__ for child in children if child is not None and not is_own(child, home))
        found = code.replaced() or next(foreign, None)
        if found is not None:
            warn_once(logger, about, "stock-rotation", True, name=name, modeling=home, found=found)
        return found is not None

    changed_in_trace = torch.compiler.assume_constant_result(changed)

    def changed_at(table: Any) -> bool:
        if last[0]() is not table or table is None:
            last[:] = [weakref.ref(table) if isinstance(table, torch.Tensor) else lambda: None, changed()]
        return last[1]

    @functools.wraps(ours)
    def rotate(*args: Any, **kwargs: Any) -> Any:
        table = args[2] if len(args) > 2 else kwargs.get("cos")
        if changed_in_trace() if is_compiling() else changed_at(table):
            return patching.original(modeling, name)(*args, **kwargs)
        return ours(*args, **kwargs)

    rotate.modeling, rotate.parents = home, parents  # type: ignore[attr-defined]
    _rotations.add(rotate)
    if not _building:
        _building.append(nn.modules.module.register_module_module_registration_hook(_watch_child))
    return rotate
