"""Classes of Hugging Face's and torch's whose modules are patched as they are built.

Such a class stays what it is, under its name. So code that pickles it, derives from it, names it to `super`, walks its
subclasses or has imported it already is none the wiser. Only its `__init__` is ours, which patches what it has built if
that is a module of this very class.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

from liger_kernel.transformers import expected, patching, stock_code
from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.module_patches import give_methods, logger
from liger_kernel.transformers.torch_cross_entropy import OfLosses


def patch_class(modeling: Any, owner: Any, name: str, ours: type[nn.Module], activation: str = "") -> bool:
    """The class `name` of a modelling module, or of torch.nn, builds patched modules from now on. In a substitute for a
    modelling module ours goes by its name. False if there is no such name."""
    cls = getattr(owner, name, None)
    if not patching.is_real(owner) or not isinstance(cls, type) or not issubclass(cls, nn.Module):
        return patching.replace(owner, name, ours)
    # what a modelling module has imported is patched where its code builds it, and nowhere else
    is_imported = owner is modeling and cls.__module__ != modeling.__name__
    where = modeling.__name__ if is_imported else patching.ANYWHERE
    patching.builds.setdefault(cls, {})[where] = patching.Built(ours, activation)
    init: Any = cls.__init__  # type: ignore[misc]
    if any(map(patching.is_ours, stock_code.links_of(init))):  # also below what others have put over it
        return True
    return patching.replace(cls, "__init__", _patching(cls, init))


def _patching(cls: Any, init: Any) -> Any:
    inherited = "__init__" not in vars(cls)

    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if inherited:
            super(cls, self).__init__(*args, **kwargs)
        else:
            init(self, *args, **kwargs)
        if next(base for base in type(self).__mro__ if "__init__" in vars(base)) is cls:  # else it is not built yet
            _patch_built(self)

    return __init__


def _patch_built(module: nn.Module) -> None:
    cls = type(module)
    places = patching.builds.get(cls, {})
    built = places.get(patching.ANYWHERE) or (places.get(_builder(module)) if places else None)
    if built is None or not _has_vector_weight(module):
        return
    reason = _why_stock(module, built)
    if reason is None:
        if issubclass(built.owner, LigerCrossEntropyLoss):
            give_methods(module, OfLosses())
        else:
            expected.patch_unasked(module, built.owner)
    else:
        warn_once(logger, cls, "built-stock", name=cls.__name__, reason=reason)


def _has_vector_weight(module: nn.Module) -> bool:
    """Torch's layer norms are asked for without a weight, or over several dimensions, too: no warning."""
    return not isinstance(module, nn.LayerNorm) or (module.weight is not None and module.weight.ndim == 1)


def _builder(module: nn.Module) -> str:
    """The name of the module whose code builds `module`: beyond what others have put around the `__init__`s."""
    frame = inspect.currentframe()
    while frame is not None and _is_given(frame, module):
        frame = frame.f_back
    return "" if frame is None else frame.f_globals.get("__name__", "")


def _is_given(frame: Any, module: nn.Module) -> bool:
    """Whether a running function has `module` as its first argument."""
    code, values = frame.f_code, frame.f_locals
    first = values.get(code.co_varnames[0]) if code.co_varnames else None
    return first is module or (isinstance(first, tuple) and bool(first) and first[0] is module)


def _why_stock(made: nn.Module, built: patching.Built) -> str | None:
    """Why a module that has just been built is not to be patched, in words."""
    replaced = expected.replaced_code(made)
    if replaced is not None:
        return f"{replaced} has been replaced"
    if not issubclass(built.owner, expected.PROJECTIONS_OF):
        return None
    missing = expected.missing_child(made, built.owner)
    if missing is not None:
        return f"it has no {missing}"
    other = expected.other_activation(expected.activation_of(made), built.owner)
    config = getattr(made, "config", None)
    named = getattr(config, built.activation, None) or getattr(config, "hidden_act", None) or "another"
    return None if other is None else f"its activation is {named} ({other})"
