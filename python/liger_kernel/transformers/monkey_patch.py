"""Patching Hugging Face models: `apply_liger_kernel_to_<family>`, by model type, on an instance, and back.

Every function is a row of the model table handed to one engine. Without a model it replaces attributes of the family's
modelling module, for models built later; with a model it binds methods on that one instance. RoPE and the plain
cross-entropy function are reached only through names of modules, so these are replaced there in both cases.
Nothing is held of the modelling modules: programs substitute and reload them around these calls.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import transformers
from packaging import version
from torch import nn

from liger_kernel.transformers import patching, torch_cross_entropy
from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
from liger_kernel.transformers.geglu import LigerGEGLUMLP
from liger_kernel.transformers.layer_norm import LigerLayerNorm
from liger_kernel.transformers.model_table import LLAMA, ModelRow, Site
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rope import (
    liger_rotary_pos_emb,
    liger_rotary_pos_emb_gpt_oss,
    liger_rotary_pos_emb_vision,
)
from liger_kernel.utils import loaded_class

__all__ = [
    "IS_TRANSFORMERS_V5_OR_LATER",
    "LIGER_FLAGS",
    "MIN_SUPPORTED_TRANSFORMERS_VERSION",
    "MODEL_TYPE_TO_APPLY_LIGER_FN",
    "apply_liger_kernel_to_llama",
    "liger_rotary_pos_emb",
    "liger_rotary_pos_emb_gpt_oss",
    "liger_rotary_pos_emb_vision",
    "revert_liger_kernel",
]

logger = logging.getLogger(__name__)

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


# ---- one module at a time --------------------------------------------------------------------------------------------


def _bind_method_to_module(module: nn.Module, method_name: str, new_method: Callable[..., Any]) -> bool:
    """Bind `new_method` as `method_name` of this one instance, so that `revert_liger_kernel` can take it off again.

    Over an accelerate hook the method is bound below the hook. Over any other `forward` that somebody else put on the
    instance nothing is bound: False, and a WARNING.
    """
    if patching.bind(module, method_name, new_method):
        return True
    if patching.holds_ours(module, method_name):
        return True  # ours, with a wrapper over it since
    logger.warning(
        "%s keeps its own forward, which something else has wrapped (tensor, expert or pipeline parallelism?): "
        "this module is not patched",
        type(module).__name__,
    )
    return False


def _own_epsilon(module: nn.Module, default: float) -> float:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if value is not None:  # 0 is a value
            return value
    return default


def _peft_copies(module: nn.Module) -> list[nn.Module] | None:
    """The modules behind a PEFT ModulesToSaveWrapper, or None if `module` is not one."""
    if not isinstance(module, loaded_class("peft.utils.other", "ModulesToSaveWrapper")):
        return None
    return [*module.modules_to_save.values(), module.original_module]


def _patch_norm_module(module: nn.Module, liger_module: type[nn.Module], **attributes: Any) -> bool:
    """Make a norm compute as `liger_module`, with these attributes, which its forward reads.

    False, and a WARNING, if its forward may not be replaced (see `_bind_method_to_module`).
    """
    copies = _peft_copies(module)
    if copies is not None:
        return all([_patch_norm_module(copy, liger_module, **attributes) for copy in copies])
    if not _bind_method_to_module(module, "forward", liger_module.forward):
        return False
    for name, value in attributes.items():
        patching.set_on_instance(module, name, value)
    _bind_method_to_module(module, "extra_repr", liger_module.extra_repr)
    _bind_method_to_module(module, "_get_name", _name_method(liger_module.__name__))
    return True


def _patch_rms_norm_module(
    module: nn.Module,
    offset: float = 0.0,
    eps: float = 1e-6,
    casting_mode: str = "llama",
    in_place: bool = True,
    row_mode: bool | None = None,
) -> bool:
    """Make a norm with a `weight` compute as `LigerRMSNorm`; False as in `_patch_norm_module`.

    Its own epsilon is kept; `eps` is for one that has none.
    """
    return _patch_norm_module(
        module,
        LigerRMSNorm,
        offset=offset,
        casting_mode=casting_mode,
        variance_epsilon=_own_epsilon(module, eps),
        in_place=in_place,
        row_mode=row_mode,
    )


def _patch_layer_norm_module(module: nn.Module, eps: float = 1e-6) -> bool:
    """Make a norm compute as `LigerLayerNorm`. Its own epsilon is kept; `eps` is for one that has none.

    False as in `_patch_norm_module`, and for a norm without a weight or over several dimensions.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1:
        logger.warning("%s is not patched: it has no weight of one dimension", type(module).__name__)
        return False
    size = getattr(module, "hidden_size", None) or getattr(module, "normalized_shape", None)
    epsilon = _own_epsilon(module, eps)
    return _patch_norm_module(module, LigerLayerNorm, variance_epsilon=epsilon, hidden_size=size, impl=None, mode=None)


def _patch_swiglu_module(module: nn.Module, liger_module: type[nn.Module]) -> bool:
    """Make an MLP with the same projections compute as `liger_module`; False as in `_patch_norm_module`."""
    copies = _peft_copies(module)
    if copies is not None:
        return all([_patch_swiglu_module(copy, liger_module) for copy in copies])
    if not _bind_method_to_module(module, "forward", liger_module.forward):
        return False
    _bind_method_to_module(module, "_get_name", _name_method(liger_module.__name__))
    return True


def _patch_geglu_module(module: nn.Module) -> bool:
    """Make an MLP with the same projections compute as `LigerGEGLUMLP`; False as in `_patch_norm_module`."""
    return _patch_swiglu_module(module, LigerGEGLUMLP)


def _name_method(name: str) -> Callable[[Any], str]:
    def _get_name(self):
        return name

    return _get_name


# ---- the engine: one row, to the classes or to an instance -----------------------------------------------------------


def _apply_row(row: ModelRow, model: Any, **given: bool | None) -> None:
    """Apply `row` with the flags `given` (None counts as False): to its modelling module, or to `model`."""
    flags = {name: bool(value) for name, value in given.items()}
    assert not (flags.get("cross_entropy") and flags.get("fused_linear_cross_entropy")), (
        "cross_entropy and fused_linear_cross_entropy cannot both be True."
    )
    package, _, name = row.modeling.rpartition(".")
    # as `from package import name` finds it now, which may be a substitute for the module in sys.modules
    modeling = getattr(importlib.import_module(package), name, None) or importlib.import_module(row.modeling)

    if flags.get("rope"):
        _report("rope", [patching.replace(modeling, ours[0], globals()[ours[1]]) for ours in row.rope.items()], row)
    if flags.get("cross_entropy"):
        _report("cross_entropy", [_replace_cross_entropy(row, modeling)], row)
    if model is None:
        _apply_to_classes(row, modeling, flags)
    else:
        _apply_to_instance(row, model, flags)


def _report(flag: str, replaced: list[bool], row: ModelRow) -> None:
    if not any(replaced):
        logger.warning("%s=True replaced nothing in %s", flag, row.modeling)


def _replace_cross_entropy(row: ModelRow, modeling: Any) -> bool:
    if row.cross_entropy == "attribute":
        return patching.replace(modeling, "CrossEntropyLoss", LigerCrossEntropyLoss)
    from transformers.loss import loss_utils

    return torch_cross_entropy.stand_in(loss_utils.nn.functional)


def _apply_to_classes(row: ModelRow, modeling: Any, flags: dict[str, bool]) -> None:
    for flag, classes in row.classes.items():
        if flags.get(flag):
            _report(flag, [patching.replace(modeling, name, ours) for name, ours in classes.items()], row)
    if flags.get("fused_linear_cross_entropy"):
        owners = [(getattr(modeling, name, None), name) for name in row.causal_lm]
        replaced = [
            owner is not None and patching.replace(owner, "forward", _fused_forward(row, name))
            for owner, name in owners
        ]
        _report("fused_linear_cross_entropy", replaced, row)


def _fused_forward(row: ModelRow, class_name: str) -> Callable[..., Any]:
    file, _, function = row.causal_lm[class_name].partition(".")
    return getattr(importlib.import_module(f"liger_kernel.transformers.model.{file}"), function)


def _apply_to_instance(row: ModelRow, model: Any, flags: dict[str, bool]) -> None:
    model = _unwrap(model)
    if flags.get("fused_linear_cross_entropy"):
        _bind_fused_forward(row, model)
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    if flags.get("rms_norm") and getattr(model, "use_kernels", False) is True:
        logger.warning(
            "%s has use_kernels set: the norms patched on this instance are lost when it next changes between train() "
            "and eval(). Patch the class before the model is built instead.",
            type(model).__name__,
        )
    for flag in dict.fromkeys(site.flag for site in row.sites):
        if flags.get(flag):
            sites = [site for site in row.sites if site.flag == flag]
            _report(flag, [_patch_site(site, module) for site in sites for module in _modules_at(base, site.path)], row)


def _unwrap(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model or a compiled module."""
    if isinstance(model, loaded_class("torch._dynamo.eval_frame", "OptimizedModule")):
        model = model._orig_mod
    if isinstance(model, loaded_class("peft.peft_model", "PeftModel")):
        model = model.get_base_model()
    return model


def _bind_fused_forward(row: ModelRow, model: Any) -> None:
    # by name, not isinstance: the modelling module may have been reloaded or substituted since the model was built
    name = next(
        (c.__name__ for c in type(model).__mro__ if c.__module__ == row.modeling and c.__name__ in row.causal_lm), None
    )
    if name is None:
        logger.warning(
            "fused_linear_cross_entropy=True replaced nothing: %s is not one of %s; its forward is left alone",
            type(model).__name__,
            ", ".join(row.causal_lm),
        )
    elif model.get_output_embeddings() is None:
        logger.warning(
            "fused_linear_cross_entropy=True replaced nothing: %s has no output embeddings; its forward is left alone",
            type(model).__name__,
        )
    else:
        _bind_method_to_module(model, "forward", _fused_forward(row, name))


def _modules_at(base: nn.Module, path: str) -> Iterator[nn.Module]:
    """The sub-modules of `base` at a dotted path, `*` standing for each member of a list; missing ones are left out."""
    head, _, rest = path.partition(".")
    children = list(base) if head == "*" else [getattr(base, head, None)]  # type: ignore[call-overload]
    for child in children:
        if child is None:
            continue
        if rest:
            yield from _modules_at(child, rest)
        else:
            yield child


def _patch_site(site: Site, module: nn.Module) -> bool:
    if site.module is None:
        return _patch_rms_norm_module(module, **site.options)
    config = getattr(module, "config", None)
    activation = getattr(config, "hidden_act", "silu")
    if activation not in ("silu", "swish"):
        logger.warning("%s is not patched: its activation is %s", type(module).__name__, activation)
        return False
    return _patch_swiglu_module(module, site.module)


# ---- the families ----------------------------------------------------------------------------------------------------


def apply_liger_kernel_to_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    """Patch Llama: the classes, for models built later, or the one `model` that is given.

    rope                        rotary position embedding
    cross_entropy               torch.nn.functional.cross_entropy, for the whole process
    fused_linear_cross_entropy  the loss fused into the output projection; not together with cross_entropy
                                (AssertionError)
    rms_norm, swiglu            the norms; the MLPs
    """
    _apply_row(
        LLAMA,
        model,
        rope=rope,
        cross_entropy=cross_entropy,
        fused_linear_cross_entropy=fused_linear_cross_entropy,
        rms_norm=rms_norm,
        swiglu=swiglu,
    )


# ---- by model type ---------------------------------------------------------------------------------------------------

MODEL_TYPE_TO_APPLY_LIGER_FN: dict[str, Callable[..., None]] = {
    "llama": apply_liger_kernel_to_llama,
}


def _supported(model_type: str | None) -> Callable[..., None] | None:
    if not model_type:
        logger.warning("There is no model type: no Liger kernel is applied")
        return None
    apply_fn = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if apply_fn is None:
        logger.warning("Model type %r is not supported: no Liger kernel is applied", model_type)
    return apply_fn


def _accepted(apply_fn: Callable[..., None], model_type: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` that `apply_fn` takes; a WARNING for true flags that it does not know, silence for anything else."""
    parameters = inspect.signature(apply_fn).parameters
    dropped = [flag for flag in LIGER_FLAGS if kwargs.get(flag) and flag not in parameters]
    if dropped:
        logger.warning("%s: not available for model type %r, ignored", ", ".join(dropped), model_type)
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


def revert_liger_kernel(model: Any = None) -> None:
    """Undo patching. With a model: exactly that instance gets its own methods and attributes back. Without: every
    replacement in a module or class is undone. What a third party has put in our place is left alone. Idempotent."""
    if model is None:
        patching.restore_all()
        return
    for module in model.modules():
        patching.restore_instance(module)
