"""Our rotation in a modelling module, as long as the family's own functions and tables stand.

Ours reads one column of cos and sin for each pair, because both halves of the family's tables are equal. So, besides the
code of the function that ours replaces, it is watched who makes the tables: the rotary classes of the modelling module and
the rotary modules of its models, those that are patched and those that are built, or put in place, afterwards. Tables that
are not those that a rotary class has made are compared. The layers of a model share the tables of one call, so all this is
looked at once for each table.
"""

from __future__ import annotations

import collections
import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.transformers import patching, stock
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.stock import names_in
from liger_kernel.transformers.stock_calls import class_of_tensors, is_compiling, is_seen
from liger_kernel.transformers.stock_code import Code, Place

logger = logging.getLogger("liger_kernel.transformers.monkey_patch")

_CHILD = "rotary_emb"
_CLASS = "RotaryEmbedding"  # how the names of the classes end
_HALF_WIDTH = ("liger_rotary_pos_emb_gpt_oss",)  # whose tables have a column for each pair
_made: collections.deque[Any] = collections.deque(maxlen=16)  # the last tables of rotary classes, as `_seen`
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
    return not (patching.is_wrapped(rotary) or rotary._forward_hooks)


def watch_model(model: nn.Module) -> None:
    for module in model.modules():
        if _child(module) is not None:
            _watch_child(module, _CHILD, None)


def modules_in(model: nn.Module) -> list[nn.Module]:
    return [child for module in model.modules() if (child := _child(module)) is not None]


def _child(module: nn.Module) -> nn.Module | None:
    """Its rotary module. A scripted module's children are in no dictionary."""
    return module._modules[_CHILD] if _CHILD in module._modules else None  # type: ignore[return-value]


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


# ---- tables ----------------------------------------------------------------------------------------------------------


def _seen(table: torch.Tensor) -> tuple[Any, int | None]:
    return weakref.ref(table), None if table.is_inference() else table._version


def _is_same(seen: tuple[Any, int | None], table: torch.Tensor) -> bool:
    """Whether that was this table, with these values."""
    return seen[0]() is table and (table.is_inference() or seen[1] == table._version)


def _recording(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a rotary class, whose tables are known again, so that no device has to be asked for their values."""

    @functools.wraps(forward)
    def recording(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tables = forward(self, *args, **kwargs)
        if not is_compiling() and isinstance(tables, tuple):
            _made.extend(_seen(table) for table in tables if isinstance(table, torch.Tensor))
        return tables

    recording.records = True  # type: ignore[attr-defined]
    return recording


def is_recording(forward: Any) -> bool:
    return hasattr(patching.function_of(forward), "records")


def _have_equal_halves(*tables: torch.Tensor) -> bool:
    """Whether ours, which reads the first, reads all that there is. Somebody may have changed tables on their way from the
    module that made them: only then are they compared, for which a device is waited for."""
    made = tuple(_made)
    return all(any(_is_same(seen, table) for seen in made) or _has_equal_halves(table) for table in tables)


def _has_equal_halves(table: torch.Tensor) -> bool:
    if table.is_meta or torch._C._are_functorch_transforms_active():
        return False
    if table.is_cuda and torch.cuda.is_current_stream_capturing():  # nothing may be asked
        return False
    return table.shape[-1] % 2 == 0 and torch.equal(*table.detach().chunk(2, -1))


class _Calls:
    """Which calls of a rotation ours takes: with heads where the family has them, tables for each position, and results in
    the dtype of queries and keys. All others are the family's own."""

    def __init__(self, stock: Callable[..., Any]) -> None:
        parameter = inspect.signature(stock).parameters.get("unsqueeze_dim")
        self._axis = None if parameter is None else parameter.default
        self._keeps_dtype = "dtype" in names_in(stock)

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        named = dict(zip(("q", "k", "cos", "sin"), args, strict=False))
        tensors: list[Any] = [named.get(name, kwargs.get(name)) for name in ("q", "k", "cos", "sin")]
        if not all(isinstance(x, torch.Tensor) for x in tensors):
            return False
        axis = kwargs.get("unsqueeze_dim", next((x for x in args[4:] if isinstance(x, int)), self._axis))
        q, k, cos, sin = tensors
        position = 0 if q.dim() == 3 else -2
        if axis != self._axis or min(x.dim() for x in tensors) < 2 or q.dim() != k.dim() or cos.shape != sin.shape:
            return False
        if not q.shape[position] == k.shape[position] == cos.shape[-2]:
            return False
        if any(cos.dtype not in (x.dtype, torch.float32) for x in (q, k)):
            return False  # ours rounds q and k to the dtype of narrow tables
        if self._keeps_dtype or torch.is_autocast_enabled(q.device.type):  # which rounds what goes into attention
            return True
        return all(torch.promote_types(x.dtype, cos.dtype) is x.dtype for x in (q, k))


# ---- the function ----------------------------------------------------------------------------------------------------


def while_stock(modeling: Any, name: str, ours: Callable[..., Any], accepted: bool = False) -> Callable[..., Any]:
    """What stands for the function `name` of a modelling module: `ours`, or that function where its code, or a table's, is
    another by now."""
    standing = getattr(modeling, name)
    if standing in _rotations:
        return standing  # type: ignore[no-any-return]
    is_half_width = ours.__name__ in _HALF_WIDTH
    code, parents, home = code_of(modeling, name, accepted), weakref.WeakSet[nn.Module](), modeling.__name__
    about, takes = modeling, _Calls(standing)
    judged: collections.deque[tuple[Any, bool]] = collections.deque(
        maxlen=4
    )  # tables, and whether ours may not have them
    cls: Any
    for cls in {value for key, value in vars(modeling).items() if key.endswith(_CLASS) and isinstance(value, type)}:
        if not is_recording(cls.forward):
            patching.replace(cls, "forward", _recording(cls.forward))

    def changed() -> bool:
        children = map(_child, parents)
        foreign = (type(child).__name__ for child in children if child is not None and not is_own(child, home))
        return says(code.replaced() or next(foreign, None))

    def says(found: str | None) -> bool:
        if found is not None:
            warn_once(logger, about, "stock-rotation", True, name=name, modeling=home, found=found)
        return found is not None

    changed_in_trace = torch.compiler.assume_constant_result(changed)

    def changed_at(cos: Any, sin: Any) -> bool:
        known = next((other for seen, other in tuple(judged) if all(map(_is_same, seen, (cos, sin)))), None)
        if known is None:
            known = changed() or not (
                is_half_width or _have_equal_halves(cos, sin) or not says("a table of cos and sin")
            )
            judged.append(((_seen(cos), _seen(sin)), known))
        return known

    @functools.wraps(ours)
    def rotate(*args: Any, **kwargs: Any) -> Any:
        if not takes(*args, **kwargs) or is_seen(about) or class_of_tensors(*args, *kwargs.values()) is not None:
            return standing(*args, **kwargs)
        tables = [args[i] if len(args) > i else kwargs[name] for i, name in ((2, "cos"), (3, "sin"))]
        if is_compiling():
            return (standing if changed_in_trace() else ours)(*args, **kwargs)
        if changed_at(*tables):
            return standing(*args, **kwargs)
        try:
            return ours(*args, **kwargs)
        except LigerArgumentError:  # as for shapes that broadcast
            return standing(*args, **kwargs)

    rotate.modeling, rotate.parents = home, parents  # type: ignore[attr-defined]
    _rotations.add(rotate)
    if not _building:
        _building.append(nn.modules.module.register_module_module_registration_hook(_watch_child))
    return rotate
