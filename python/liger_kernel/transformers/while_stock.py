"""A patched module computes as ours while the code of the forward that ours stands for is what it was; then as that forward."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from liger_kernel.transformers import patching, stock_calls, stock_code
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.stock_code import Code

logger = logging.getLogger("liger_kernel.transformers.monkey_patch")

_below = threading.local()  # running: ids of modules whose stock forward runs
WATCH = "_liger_watch"  # the attribute of the classes that patches make


class Watch(NamedTuple):
    """changed   whether other code runs by now; while compiling it is asked once
    helpers   methods that the forward calls, which an instance may have got otherwise
    values   that the forward reads and ours does not"""

    changed: Callable[[], bool]
    helpers: tuple[str, ...]
    values: patching.Values


def watch(cls: type, code: Code, values: patching.Values = ()) -> Watch:
    return Watch(asker(code, cls), code.helpers, values)


def watching(cls: type, written: bool, values: patching.Values = ()) -> dict[str, Any]:
    """The attributes by which a class that a patch makes of `cls` is watched. `written`: the code of `cls` is to be Hugging
    Face's or torch's own; else it is right as it is now."""
    if not written:
        return {WATCH: watch(cls, Code(cls, accepted=True), values)}
    code = stock_code.of_forward(cls)
    return {WATCH: watch(cls, code, values), stock_code.CODE: code}


def asker(code: Code, cls: type) -> Callable[[], bool]:
    """A function that says whether `code` runs no more, and warns of that."""

    def changed() -> bool:
        try:
            if code.stands():
                return False
        except AttributeError:
            pass
        found = code.replaced()
        if found is not None:
            warn_once(logger, cls, "changed-since", True, model=cls.__name__, cause=f"{found} has been replaced")
        return found is not None

    return torch.compiler.assume_constant_result(changed)  # type: ignore[no-any-return]


def while_stock(ours: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the forwards that patched modules are given."""
    names = _names(ours)

    @functools.wraps(ours)
    def forward(self: nn.Module, *x: Any, **by_name: Any) -> Any:
        watch = getattr(type(self), WATCH, None)
        if watch is None or not runs_stock(self, watch):
            return ours(self, *x, **_renamed(type(self), names, by_name)) if by_name else ours(self, *x)
        return _run_below(self, ours, *x, **by_name)

    return forward


def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def _renamed(cls: type, names: tuple[str, ...], by_name: dict[str, Any]) -> dict[str, Any]:
    """Arguments that go by the names of the stock forward, by those that ours has for them."""
    ours = _ours_for(cls, names)
    return {ours.get(name, name): value for name, value in by_name.items()}


@torch.compiler.assume_constant_result
def _ours_for(cls: type, names: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(_names(patching.forward_below(cls)), names, strict=False))


def _run_below(module: nn.Module, ours: Callable[..., Any], *x: Any, **by_name: Any) -> Any:
    """What stands below ours; which may call ours in turn, as what it was written around."""
    below = patching.forward_below(type(module))
    if torch.compiler.is_compiling():
        return below(module, *x, **by_name)
    running = _below.__dict__.setdefault("running", set())
    if id(module) in running:
        return ours(module, *x, **by_name)
    running.add(id(module))
    try:
        return below(module, *x, **by_name)
    finally:
        running.discard(id(module))


def runs_stock(module: nn.Module, watch: Watch) -> bool:
    return has_changed(module, watch) or stock_calls.is_seen(module)


def has_changed(module: nn.Module, watch: Watch) -> bool:
    changed, helpers, values = watch
    if changed():
        return True
    for name in helpers:
        if name in module.__dict__:
            cause = f"{name} of the module has been replaced"
            warn_once(logger, module, "changed-since", model=type(module).__name__, cause=cause)
            return True
    return bool(values) and patching.have_changed(module, values)
