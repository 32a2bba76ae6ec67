"""Is what a patch stands for still what Hugging Face and torch wrote?

A forward is more than its own text: it calls helpers of its class, functions of its module and of torch. Each may have been
replaced, before we patch or afterwards, and the stock forward calls what stands there then. So a patch goes by the `Code`
of the forward that it replaces: the places where that forward, and what it calls within transformers, look something up,
found by reading the instructions. A place is as written if what stands there comes from the file that should have written
it, under the name that it has there; a recording would miss whoever came before us.

`Code.replaced` is asked in every call. It compares what stands in the places with what stood there when it judged last,
and judges anew only when something has moved. What is not seen: methods of tensors, numbers and tables, and what torch's
functions call in turn.
"""

from __future__ import annotations

import dis
import functools
import inspect
import linecache
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers import patching

CODE = "_liger_code"  # the attribute of the classes that patches make which holds that of the class below
CALL = ("forward", "__call__", "_call_impl")  # what runs when a module is called, but for hooks

_OURS_READS_IT_TOO = frozenset({"loss_function"})  # in every call, and does as it says
_NAMED_OTHERWISE = {"__call__": "_wrapped_call_impl"}
_KINDS = frozenset(
    {"transformers", "torch", "kernels", "logging", "builtins", "collections"}
)  # of objects that are read
_BASES = frozenset(nn.Module.__mro__)
_WRITING = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL"})


class Place:
    """Where something is looked up: a class or the dictionary of a module, and a name there."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.key = owner, name, (id(owner), name)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Place) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        home = self.owner.get("__name__") if isinstance(self.owner, dict) else self.owner.__name__
        return f"{home}.{self.name}"

    def now(self) -> Any:
        if isinstance(self.owner, dict):
            return self.owner.get(self.name, patching.Absent)
        return getattr(self.owner, self.name, patching.Absent)

    def original(self) -> Any:
        """What stood there before us."""
        owner = sys.modules.get(self.owner.get("__name__", "")) if isinstance(self.owner, dict) else self.owner
        return self.now() if owner is None else patching.original(owner, self.name)


class Code:
    """What runs when `starts` are called: functions, places, or classes of modules, of which `methods` run.

    `accepted`: what stands in its places now is right, whoever wrote it; only what is put there later is not.

    stands    a quick look, for every call: True if all is as it was judged right; else, or if it fails, ask `replaced`
    names     what the functions name: attributes, globals and constants
    keywords  what they may take of keyword arguments that are gathered: strings that they spell, parameters with a default
    reads     attributes that they read of the object whose methods they are
    helpers   methods of its own class that it calls, which an instance might have otherwise
    closed    names of variables of functions around them, which cannot be seen
    writes    names of attributes and globals that they set
    """

    def __init__(self, *starts: Any, methods: tuple[str, ...] = ("forward",), accepted: bool = False) -> None:
        self._starts, self._methods, self._anywhere = starts, methods, accepted
        found = _Reader(accepted).read(starts, methods).found if accepted else {}
        self._accepted = {place: (value, _text_of(value)) for place, value in found.items()}
        self._judge()

    def replaced(self) -> str | None:
        """The first place where something else stands by now, in words; None if all is as it should be."""
        try:
            return self._verdict if self._is_as_judged() else self._judge()
        except AttributeError:  # something has been deleted
            return self._judge()

    def _judge(self) -> str | None:
        reader = _Reader(self._anywhere).read(self._starts, self._methods)
        self.names, self.reads, self.closed = frozenset(reader.names), frozenset(reader.reads), frozenset(reader.closed)
        self.keywords, self.writes = frozenset(reader.keywords), frozenset(reader.writes)
        self.helpers = tuple(sorted(reader.helpers))
        wrong = (str(place) for place, value in reader.found.items() if not self._is_right(place, value))
        self._verdict: str | None = next(wrong, None)
        self._is_as_judged = _comparison(reader.found)
        self.stands = self._is_as_judged if self._verdict is None else _never
        return self._verdict

    def _is_right(self, place: Place, value: Any) -> bool:
        if patching.is_ours(value):
            value = place.original()
        accepted, text = self._accepted.get(place, (None, None))
        return (value is accepted and _text_of(value) is text and place in self._accepted) or is_written(place, value)


def _text_of(value: Any) -> Any:
    """Programs that reload edited files put it into the function that is there. Of a decorated one: that of the innermost."""
    return getattr(inspect.unwrap(value), "__code__", None) if isinstance(value, types.FunctionType) else None


def _never() -> bool:
    return False


def _comparison(places: dict[Place, Any]) -> Callable[[], bool]:
    """Whether these places hold these values. One expression, `o0.forward is v0 and o1('rsqrt', absent) is v1 and ...`:
    every patched module asks in every call."""
    names: dict[str, Any] = {"absent": patching.Absent}
    terms = ["True"]
    for i, (place, value) in enumerate(places.items()):
        names[f"v{i}"] = value
        if isinstance(place.owner, dict):
            names[f"o{i}"] = place.owner.get
            terms.append(f"o{i}({place.name!r}, absent) is v{i}")
        elif value is patching.Absent:
            names[f"o{i}"] = place.now
            terms.append(f"o{i}() is v{i}")
        else:
            names[f"o{i}"] = place.owner
            terms.append(f"o{i}.{place.name} is v{i}")
        if patching.is_ours(value):
            value = place.original()  # runs again if its text is another
        for j, link in enumerate(links_of(value) if isinstance(value, types.FunctionType) else ()):
            names[f"v{i}_{j}"], names[f"c{i}_{j}"] = link, getattr(link, "__code__", None)
            terms.append(f"v{i}_{j}.__code__ is c{i}_{j}" if names[f"c{i}_{j}"] is not None else "True")
    return eval(f"lambda: {' and '.join(terms)}", names)  # type: ignore[no-any-return]


def of_forward(cls: type) -> Code:
    """That of the forward of a class, found again through the classes that patches have made of it: nothing here keeps a
    reloaded module's classes alive."""
    made: list[type] = type.__subclasses__(cls)
    known = (vars(each).get(CODE) for each in made)
    return next((code for code in known if code is not None), None) or Code(cls)


@functools.lru_cache(256)  # of classes that somebody makes anew for each model, too
def of_call(cls: type) -> Code:
    """That of a call of a module of torch's or transformers' own, which are never reloaded; another's, for which somebody has
    asked by hand, is right as it was."""
    return Code(cls, methods=CALL, accepted=not _package_of(cls))


@torch.compiler.assume_constant_result
def replaced_in_call(cls: type) -> str | None:
    return of_call(cls).replaced()


# ---- who has written it ----------------------------------------------------------------------------------------------


def is_written(place: Place, value: Any) -> bool:
    """Whether what stands in a place is what transformers or torch put there, or ours."""
    if patching.is_ours(value):
        return True
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return _is_written_function(place, value)
    if isinstance(value, type):
        return (
            (_package_of(value) != "" or _is_pythons(value))
            and value.__name__ == place.name
            and _is_at_home(place, value)
        )
    if isinstance(value, types.BuiltinFunctionType):
        return value.__name__ == place.name
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value
    if value is patching.Absent or isinstance(value, (functools.partial, int, float, str)):
        return False
    if callable(value) or place.name in _defined_in(_home(place)):
        return False  # not the function or class that stands there
    return _module_of(type(value)).partition(".")[0] in _KINDS


def _is_written_function(place: Place, value: types.FunctionType) -> bool:
    inner = inspect.unwrap(value)
    if place.name == "linear" and _module_of(value).startswith("deepspeed."):
        return True  # for ZeRO-3: it saves memory, and computes the same
    if not (_is_pythons(inner) or written_in(value, _package_of(inner))):
        return False
    if isinstance(place.owner, dict):
        return inner.__name__ == place.name and _is_at_home(place, inner)
    name = _NAMED_OTHERWISE.get(place.name, place.name)
    homes = {(base.__module__, f"{base.__qualname__}.{name}") for base in place.owner.__mro__}
    return (_module_of(inner), inner.__qualname__) in homes


def _is_at_home(place: Place, value: Any) -> bool:
    """A module that defines a name itself has no other module's thing under it."""
    home = _home(place)
    return _module_of(value) == home or place.name not in _defined_in(home)


def _home(place: Place) -> str:
    return str(place.owner.get("__name__", "") if isinstance(place.owner, dict) else place.owner.__module__)


def _module_of(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "")


def _package_of(value: Any) -> str:
    """transformers or torch, or nothing."""
    package = _module_of(value).partition(".")[0]
    return package if package in ("transformers", "torch") else ""


def _is_pythons(value: Any) -> bool:
    """Whether it is of the standard library, by its module and, of a function, by its file."""
    if _module_of(value).partition(".")[0] not in sys.stdlib_module_names:
        return False
    code = getattr(value, "__code__", None)
    return code is None or code.co_filename.startswith((_folder("os"), "<frozen "))


def written_in(function: Any, package: str) -> bool:
    """Whether `function` and all that it wraps was written in `package`, where its text has these decorators (which may be
    torch's)."""
    if not package:
        return False
    home, links = _folder(package), links_of(function)
    files = [getattr(getattr(link, "__code__", None), "co_filename", "") for link in links]
    if not files[-1].startswith(home) or not all(file.startswith((home, _folder("torch"))) for file in files):
        return False
    return len(links) == 1 or _are_in_text(links[:-1], links[-1].__code__)


def links_of(function: Any) -> list[Any]:
    """A function, what it wraps, and so on."""
    links = [function]
    while (inner := getattr(links[-1], "__wrapped__", None)) is not None and len(links) < 32:
        links.append(inner)
    return links


def _are_in_text(wrappers: list[Any], code: types.CodeType) -> bool:
    """Whether these are what the decorators above the text of a function make, in their order."""
    decorators = iter(_decorators(code.co_filename, code.co_firstlineno))
    return all(any(made_by in (decorator, "") for decorator in decorators) for made_by in map(_made_by, wrappers))


def _made_by(wrapper: Any) -> str:
    """The last name of the decorator that has made a wrapper: a function's, or that of the class of a context of torch's.
    Nothing if it cannot be seen (Python 3.10), and the wrapper is not torch's."""
    code = wrapper.__code__
    if "ctx_factory" in code.co_freevars:
        made = wrapper.__closure__[code.co_freevars.index("ctx_factory")].cell_contents
        return type(getattr(made, "__self__", None)).__name__
    unseen = code.co_name if code.co_filename.startswith(_folder("torch")) else ""
    return str(getattr(code, "co_qualname", unseen)).partition(".")[0]


@functools.lru_cache(4096)
def _decorators(file: str, line: int) -> tuple[str, ...]:
    """The last names of those above a function, whose text begins with the first of them."""
    found = []
    while text := linecache.getline(file, line):
        if text.lstrip().startswith(("def ", "async def ", "class ")):
            break
        if match := re.match(r"\s*@([\w.]+)", text):
            found.append(match[1].rpartition(".")[2])
        line += 1
    return tuple(found)


@functools.cache
def _folder(package: str) -> str:
    return os.path.join(os.path.dirname(sys.modules[package].__file__ or "?"), "")


@functools.lru_cache(1024)
def _defined_in(module: str) -> frozenset[str]:
    """The functions and classes that the text of a module defines."""
    try:
        text = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"^(?:def|class) (\w+)", text, re.MULTILINE))


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Follows calls from function to function: within transformers or, `anywhere`, wherever it is not torch."""

    def __init__(self, anywhere: bool) -> None:
        self.found: dict[Place, Any] = {}
        self.names: set[Any] = set()
        self.keywords: set[str] = set()
        self.reads: set[str] = set()
        self.helpers: set[str] = set()
        self.closed: set[str] = set()
        self.writes: set[str] = set()
        self._anywhere, self._read = anywhere, set[Any]()

    def read(self, starts: tuple[Any, ...], methods: tuple[str, ...]) -> _Reader:
        for start in starts:
            if isinstance(start, type):
                for method in methods:
                    self._method(start, method)
            elif isinstance(start, Place):
                self._place(start, None)
            else:
                self._function(start, None)
        return self

    def _method(self, cls: type, name: str) -> None:
        """As a class has it, and as those that it derives from have it, for `super()`."""
        owners = (cls, *(base for base in cls.__mro__[1:] if base not in _BASES and name in vars(base)))
        for owner in owners:
            self._place(Place(owner, name), cls)

    def _place(self, place: Place, cls: type | None) -> None:
        if place in self.found:
            return
        value = self.found[place] = place.now()
        if patching.is_ours(value):
            value = place.original()
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, types.FunctionType) and (self._anywhere or is_written(place, value)):
            self._function(value, cls)

    def _function(self, function: Any, cls: type | None) -> None:
        inner = inspect.unwrap(function)
        code = getattr(inner, "__code__", None)
        if (
            code is None
            or (code, cls) in self._read
            or patching.is_ours(inner)
            or (_package_of(inner) == "torch" and not _is_a_modules(inner))
        ):
            return
        self._read.add((code, cls))
        receiver = code.co_varnames[0] if cls is not None and code.co_argcount else None
        self.closed.update(set(code.co_freevars) - {"__class__"})
        self.keywords.update(p.name for p in inspect.signature(inner).parameters.values() if p.default is not p.empty)
        for part in _parts(code):
            self.names.update(part.co_names, part.co_consts)
            self.keywords.update(each for each in part.co_consts if isinstance(each, str) and each.isidentifier())
            self.writes.update(each.argval for each in dis.get_instructions(part) if each.opname in _WRITING)
            if "getattr" in part.co_names or "hasattr" in part.co_names:
                self.reads.update(each for each in part.co_consts if isinstance(each, str) and each.isidentifier())
            for of_receiver, path in _paths(part, receiver):
                if not of_receiver:
                    self._global(inner.__globals__, path)
                elif cls is not None:
                    self.reads.add(path[0])
                    self._helper(cls, path[0])

    def _helper(self, cls: type, name: str) -> None:
        if name in _OURS_READS_IT_TOO or hasattr(nn.Module, name):
            return
        value = inspect.getattr_static(cls, name, None)
        if isinstance(value, (types.FunctionType, staticmethod)):
            self.helpers.add(name)
        if isinstance(value, (types.FunctionType, staticmethod, property)):
            self._method(cls, name)

    def _global(self, owner: dict[str, Any], path: tuple[str, ...]) -> None:
        for i, name in enumerate(path):
            value = owner.get(name)
            constant = self._anywhere and isinstance(value, (int, float, str))
            if callable(value) or constant or i + 1 < len(path):  # also a module, and whatever stands for one
                self._place(Place(owner, name), None)
            if not isinstance(value, types.ModuleType):
                return
            owner = value.__dict__


def _is_a_modules(function: Any) -> bool:
    """Of torch: whether it is the forward of a kind of module, which may be a function of torch by another name."""
    return function.__name__ == "forward" and not function.__qualname__.startswith("Module.")


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _parts(constant)


def _paths(code: types.CodeType, receiver: str | None) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """The dotted names that code reads: of its globals, and (True) of the object whose method it is."""
    yield from _paths_of(dis.get_instructions(code), receiver)
    if receiver is not None and "super" in code.co_names:
        yield from ((True, (name,)) for name in code.co_names if name != "super")


def read_of_receiver(method: Any) -> frozenset[str]:
    """The attributes that a method reads of the object whose method it is."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is None or not code.co_argcount:
        return frozenset()
    return frozenset(path[0] for of_receiver, path in _paths(code, code.co_varnames[0]) if of_receiver)


def _paths_of(instructions: Iterable[Any], receiver: str | None) -> Iterator[tuple[bool, tuple[str, ...]]]:
    of_receiver, path = False, list[str]()
    for instruction in instructions:
        name, read = instruction.opname, instruction.argval
        if name in ("LOAD_ATTR", "LOAD_METHOD") and (path or of_receiver):
            path.append(read)
            continue
        if name in ("PUSH_NULL", "CACHE", "PRECALL", "EXTENDED_ARG"):
            continue
        if path:
            yield of_receiver, tuple(path)
        last = read[-1] if isinstance(read, tuple) and read else read
        loads = name.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_FAST_LOAD_FAST"))
        of_receiver = receiver is not None and loads and last == receiver
        path = [read] if name == "LOAD_GLOBAL" else []
