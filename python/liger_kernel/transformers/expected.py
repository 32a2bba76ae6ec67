"""What the rows may patch in a model that exists: modules of the classes they expect, computing what those compute."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.activations import ACT2FN

from liger_kernel.transformers import module_patches, patching, stock
from liger_kernel.transformers.gated_mlp import GatedMLP, is_bare, seen_activation
from liger_kernel.transformers.geglu import LigerGEGLUMLP
from liger_kernel.transformers.layer_norm import LigerLayerNorm
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.module_patches import logger
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rows import Kind, Row
from liger_kernel.transformers.swiglu import LigerBlockSparseTop2MLP, LigerPhi3SwiGLUMLP

_SILU, _TANH_GELU = "SiLU", "tanh GELU"
_CLASSES = {
    "torch.nn.modules.activation.SiLU": _SILU,
    "transformers.activations.SiLUActivation": _SILU,
    "transformers.activations.PytorchGELUTanh": _TANH_GELU,
    "transformers.activations.GELUTanh": _TANH_GELU,
}
_PROJECTIONS: dict[type, tuple[str, ...]] = {
    GatedMLP: ("gate_proj", "up_proj", "down_proj"),
    LigerPhi3SwiGLUMLP: ("gate_up_proj", "down_proj"),
    LigerBlockSparseTop2MLP: ("w1", "w2", "w3"),
}


def modules_at(base: nn.Module, path: str, place: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of what is below `base` at a dotted path, `*` standing for each member of a list; missing ones are
    left out."""
    head, _, rest = path.partition(".")
    if head != "*":
        children = [(head, getattr(base, head, None))]
    else:
        children = list(base.named_children()) if isinstance(base, nn.ModuleList) else []
    for name, child in children:
        if isinstance(child, nn.Module):
            here = f"{place}{name}"
            yield from modules_at(child, rest, f"{here}.") if rest else [(here, child)]


def patch_kind(row: Row, kind: Kind, base: nn.Module, owner: str) -> list[bool]:
    """Patch all modules of a kind below `base`; for each, whether it is ours now. `owner` is the model's name."""
    return [
        patched
        for path in kind.paths
        for place, module in modules_at(base, path)
        if (patched := _patch_if_expected(row, kind, module, {"path": place, "model": owner})) is not None
    ]


def _patch_if_expected(row: Row, kind: Kind, module: nn.Module, where: Mapping[str, str]) -> bool | None:
    """None: the row knows that this module stands here, and leaves it alone."""
    copies = module_patches.peft_copies(module)
    if copies is not None:
        return all([_patch_if_expected(row, kind, copy, where) for copy in copies])
    cls = stock.class_of(module)
    if patching.is_ours(cls) or (patching.is_patched(module) and patching.is_ours(type(module).forward)):
        return True  # also below a class that somebody has derived from ours, for a parametrization
    name = cls.__name__ if cls.__module__.startswith("transformers.models.") else stock.full_name(cls)
    if name in row.alone:
        return None
    ours = kind.classes.get(name)
    if ours is None:
        expected = " or ".join(name.rpartition(".")[2] for name in kind.classes)
        warn_once(logger, module, "unexpected-class", found=cls.__name__, expected=expected, **where)
        return False
    if not stock.forward_is_own(cls, stock.full_name(cls)):
        warn_once(logger, module, "foreign-class-forward", found=cls.__name__, **where)
        return False
    return patch_as(module, ours, where)


def patch_as(module: nn.Module, ours: type[nn.Module], where: Mapping[str, str]) -> bool:
    """Make a module compute as our class, with the offset and casting of that class; False, with a WARNING, if it lacks
    something or has another activation."""
    if issubclass(ours, LigerRMSNorm):
        preset = inspect.signature(ours).parameters
        return module_patches._patch_rms_norm_module(
            module, **{name: preset[name].default for name in ("offset", "casting_mode", "in_place")}
        )
    if issubclass(ours, LigerLayerNorm):
        return module_patches._patch_layer_norm_module(module)
    projections = next(names for base, names in _PROJECTIONS.items() if issubclass(ours, base))
    missing = [name for name in projections if not isinstance(getattr(module, name, None), nn.Module)]
    if missing:
        warn_once(logger, module, "missing-child", child=missing[0], **where)
        return False
    other = _other_activation(getattr(module, "act_fn", getattr(module, "activation_fn", None)), ours)
    if other is not None:
        warn_once(logger, module, "other-activation", activation=other, **where)
        return False
    return module_patches._patch_module(module, ours)


def _activation(ours: type) -> str:
    return _TANH_GELU if issubclass(ours, LigerGEGLUMLP) else _SILU


def _other_activation(activation: Any, ours: type) -> str | None:
    """None if it computes what ours computes, and nothing else; what it is otherwise."""
    cls = type(activation)
    name = stock.full_name(cls)
    if _CLASSES.get(name) != _activation(ours) or _computed_in_python(activation):
        return cls.__name__
    if is_bare(activation) and stock.forward_is_own(cls, name):
        return None
    return f"{cls.__name__} with hooks or a forward of its own"


def _computed_in_python(activation: Any) -> bool:
    """GELUTanh has a variant that rounds at every step."""
    return inspect.ismethod(getattr(activation, "act", None))


# ---- classes, for models that are built later ------------------------------------------------------------------------


class _OrStock(type):
    """The class of our MLPs as they stand in a modelling module: a call builds ours, or Hugging Face's own where the config
    asks for an activation that ours has not. What is built is an instance of one or the other, with the children and
    parameters that Hugging Face's has; who derives from this class derives from Hugging Face's own."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        if "_stands_for" in namespace:
            return super().__new__(mcs, name, bases, namespace)
        own = tuple(base._stands_for if isinstance(base, mcs) else base for base in bases)  # type: ignore[attr-defined]
        return types.new_class(name, own, kwargs, exec_body=lambda body: body.update(namespace))

    def __call__(cls, config: Any, *args: Any, **kwargs: Any) -> Any:
        ours, original, entry = cls.__bases__[0], cls._stands_for, cls._entry  # type: ignore[attr-defined]
        activation = getattr(config, entry, None) or getattr(config, "hidden_act", None)
        made = ACT2FN[activation] if activation in ACT2FN else None
        other = _other_activation(made, ours)
        if other is not None:
            warn_once(logger, cls, "built-stock", name=original.__name__, activation=f"{activation} ({other})")
            return original(config, *args, **kwargs)
        names = stock.names_in(original.__init__)
        if getattr(config, "mlp_bias", False) and "mlp_bias" not in names:  # of another family, and ours would read it
            mlp = original(config, *args, **kwargs)
            module_patches._patch_module(mlp, ours)
            return mlp
        mlp = ours(config, *args, **kwargs)
        setattr(mlp, "activation_fn" if "activation_fn" in names else "act_fn", made)
        mlp.__dict__.update(seen_activation(mlp))
        return mlp

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, (*cls.__bases__, cls._stands_for))  # type: ignore[attr-defined]

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, (*cls.__bases__, cls._stands_for))  # type: ignore[attr-defined]


class _PatchedLayerNorm(type):
    """torch's LayerNorm as it stands in torch.nn for the whole process: a call builds torch's own, with its defaults, and
    patches that. Programs derive from it and ask for instances of it as of torch's."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_stands_for" not in vars(cls):
            return super().__call__(*args, **kwargs)
        made = cls._stands_for(*args, **kwargs)  # type: ignore[attr-defined]
        if made.weight is not None and made.weight.ndim == 1:
            module_patches._patch_layer_norm_module(made)
        return made

    def __instancecheck__(cls, instance: Any) -> bool:
        if "_stands_for" not in vars(cls):
            return super().__instancecheck__(instance)
        return isinstance(instance, cls._stands_for)  # type: ignore[attr-defined]

    def __subclasscheck__(cls, subclass: type) -> bool:
        if "_stands_for" not in vars(cls):
            return super().__subclasscheck__(subclass)
        return issubclass(subclass, cls._stands_for)  # type: ignore[attr-defined]


def stand_in(modeling: Any, name: str, ours: type, kind: Kind) -> Any:
    """What replaces the class `name` of a modelling module."""
    original = patching.original(modeling, name)
    if issubclass(ours, LigerRMSNorm) or original is patching.Absent:  # this release has no such class
        return ours
    home = {"__module__": ours.__module__}
    if issubclass(ours, LigerLayerNorm):
        return _PatchedLayerNorm(name, (original,), {**home, "_stands_for": original})
    own = {"__init__": original.__init__, "forward": original.forward}  # called by name, in derived classes
    return _OrStock(ours.__name__, (ours,), {**home, **own, "_stands_for": original, "_entry": kind.activation})
