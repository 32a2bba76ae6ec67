"""What the rows may patch in a model that exists: modules of the classes they expect, computing what those compute."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from liger_kernel.transformers import module_patches, patching, stock, stock_code
from liger_kernel.transformers.gated_mlp import GatedMLP, is_bare
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
PROJECTIONS_OF = (GatedMLP, LigerPhi3SwiGLUMLP, LigerBlockSparseTop2MLP)
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
    replaced = replaced_code(module)
    if replaced is not None:
        warn_once(logger, module, "foreign-class-forward", found=replaced, **where)
        return False
    return patch_as(module, ours, where)


def replaced_code(module: nn.Module) -> str | None:
    """What the forward of a module's class runs and somebody has replaced, there or on this instance."""
    code = stock_code.of_forward(stock.class_of(module))
    on_instance = (f"{name} of the module" for name in code.helpers if name in module.__dict__)
    return code.replaced() or next(on_instance, None)


def patch_as(module: nn.Module, ours: type[nn.Module], where: Mapping[str, str]) -> bool:
    """Make a module of Hugging Face's or torch's own class compute as our class, with the offset and casting of that class;
    False, with a WARNING, if it lacks something or has another activation."""
    if issubclass(ours, LigerLayerNorm) and (module.weight is None or module.weight.ndim != 1):
        return module_patches._patch_layer_norm_module(module)  # which says why not
    if issubclass(ours, PROJECTIONS_OF):
        missing, other = missing_child(module, ours), other_activation(activation_of(module), ours)
        if missing is not None:
            warn_once(logger, module, "missing-child", child=missing, **where)
            return False
        if other is not None:
            warn_once(logger, module, "other-activation", activation=other, **where)
            return False
    return patch_unasked(module, ours)


def patch_unasked(module: nn.Module, ours: type[nn.Module]) -> bool:
    if issubclass(ours, LigerRMSNorm):
        preset = inspect.signature(ours).parameters
        options = {name: preset[name].default for name in ("offset", "casting_mode", "in_place")}
        return module_patches.patch_norm(module, LigerRMSNorm, 1e-6, written=True, row_mode=None, **options)
    if issubclass(ours, LigerLayerNorm):
        of_module = module_patches.of_layer_norm(module)
        return module_patches.patch_norm(module, LigerLayerNorm, 1e-6, written=True, **of_module)
    return module_patches.patch_module(module, ours, written=True)


def missing_child(module: nn.Module, ours: type[nn.Module]) -> str | None:
    projections = next(names for base, names in _PROJECTIONS.items() if issubclass(ours, base))
    return next((name for name in projections if not isinstance(getattr(module, name, None), nn.Module)), None)


def activation_of(module: nn.Module) -> Any:
    return getattr(module, "act_fn", getattr(module, "activation_fn", None))


def _activation(ours: type) -> str:
    return _TANH_GELU if issubclass(ours, LigerGEGLUMLP) else _SILU


def other_activation(activation: Any, ours: type) -> str | None:
    """None if it computes what ours computes, and nothing else; what it is otherwise."""
    cls = type(activation)
    if _CLASSES.get(stock.full_name(cls)) != _activation(ours):
        return cls.__name__
    if not is_bare(activation):
        return f"{cls.__name__} with hooks or a function of its own"
    replaced = stock_code.replaced_in_call(cls)
    return None if replaced is None else f"{cls.__name__}, and {replaced} has been replaced"
