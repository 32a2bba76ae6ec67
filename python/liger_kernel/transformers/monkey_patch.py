"""Patching Hugging Face models: `apply_liger_kernel_to_<family>`, by model type, on an instance, and back.

Every function is a row of the model table handed to one engine. Without a model it replaces attributes of the family's
modelling module, for models built later; with a model it changes that one instance. RoPE and the plain cross-entropy
function are reached only through names of modules, so these are replaced there in both cases.
Nothing is held of the modelling modules: programs substitute and reload them around these calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import transformers
from packaging import version

from liger_kernel.transformers import model_table, patching, stock_rotation
from liger_kernel.transformers.apply_row import apply_row, unwrap
from liger_kernel.transformers.messages import forget, forget_classes, warn
from liger_kernel.transformers.module_patches import (
    _bind_method_to_module,
    _patch_geglu_module,
    _patch_layer_norm_module,
    _patch_rms_norm_module,
    _patch_swiglu_module,
    logger,
)
from liger_kernel.transformers.rope import (
    liger_rotary_pos_emb,
    liger_rotary_pos_emb_gpt_oss,
    liger_rotary_pos_emb_vision,
)
from liger_kernel.transformers.rows import Row

__all__ = [  # noqa: PLE0604
    "IS_TRANSFORMERS_V5_OR_LATER",
    "LIGER_FLAGS",
    "MIN_SUPPORTED_TRANSFORMERS_VERSION",
    "MODEL_TYPE_TO_APPLY_LIGER_FN",
    "_apply_liger_kernel",
    "_apply_liger_kernel_to_instance",
    "_bind_method_to_module",
    "_patch_geglu_module",
    "_patch_layer_norm_module",
    "_patch_rms_norm_module",
    "_patch_swiglu_module",
    "apply_liger_kernel",
    "liger_rotary_pos_emb",
    "liger_rotary_pos_emb_gpt_oss",
    "liger_rotary_pos_emb_vision",
    "revert_liger_kernel",
    *(f"apply_liger_kernel_to_{row.name}" for row in model_table.ROWS),
]

MIN_SUPPORTED_TRANSFORMERS_VERSION = version.parse("4.52.0")
_installed_version = version.parse(transformers.__version__)
if _installed_version < MIN_SUPPORTED_TRANSFORMERS_VERSION:
    raise ImportError(
        f"liger_kernel patches transformers {MIN_SUPPORTED_TRANSFORMERS_VERSION} or newer, "
        f"but {transformers.__version__} is installed"
    )
IS_TRANSFORMERS_V5_OR_LATER: bool = _installed_version >= version.parse("5.0.0.dev0")

LIGER_FLAGS = (
    "rope",
    "cross_entropy",
    "fused_linear_cross_entropy",
    "rms_norm",
    "layer_norm",
    "swiglu",
    "geglu",
    "relu_squared",
)


# ---- the families ----------------------------------------------------------------------------------------------------

_MEANING = {
    "rope": "rotary position embedding, in the modelling module: for all models of the family",
    "cross_entropy": "the plain loss, for the whole process; not together with fused_linear_cross_entropy",
    "fused_linear_cross_entropy": "the loss fused into the output projection",
    "rms_norm": "the norms of the language model, and such norms elsewhere",
    "layer_norm": "the layer norms of the vision tower",
    "swiglu": "the MLPs",
    "geglu": "the MLPs",
}


def _require_model(function: str, model: Any) -> None:
    """One of Hugging Face's, perhaps in a wrapper that shows its configuration."""
    if not hasattr(model, "config"):
        raise TypeError(f"{function}: model must be a Hugging Face model, but {type(model).__name__} has no config")


def _apply_function(row: Row) -> Callable[..., None]:
    """`apply_liger_kernel_to_<name>`, with the row's flags as its parameters."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    defaults: dict[str, Any] = {**row.flags, "model": None}
    parameters = [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    if row.more_flags:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    signature = inspect.Signature(parameters)

    def apply_liger_kernel(*args: Any, **kwargs: Any) -> None:
        try:
            given = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"apply_liger_kernel_to_{row.name}() {error}; it takes {', '.join(defaults)}") from None
        given.update(given.pop("kwargs", {}))
        if given.get("model") is not None:
            _require_model(f"apply_liger_kernel_to_{row.name}", given["model"])
        apply_row(row, given.pop("model", None), given)

    apply_liger_kernel.__signature__ = signature  # type: ignore[attr-defined]
    apply_liger_kernel.__name__ = apply_liger_kernel.__qualname__ = f"apply_liger_kernel_to_{row.name}"
    apply_liger_kernel.__doc__ = "\n".join(
        [
            f"Patch {row.name}: the classes, for models built later, or the one `model` that is given.",
            "",
            *(f"{name:<28}{_MEANING[name]}" for name in row.flags),
        ]
    )
    return apply_liger_kernel


_APPLY = [(row, _apply_function(row)) for row in model_table.ROWS]
globals().update({function.__name__: function for _, function in _APPLY})


# ---- by model type ---------------------------------------------------------------------------------------------------

MODEL_TYPE_TO_APPLY_LIGER_FN: dict[str, Callable[..., None]] = {
    model_type: function for row, function in _APPLY for model_type in row.types
}


def _supported(model_type: str | None) -> Callable[..., None] | None:
    if not model_type:
        warn(logger, "no-model-type")
        return None
    apply_fn = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if apply_fn is None:
        warn(logger, "unknown-model-type", model_type=model_type)
    return apply_fn


def _accepted(apply_fn: Callable[..., None], model_type: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` that `apply_fn` takes; a WARNING for true flags that it does not know, silence for anything else."""
    parameters = set(inspect.signature(apply_fn).parameters)
    if "kwargs" in parameters:  # it hands flags on to the parts of the model
        parameters.update(LIGER_FLAGS)
    dropped = [flag for flag in LIGER_FLAGS if kwargs.get(flag) and flag not in parameters]
    if dropped:
        warn(logger, "flag-not-available", flags=", ".join(dropped), model_type=model_type)
    return {name: value for name, value in kwargs.items() if name in parameters}


def _apply_liger_kernel(model_type: str | None, **kwargs: Any) -> None:
    """Patch the classes of a model type. Keywords that its function does not take are dropped.

    An unknown type gives a WARNING and changes nothing.
    """
    apply_fn = _supported(model_type)
    if apply_fn is not None and model_type is not None:
        apply_fn(**_accepted(apply_fn, model_type, kwargs))


def _apply_liger_kernel_to_instance(model: Any, **kwargs: Any) -> None:
    """Patch one model, by the type in its config. Otherwise as `_apply_liger_kernel`."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    apply_fn = _supported(model_type)
    if apply_fn is not None and model_type is not None:
        apply_fn(model=model, **_accepted(apply_fn, model_type, kwargs))


def apply_liger_kernel(model: Any) -> dict[str, str]:
    """Patch one model, of whatever family: by the row of its type, or, where there is none, what behaves like our norms,
    MLPs, rotary embedding and loss. Prints and returns what was done: path -> what stands there now."""
    from liger_kernel.transformers import probing

    model = unwrap(model)
    _require_model("apply_liger_kernel", model)
    if getattr(getattr(model, "config", None), "model_type", None) in MODEL_TYPE_TO_APPLY_LIGER_FN:
        _apply_liger_kernel_to_instance(model)
        done = {
            path: module._get_name()
            for path, module in model.named_modules()
            if patching.is_ours(module.forward) and not stock_rotation.is_recording(module.forward)
        }
    else:
        done = probing.patch_by_behaviour(model)
    print(
        f"liger_kernel: {type(model).__name__}", *(list(probing.described(done)) or ["nothing is patched"]), sep="\n  "
    )
    return done


def revert_liger_kernel(model: Any = None) -> None:
    """Undo patching. With a model: exactly that instance gets its own methods and attributes back. Without: every
    replacement in a module or class is undone. What a third party has put in our place is left alone. Idempotent."""
    if model is None:
        patching.restore_all()
        stock_rotation.forget()
        forget_classes()
        return
    for module in model.modules():
        patching.restore_instance(module)
        forget(module)
