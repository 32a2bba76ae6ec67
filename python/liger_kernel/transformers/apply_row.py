"""The engine: one row of the model table, applied to the classes of its modelling module or to one model."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from liger_kernel.transformers import (
    built_later,
    expected,
    model_table,
    module_patches,
    patching,
    stock,
    stock_code,
    stock_rotation,
    torch_cross_entropy,
)
from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.model.causal_lm import projection_of
from liger_kernel.transformers.model.fused_forward import FusedForward, asks_for_loss, fused_forward
from liger_kernel.transformers.module_patches import logger
from liger_kernel.transformers.rows import Kind, Row
from liger_kernel.transformers.stock_code import Code, Place
from liger_kernel.transformers.while_stock import watch
from liger_kernel.utils import loaded_class

FLCE = "fused_linear_cross_entropy"
LOSSES = ("cross_entropy", FLCE)


def apply_row(row: Row, model: Any, given: Mapping[str, bool | None]) -> None:
    """Apply `row` with its flags, by default or as `given` (None counts as False): to its modelling module, or to
    `model`."""
    flags = {name: bool(value) for name, value in {**row.flags, **given}.items()}
    if model is not None:
        model = unwrap(model)
    _check_call(row, model, flags)
    about = _modeling(row) if model is None else model
    for flag, reason in row.alone.items():
        if flags.get(flag):
            warn_once(logger, about, "flag-unused", flag=flag, modeling=row.module, reason=reason)
    if row.experts and given.get("swiglu"):
        warn_once(logger, about, "experts-stock", flag="swiglu", experts=row.experts)
    found = Found()
    _apply(row, model, flags, found)
    for flag in row.flags:
        if model is None and flag not in given and not _has_names(row, flag):
            continue  # this release has nothing of the kind, and nobody has asked for it
        if flags[flag] and flag not in row.alone and flag not in found and not (row.experts and flag == "swiglu"):
            warn_once(logger, about, "nothing-replaced", flag=flag, modeling=row.module)
    if model is not None and (unknown := [flag for flag in given if flags[flag] and flag not in found.asked]):
        warn_once(logger, about, "flag-of-no-part", flags=", ".join(unknown), model=type(model).__name__)


def _has_names(row: Row, flag: str) -> bool:
    """Whether the modelling module has a class that the flag replaces; of flags that replace no classes: as if it had."""
    names = [name for kind in row.kinds if kind.flag == flag for name in (kind.replaced or kind.classes)]
    return not names or any(hasattr(_modeling(row), name.partition(".")[0]) for name in names)


class Found(set[str]):
    """Flags for which there was something: it is ours now, or a warning has said why not. `asked`: all that were known."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()


def _check_call(row: Row, model: Any, flags: Mapping[str, bool]) -> None:
    assert not (flags.get("cross_entropy") and flags.get(FLCE)), (
        "cross_entropy and fused_linear_cross_entropy cannot both be True."
    )
    for flag, reason in row.refused.items():
        if flags.get(flag):
            raise NotImplementedError(reason)
    if model is not None and row.accepts:
        names = {cls.__name__ for cls in type(model).__mro__ if cls.__module__ == row.module}
        if not names & set(row.accepts):
            raise WrongModel(f"{type(model).__name__} is not one of {', '.join(row.accepts)}")


class WrongModel(TypeError, ValueError):
    """The function of a family was given a model of another."""


def _apply(row: Row, model: Any, flags: Mapping[str, bool], found: Found) -> None:
    found.asked.update(row.flags)
    modeling = _modeling(row)
    if flags.get("rope") and (_keeps_rope(row, model) or _replace_rope(row, modeling, model)):
        found.add("rope")
    if flags.get("cross_entropy") and _replace_cross_entropy(row, modeling):
        found.add("cross_entropy")
    if model is None:
        _apply_to_classes(row, modeling, flags, found)
    else:
        _apply_to_instance(row, model, flags, found)


def _modeling(row: Row) -> Any:
    """As `from package import name` finds it now, which may be a substitute for the module in sys.modules."""
    package, _, name = row.module.rpartition(".")
    return getattr(importlib.import_module(package), name, None) or importlib.import_module(row.module)


def _keeps_rope(row: Row, model: Any) -> bool:
    """Whether the rotation is left as it is because a rotary module of `model` is not the family's own: the tables that
    others make may have halves that differ, of which ours reads the first. A warning names it."""
    modules = [] if model is None or not row.rope else model.named_modules()
    for path, module in modules:
        if path.rpartition(".")[2] == "rotary_emb" and not stock_rotation.is_own(module, row.module):
            warn_once(
                logger, model, "foreign-rotary", path=path, model=type(model).__name__, found=type(module).__name__
            )
            return True
    return False


def _replace_rope(row: Row, modeling: Any, model: Any) -> bool:
    """Whichever of the row's functions this release has, and nobody else has replaced."""
    replaced = []
    for kind in row.rope:
        name, about = kind.attribute, modeling if model is None else model
        ours: Any = getattr(importlib.import_module(f"liger_kernel.transformers.{kind.file}"), kind.ours)
        if patching.is_real(modeling) and hasattr(modeling, name):
            if _stays(modeling, name, about, stock_rotation.code_of(modeling, name)):
                replaced.append(True)
                continue
            ours = stock_rotation.while_stock(modeling, name, ours)
        replaced.append(patching.replace(modeling, name, ours))
    if model is not None:
        stock_rotation.watch_model(model)
    return any(replaced)


def _stays(owner: Any, name: str, about: Any, code: Code | None = None) -> bool:
    """Whether somebody has put a function or class of his own under that name, or into what stands there. A warning names
    it. What stands in a substitute for the modelling module is there to be replaced."""
    current = getattr(owner, name, None)
    if not patching.is_real(owner) or current is None:
        return False
    if patching.is_ours(current):
        return False
    found = _somebody_elses(Place(vars(owner), name), current, code)
    if found is not None:
        warn_once(logger, about, "replaced-name", name=name, modeling=owner.__name__, found=found)
    return found is not None


def _somebody_elses(place: Place, current: Any, code: Code | None) -> str | None:
    if not stock_code.is_written(place, current):
        described = current if hasattr(current, "__qualname__") else type(current)
        return f"{described.__module__}.{described.__qualname__}"
    if code is None:
        code = stock_code.of_forward(current) if isinstance(current, type) else Code(place)
    return code.replaced()


def _replace_cross_entropy(row: Row, modeling: Any) -> bool:
    if row.cross_entropy == "attribute":
        stays = _stays(modeling, "CrossEntropyLoss", modeling)
        return stays or built_later.patch_class(modeling, modeling, "CrossEntropyLoss", LigerCrossEntropyLoss)
    if row.cross_entropy == "nn":
        stays = _stays(modeling.nn, "CrossEntropyLoss", modeling)
        return stays or built_later.patch_class(modeling, modeling.nn, "CrossEntropyLoss", LigerCrossEntropyLoss)
    from transformers.loss import loss_utils

    functional = loss_utils.nn.functional
    return _stays(functional, "cross_entropy", modeling) or torch_cross_entropy.stand_in(functional)


def _part_flags(part: Row, flags: Mapping[str, bool]) -> dict[str, bool]:
    """Those of the whole, and the part's defaults for others; losses belong to the whole."""
    return {name: flags.get(name, default) and name not in LOSSES for name, default in part.flags.items()}


# ---- classes ---------------------------------------------------------------------------------------------------------


def _apply_to_classes(row: Row, modeling: Any, flags: Mapping[str, bool], found: Found) -> None:
    for kind in row.kinds:
        if flags.get(kind.flag) and any(_replace_classes(modeling, kind)):
            found.add(kind.flag)
    if flags.get(FLCE):
        for name in row.heads:
            if _replace_forward(row, getattr(modeling, name, None), name):
                found.add(FLCE)
    for name in row.class_rows:
        other = model_table.row_named(name)
        _apply(other, None, _part_flags(other, flags), found)


def _replace_classes(modeling: Any, kind: Kind) -> list[bool]:
    names = kind.classes if kind.replaced is None else dict.fromkeys(kind.replaced, next(iter(kind.classes.values())))
    replaced = []
    for path, ours in names.items():
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, modeling)
        stays = _stays(owner, name, modeling)
        replaced.append(stays or built_later.patch_class(modeling, owner, name, ours, kind.activation))
    return replaced


def _replace_forward(row: Row, owner: Any, name: str) -> bool:
    if owner is None:
        return False
    forward = patching.original(owner, "forward")
    if isinstance(owner, type):
        found = stock_code.of_forward(owner).replaced()
        if found is not None:
            warn_once(logger, owner, "own-forward", model=name, found=found)
            return True
        if not asks_for_loss(forward):
            warn_once(logger, owner, "own-loss", model=name)
            return True
    watched = watch(owner, stock_code.of_forward(owner)) if isinstance(owner, type) else None
    return patching.replace(owner, "forward", fused_forward(row.heads[name], forward, watched))


# ---- an instance -----------------------------------------------------------------------------------------------------


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model or a compiled module."""
    if isinstance(model, loaded_class("torch._dynamo.eval_frame", "OptimizedModule")):
        model = model._orig_mod
    if isinstance(model, loaded_class("peft.peft_model", "PeftModel")):
        model = model.get_base_model()
    return model


def _apply_to_instance(row: Row, model: Any, flags: Mapping[str, bool], found: Found) -> None:
    name = type(model).__name__
    if flags.get(FLCE):
        _fuse_loss(row, model)
        found.add(FLCE)  # or it has been said why not
    if flags.get("rms_norm") and getattr(model, "use_kernels", False) is True:
        warn_once(logger, model, "use-kernels", model=name)
    base = base_of(row, model)
    for kind in row.kinds:
        start = text_of(row, base) if not kind.part else base._modules.get(kind.part)
        if flags.get(kind.flag) and start is not None and expected.patch_kind(row, kind, start, name):
            found.add(kind.flag)
    for path in row.parts:
        for place, part in expected.modules_at(base, path):
            model_type = getattr(getattr(part, "config", None), "model_type", None)
            part_row = model_table.row_of_part(model_type)
            if part_row is None:
                warn_once(logger, model, "part-not-supported", path=place, model=name, model_type=model_type)
            else:
                _apply(part_row, part, _part_flags(part_row, flags), found)


def base_of(row: Row, model: Any) -> Any:
    """The base model of `model`, which may be it, or have any head on it."""
    names = {head.base for head in row.heads.values()} | {"model", getattr(model, "base_model_prefix", "")}
    return next((model._modules[name] for name in sorted(names) if model._modules.get(name) is not None), model)


def text_of(row: Row, base: Any) -> Any:
    return base._modules.get(row.text) or base


def _fuse_loss(row: Row, model: Any) -> None:
    name = next(
        (c.__name__ for c in type(model).__mro__ if c.__module__ == row.module and c.__name__ in row.heads), None
    )
    described = {"model": type(model).__name__}
    tp = getattr(model.config, "pretraining_tp", 1)
    if name is None:
        warn_once(logger, model, "not-a-causal-lm", expected=", ".join(row.heads), **described)
    elif projection_of(model, row.heads[name]) is None:
        warn_once(logger, model, "no-output-embeddings", **described)
    elif (found := stock_code.of_forward(stock.class_of(model)).replaced()) is not None:
        warn_once(logger, model, "own-forward", found=found, **described)
    elif not asks_for_loss(type(model).forward):
        warn_once(logger, model, "own-loss", **described)
    elif tp > 1:
        warn_once(logger, model, "pretraining-tp", tp=tp, **described)
    else:
        module_patches.give_methods(model, FusedForward(row.heads[name]))
