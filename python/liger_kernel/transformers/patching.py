"""Replacing attributes so that they can be put back: the half of patching that knows nothing of Hugging Face.

Two kinds of places. An attribute of a module or class (`replace`) is recorded in a list here. One nn.Module instance
becomes an instance of a subclass with our methods, made for its class (`give_methods`): so it runs its own weights when it
is copied, pickled or replicated, which a method bound in its dictionary would not. Attributes of an instance
(`set_on_instance`, `bind`) are recorded on that instance, so that the record lives and dies, and is copied, with it.
Three rules hold for all: the first original is recorded once; it is never one of our own functions; and it is put back
only where our replacement still stands, because a third party may have patched, or reloaded the module, after us.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from liger_kernel.transformers import mixed_precision

_STORES = ("_modules", "_parameters", "_buffers")


class Absent:
    """Stands for "the attribute was not there". The class itself is the value: it survives copying and pickling."""


_RECORD = "_liger_originals"  # the instance attribute: {attribute name: (original or Absent, ours)}
_PATCH = "_liger_patch"  # the attribute of the classes made here: what their methods were made from


def is_ours(value: Any) -> bool:
    """Whether a function, bound method, class or object was made by this package. What wraps a function is not what it
    wraps, although it has copied the `__module__`."""
    value = function_of(value)
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__")
    else:
        module = getattr(value if isinstance(value, type) else type(value), "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == __name__.partition(".")[0]


def function_of(value: Any) -> Any:
    return getattr(value, "__func__", value)


def is_real(owner: Any) -> bool:
    """Not a substitute for a module."""
    return sys.modules.get(getattr(owner, "__name__", "")) is owner


# ---- attributes of modules and classes -------------------------------------------------------------------------------


class _Replacement:
    """Keeps no class of a reloaded module alive: not as owner, nor through methods, which know the class that they were
    written in. An original method lives as long as ours, which is made of it."""

    def __init__(self, owner: Any, name: str, original: Any, ours: Any) -> None:
        self.owner, self.name, self._hold = _weak(owner), name, _weak if isinstance(owner, type) else _strong
        self.set(original, ours)

    def set(self, original: Any, ours: Any) -> None:
        self._original, self._ours = self._hold(original), self._hold(ours)

    @property
    def original(self) -> Any:
        return self._original()

    @property
    def ours(self) -> Any:
        return self._ours()


_replacements: list[_Replacement] = []

ANYWHERE = ""
# class -> name of the module whose code builds the modules, or ANYWHERE -> what it builds: see `built_later`
builds: weakref.WeakKeyDictionary[type, dict[str, Built]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Built:
    """Modules are patched as they are built: as this class of ours; `activation` is the entry of their config that names
    theirs."""

    owner: type[nn.Module]
    activation: str


def _weak(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:
        return _strong(value)


def _strong(value: Any) -> Callable[[], Any]:
    return lambda: value


def _record_of(owner: Any, name: str) -> _Replacement | None:
    return next((r for r in _replacements if r.name == name and r.owner() is owner), None)


def original(owner: Any, name: str) -> Any:
    """What `owner.name` was before we replaced it; what it is now, if we did not."""
    record = _record_of(owner, name)
    current = getattr(owner, name, Absent)
    return current if record is None or record.original is Absent or not is_ours(current) else record.original


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
        record = _Replacement(owner, name, Absent if inherited else current, new)
        _replacements.append(record)
    elif not is_ours(current):  # reloaded, or replaced by a third party, since the last time
        record.set(current, new)
    else:
        record.set(record.original, new)
    setattr(owner, name, new)
    return True


def restore_all() -> None:
    """Undo every `replace`. What somebody has put over ours stays, and ours below it is undone by a later call, should it
    come to light again."""
    builds.clear()
    _replacements[:] = [record for record in reversed(_replacements) if not _undo(record)][::-1]


def restore(owner: Any, name: str) -> None:
    """Undo one of them."""
    record = _record_of(owner, name)
    if record is not None:
        _replacements[:] = [other for other in _replacements if other is not record]
        _undo(record)


def _undo(record: _Replacement) -> bool:
    """Whether it is undone, or there is nothing left to undo it on."""
    owner = record.owner()
    if owner is None or record.ours is None:
        return True
    if getattr(owner, record.name, Absent) is not record.ours:
        return False
    if record.original is Absent:
        delattr(owner, record.name)
    else:
        setattr(owner, record.name, record.original)
    return True


# ---- the class of one nn.Module --------------------------------------------------------------------------------------


class Patch(Protocol):
    """Makes methods for a class. Hashable and picklable: it is what a copy's class is made again from."""

    def methods(self, cls: type) -> Mapping[str, Callable[..., Any]]: ...


class _Made(type):
    """The class of the classes made here, by which they are pickled: no name leads to them."""


class _Unannounced:
    """Stands before a base while a class is made of it, which is not told: `__init_subclass__` may register classes, or want
    arguments."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def _reduced(cls: type) -> Any:
    return (_patched, (cls.__bases__[0], vars(cls)[_PATCH])) if _PATCH in vars(cls) else cls.__qualname__


copyreg.pickle(_Made, _reduced)  # type: ignore[arg-type]


def _metaclass(cls: type) -> type:
    """That of the class which somebody wrote."""
    return type if type(cls) is _Made else type(cls)


def _patched(cls: type, patch: Patch) -> type:
    """The subclass of `cls` with the methods of `patch`. One for each pair, found again through `cls`: nothing here keeps
    a reloaded module's classes alive. It goes by the name of `cls`, which others save, print and choose by."""
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        if vars(subclass).get(_PATCH) == patch:
            return subclass
    named = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass = _Made if type(cls) is type else type(cls)
    made: Any = metaclass(cls.__name__, (_Unannounced, cls), {**named, **patch.methods(cls), _PATCH: patch})
    made.__bases__ = (cls,)

    # Its own, although it does as an inherited one would: tools that wrap those of all classes put back what they found.
    @functools.wraps(cls.__init__)  # type: ignore[misc]
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is made:  # `type(norm)(64)`: patched if `cls` builds what is patched
            _become(self, cls)
            cls.__init__(self, *args, **kwargs)  # type: ignore[misc]
        else:
            super(made, self).__init__(*args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced = super(made, self).__reduce_ex__(max(protocol, 2))  # the old protocols name the class
        if type(self) is not made or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        return (_new, (cls, patch, *reduced[1][1:]), *reduced[2:])

    def __prepare_scriptable__(self: Any) -> Any:
        """What torch.jit.script compiles instead: our methods are not written in its part of Python."""
        stock = copy.copy(self)
        restore_instance(stock)
        return stock

    for method in (__init__, __reduce_ex__, __prepare_scriptable__):
        setattr(made, method.__name__, method)
    return made


class PatchedAs(type):
    """The class of our modules' classes: a module that is patched as one of them is an instance of it, and a class whose
    modules are patched as they are built derives from it, where somebody asks."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls, instance) or cls._is(patch_of(type(instance)))

    def __subclasscheck__(cls, subclass: type) -> bool:
        by_patch = patch_of(subclass) or builds.get(subclass, {}).get(ANYWHERE)
        return type.__subclasscheck__(cls, subclass) or cls._is(by_patch)

    def _is(cls, patch: Any) -> bool:
        owner = getattr(patch, "owner", None)
        return owner is not None and type.__subclasscheck__(cls, owner)


# (path of its owner below the module, name, value): a number or the like that a stock forward reads and ours does not; without
# a path: nothing goes by that name
Values = tuple[tuple[str | None, str, Any], ...]


def have_changed(module: nn.Module, values: Values) -> bool:
    for path, name, value in values:
        if path is None:
            if any(name in module.__dict__[store] for store in _STORES) or name in module.__dict__:
                return True
        elif getattr(getattr(module, path) if path else module, name, value) != value:
            return True
    return False


def _new(cls: type, patch: Patch, *args: Any) -> Any:
    """`args`: what its `__new__` is given."""
    made: Any = _patched(cls, patch)
    return made.__new__(made, *args)


def patched_class(cls: type) -> type:
    """The class that somebody wrote, below the one that was made here, from which others may have derived."""
    return next((made.__bases__[0] for made in cls.__mro__ if _PATCH in vars(made)), cls)


def unpatched(cls: type) -> type:
    """`cls` without the subclasses made here, also where somebody (FSDP2) has derived from one."""
    if _PATCH in vars(cls):
        return unpatched(cls.__bases__[0])
    if not hasattr(cls, _PATCH):
        return cls
    cell = types.CellType()  # what `super()` without arguments asks for the class that it stands in
    own = {n: _moved(v, cls, cell) for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__")}
    made = _metaclass(cls)(cls.__name__, tuple(map(unpatched, cls.__bases__)), own)
    cell.cell_contents = made
    return made


def _moved(value: Any, cls: type, cell: types.CellType) -> Any:
    """`value`; if it is a function that was written in the body of `cls`, written in that of the class in `cell`."""
    free = value.__code__.co_freevars if isinstance(value, types.FunctionType) else ()
    if "__class__" not in free or value.__closure__[free.index("__class__")].cell_contents is not cls:
        return value
    closure = tuple(cell if name == "__class__" else old for name, old in zip(free, value.__closure__, strict=True))
    made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
    made.__kwdefaults__ = value.__kwdefaults__
    made.__dict__.update(value.__dict__)
    return made


def is_patched(module: nn.Module) -> bool:
    """Whether this instance's class was made here, or derived from one that was."""
    return hasattr(type(module), _PATCH)


def patch_of(cls: type) -> Any:
    """What the methods of such a class were made from; None of another."""
    return getattr(cls, _PATCH, None)


def forward_below(cls: type) -> Any:
    """The forward of the class that was patched, as it is now."""
    return original(patched_class(cls), "forward")


def give_methods(module: nn.Module, patch: Patch) -> bool:
    """Give this one instance the methods of `patch`. False, and nothing done, where that would lose a wrapper.

    A `forward` that somebody else put on the instance is kept: accelerate's hook calls `_old_forward` and its mixed
    precision is put around ours; any other wrapper (parallelism, compilation) cannot be looked into.
    """
    cls = type(module)
    if vars(cls).get(_PATCH) == patch:
        return True  # also below wrappers that were put over it since
    made = _patched(unpatched(cls), patch)
    slot, forward = _slot(module), made.forward  # type: ignore[attr-defined]
    if slot == "_old_forward":
        set_on_instance(module, slot, types.MethodType(forward, module))
    elif is_wrapped(module):
        around = mixed_precision.rewrap(module, forward)
        if around is None:
            return False
        for name, value in around.items():
            set_on_instance(module, name, value)
    else:
        module.__dict__.pop("forward", None)  # the method of its class, stored on the instance
    _become(module, made)
    return True


def _become(module: nn.Module, cls: type) -> None:
    object.__setattr__(module, "__class__", cls)  # whatever the class thinks of attributes


def _slot(module: nn.Module) -> str:
    """Where the innermost forward of an instance stands, if on the instance: accelerate's hook moves it aside."""
    return "_old_forward" if hasattr(module, "_hf_hook") and "_old_forward" in module.__dict__ else "forward"


def _forward_of(cls: Any) -> Any:
    return unpatched(cls).forward  # type: ignore[attr-defined]


def is_wrapped(module: nn.Module) -> bool:
    """Whether the innermost forward on an instance is neither ours nor just the method of its class, stored there."""
    forward = module.__dict__.get(_slot(module))
    return forward is not None and not is_ours(forward) and function_of(forward) is not _forward_of(type(module))


# ---- attributes of one nn.Module -------------------------------------------------------------------------------------


def set_on_instance(module: nn.Module, name: str, value: Any) -> None:
    """`module.name = value` in the instance's own dictionary, recorded."""
    record = module.__dict__.setdefault(_RECORD, {})
    current = module.__dict__.get(name, Absent)
    if name not in record:
        record[name] = (Absent if is_ours(current) else current, value)
    else:
        original, ours = record[name]
        foreign = (
            current is not Absent and not _same(current, ours) and not is_ours(inspect.unwrap(function_of(current)))
        )
        record[name] = (current if foreign else original, value)
    module.__dict__[name] = value


def _same(current: Any, ours: Any) -> bool:
    """Whether what we have put on an instance, or a copy of it, is still there."""
    return current is ours or (type(current) is type(ours) and bool(current == ours))


def holds_ours(module: nn.Module, name: str = "forward") -> bool:
    """Whether `module.name` is one of our methods, on the surface or below wrappers that were put over it."""
    value: Any = module.__dict__.get(name)
    for candidate in (value, module.__dict__.get("_old_forward"), module.__dict__.get("_original_forward")):
        if candidate is not None and (is_ours(candidate) or is_ours(inspect.unwrap(function_of(candidate)))):
            return True
    return False


def bind(module: nn.Module, name: str, function: Callable[..., Any]) -> bool:
    """Make `function` the method `name` of this one instance, in its dictionary: copies of the instance share it.

    False, and nothing done, where that would lose a wrapper (see `give_methods`).
    """
    slot = _slot(module) if name == "forward" else name
    if name == slot == "forward" and is_wrapped(module):
        return False
    set_on_instance(module, slot, types.MethodType(function, module))
    return True


def restore_instance(module: nn.Module) -> None:
    """Undo all of the above on this module (not on its children) that still stands."""
    cls = type(module)
    if hasattr(cls, _PATCH):
        _become(module, unpatched(cls))
    record = module.__dict__.pop(_RECORD, {})
    for name, (original, ours) in record.items():
        current = module.__dict__.get(name, Absent)
        if _same(current, ours):
            _put_back(module, name, original)
    if is_ours(module.__dict__.get("_old_forward")):
        # accelerate has moved our forward aside, and expects something to call there
        module.__dict__["_old_forward"] = types.MethodType(type(module).forward, module)
    forward = module.__dict__.get("forward")
    if is_ours(forward):  # accelerate has taken its hook, or its wrapper, off
        del module.__dict__["forward"]
    elif forward is not None and is_ours(inspect.unwrap(function_of(forward))):
        module.__dict__.update(mixed_precision.rewrap(module, type(module).forward) or {})


def _put_back(module: nn.Module, name: str, original: Any) -> None:
    if original is Absent or (name == "forward" and function_of(original) is type(module).forward):
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = original
