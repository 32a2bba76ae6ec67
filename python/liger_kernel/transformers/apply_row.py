"""The engine: one row of the model table, applied to the classes of its modelling module or to one model."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from liger_kernel.transformers import expected, module_patches, patching, rope, stock, torch_cross_entropy
from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
from liger_kernel.transformers.messages import warn
from liger_kernel.transformers.model.fused_forward import FusedForward, fused_forward
from liger_kernel.transformers.module_patches import logger
from liger_kernel.transformers.rows import Row
from liger_kernel.utils import loaded_class

FLCE = "fused_linear_cross_entropy"


def apply_row(row: Row, model: Any, given: Mapping[str, bool | None]) -> None:
    """Apply `row` with its flags, by default or as `given` (None counts as False): to its modelling module, or to
    `model`."""
    flags = {name: bool(given.get(name, default)) for name, default in row.flags.items()}
    if model is not None:
        model = unwrap(model)
    _check_call(row, model, flags)
    for flag, reason in row.alone.items():
        if flags.get(flag):
            warn(logger, "flag-unused", flag=flag, modeling=row.module, reason=reason)
    if row.experts and given.get("swiglu"):
        warn(logger, "experts-stock", flag="swiglu", experts=row.experts)
    modeling = _modeling(row)
    if flags.get("rope") and "rope" not in row.alone:
        _report(
            row, "rope", [patching.replace(modeling, kind.attribute, getattr(rope, kind.ours)) for kind in row.rope]
        )
    if flags.get("cross_entropy"):
        _report(row, "cross_entropy", [_replace_cross_entropy(row, modeling)])
    if model is None:
        _apply_to_classes(row, modeling, flags)
    else:
        _apply_to_instance(row, model, flags)


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
            raise TypeError(f"{type(model).__name__} is not one of {', '.join(row.accepts)}")


def _modeling(row: Row) -> Any:
    """As `from package import name` finds it now, which may be a substitute for the module in sys.modules."""
    package, _, name = row.module.rpartition(".")
    return getattr(importlib.import_module(package), name, None) or importlib.import_module(row.module)


def _report(row: Row, flag: str, replaced: list[bool]) -> None:
    if not any(replaced) and not (row.experts and flag == "swiglu"):  # all its MLPs may be experts
        warn(logger, "nothing-replaced", flag=flag, modeling=row.module)


def _replace_cross_entropy(row: Row, modeling: Any) -> bool:
    if row.cross_entropy == "attribute":
        return patching.replace(modeling, "CrossEntropyLoss", LigerCrossEntropyLoss)
    from transformers.loss import loss_utils

    return torch_cross_entropy.stand_in(loss_utils.nn.functional)


def _apply_to_classes(row: Row, modeling: Any, flags: Mapping[str, bool]) -> None:
    for flag in dict.fromkeys(kind.flag for kind in row.kinds):
        if flags.get(flag):
            _report(row, flag, list(_replace_classes(row, modeling, flag)))
    if flags.get(FLCE):
        _report(row, FLCE, [_replace_forward(row, getattr(modeling, name, None), name) for name in row.heads])


def _replace_classes(row: Row, modeling: Any, flag: str) -> Iterator[bool]:
    for kind in row.kinds:
        if kind.flag == flag and kind.class_level:
            for name, ours in kind.classes.items():
                yield patching.replace(modeling, name, expected.stand_in(modeling, name, ours, kind))


def _replace_forward(row: Row, owner: Any, name: str) -> bool:
    if owner is None:
        return False
    if isinstance(owner, type) and not stock.forward_is_own(owner, f"{row.module}.{name}"):
        warn(logger, "own-forward", model=name)
        return False
    return patching.replace(owner, "forward", fused_forward(row.heads[name], patching.original(owner, "forward")))


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model or a compiled module."""
    if isinstance(model, loaded_class("torch._dynamo.eval_frame", "OptimizedModule")):
        model = model._orig_mod
    if isinstance(model, loaded_class("peft.peft_model", "PeftModel")):
        model = model.get_base_model()
    return model


def _apply_to_instance(row: Row, model: Any, flags: Mapping[str, bool]) -> None:
    if flags.get(FLCE):
        _fuse_loss(row, model)
    if flags.get("rms_norm") and getattr(model, "use_kernels", False) is True:
        warn(logger, "use-kernels", model=type(model).__name__)
    base = base_of(row, model)
    for flag in dict.fromkeys(kind.flag for kind in row.kinds):
        if flags.get(flag):
            kinds = [kind for kind in row.kinds if kind.flag == flag]
            found = [done for kind in kinds for done in expected.patch_kind(row, kind, base, type(model).__name__)]
            if not found:
                _report(row, flag, found)


def base_of(row: Row, model: Any) -> Any:
    """The text model of `model`, which may be the base model, or have any head on it."""
    names = {head.base for head in row.heads.values()} | {"model", getattr(model, "base_model_prefix", "")}
    base = next((model._modules[name] for name in sorted(names) if model._modules.get(name) is not None), model)
    return base._modules.get(row.text) or base


def _fuse_loss(row: Row, model: Any) -> None:
    name = next(
        (c.__name__ for c in type(model).__mro__ if c.__module__ == row.module and c.__name__ in row.heads), None
    )
    described = {"model": type(model).__name__}
    tp = getattr(model.config, "pretraining_tp", 1)
    if name is None:
        warn(logger, "not-a-causal-lm", expected=", ".join(row.heads), **described)
    elif model.get_output_embeddings() is None:
        warn(logger, "no-output-embeddings", **described)
    elif not stock.forward_is_own(type(model), f"{row.module}.{name}"):
        warn(logger, "own-forward", **described)
    elif tp > 1:
        warn(logger, "pretraining-tp", tp=tp, **described)
    else:
        module_patches.give_methods(model, FusedForward(row.heads[name]))
