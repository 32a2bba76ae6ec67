"""Making one module compute as one of our classes.

The functions that begin with `_` are also called by other packages, with any module. None asks about its class.
`expected.patch_as` is what the rows use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from liger_kernel.transformers import patching, stock
from liger_kernel.transformers.gated_mlp import seen_activation
from liger_kernel.transformers.geglu import LigerGEGLUMLP
from liger_kernel.transformers.layer_norm import LigerLayerNorm
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.while_stock import watching
from liger_kernel.utils import loaded_class

logger = logging.getLogger("liger_kernel.transformers.monkey_patch")


@dataclass(frozen=True)
class MethodsOf:
    """The methods of one of our modules: what it computes, and how it is printed. `epsilon`: the attribute of a norm that
    ours is to read for its variance_epsilon. `values`, `written`: see `while_stock.watching`. `attributes`: (name, value) of
    what the forward reads, also in modules of a class that somebody derives from the one made here."""

    owner: type[nn.Module]
    epsilon: str = ""
    values: patching.Values = ()
    written: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()

    def methods(self, cls: type) -> Mapping[str, Any]:
        name, epsilon = self.owner.__name__, self.epsilon
        methods: dict[str, Any] = {
            **dict(self.attributes),
            "forward": self.owner.forward,
            "_get_name": lambda self: name,
        }
        methods.update(watching(cls, self.written, self.values))
        if epsilon:
            methods["variance_epsilon"] = property(
                lambda self: getattr(self, epsilon), lambda self, value: setattr(self, epsilon, value)
            )
        if self.owner.extra_repr is not nn.Module.extra_repr:
            methods["extra_repr"] = self.owner.extra_repr
        return methods


def _bind_method_to_module(module: nn.Module, method_name: str, new_method: Callable[..., Any]) -> bool:
    """Bind `new_method` as `method_name` of this one instance, so that `revert_liger_kernel` can take it off again.

    Over an accelerate hook the method is bound below the hook. Over any other `forward` that somebody else put on the
    instance nothing is bound: False, and a WARNING.
    """
    return patching.bind(module, method_name, new_method) or _keeps_wrapper(module, method_name)


def give_methods(module: nn.Module, patch: patching.Patch) -> bool:
    """`patching.give_methods`, with a WARNING where it did nothing."""
    return patching.give_methods(module, patch) or _keeps_wrapper(module, "forward")


def _keeps_wrapper(module: nn.Module, name: str) -> bool:
    if patching.holds_ours(module, name):
        return True  # ours, with a wrapper over it since
    cause = stock.cause_of_wrapper(module.__dict__.get(name))
    warn_once(logger, module, "wrapped-forward", model=type(module).__name__, cause=cause)
    return False


def peft_copies(module: nn.Module) -> list[nn.Module] | None:
    """The modules behind a PEFT ModulesToSaveWrapper, or None if `module` is not one."""
    if not isinstance(module, loaded_class("peft.utils.other", "ModulesToSaveWrapper")):
        return None
    return [*module.modules_to_save.values(), module.original_module]


def patch_module(
    module: nn.Module,
    liger_module: type[nn.Module],
    epsilon: str = "",
    values: patching.Values = (),
    written: bool = False,
    **attributes: Any,
) -> bool:
    """Make a module compute as `liger_module`, with these attributes, which its forward reads; the others as in `MethodsOf`.

    False, and a WARNING, if its forward may not be replaced (see `_bind_method_to_module`).
    """
    copies = peft_copies(module)
    if copies is not None:
        return all([patch_module(copy, liger_module, epsilon, values, written, **attributes) for copy in copies])
    if not give_methods(module, MethodsOf(liger_module, epsilon, values, written, tuple(attributes.items()))):
        return False
    for name, value in {**attributes, **seen_activation(module)}.items():
        patching.set_on_instance(module, name, value)
    return True


def _name_of_epsilon(module: nn.Module) -> str | None:
    """The attribute that has it; it may be set anew at any time. 0 is a value."""
    patch = patching.patch_of(type(module))
    known = getattr(patch, "epsilon", "")
    names = (known,) if known else ("variance_epsilon", "eps")
    return next((name for name in names if getattr(module, name, None) is not None), None)


def patch_norm(module: nn.Module, liger_module: type[nn.Module], eps: float, **attributes: Any) -> bool:
    name = _name_of_epsilon(module)
    if name is None and isinstance(module, getattr(nn, "RMSNorm", ())):
        warn_once(logger, module, "epsilon-of-dtype", model=type(module).__name__)
        return False
    if name is None:
        attributes["variance_epsilon"] = eps
    return patch_module(module, liger_module, "" if name in (None, "variance_epsilon") else name, **attributes)


def _patch_rms_norm_module(
    module: nn.Module,
    offset: float = 0.0,
    eps: float = 1e-6,
    casting_mode: str = "llama",
    in_place: bool = True,
    row_mode: bool | None = None,
) -> bool:
    """Make a norm with a `weight` compute as `LigerRMSNorm`; False as in `patch_module`.

    Its own epsilon is kept; `eps` is for one that has none.
    """
    return patch_norm(
        module, LigerRMSNorm, eps, offset=offset, casting_mode=casting_mode, in_place=in_place, row_mode=row_mode
    )


def _patch_layer_norm_module(module: nn.Module, eps: float = 1e-6) -> bool:
    """Make a norm compute as `LigerLayerNorm`. Its own epsilon is kept; `eps` is for one that has none.

    False as in `patch_module`, and for a norm without a weight or over several dimensions.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1:
        warn_once(logger, module, "no-vector-weight", model=type(module).__name__)
        return False
    return patch_norm(module, LigerLayerNorm, eps, **of_layer_norm(module))


def of_layer_norm(module: nn.Module) -> dict[str, Any]:
    """What the forward of `LigerLayerNorm` reads of a module, but for weight, bias and epsilon."""
    size = getattr(module, "hidden_size", None) or getattr(module, "normalized_shape", None)
    return {"hidden_size": size, "impl": None, "mode": None}


def _patch_swiglu_module(module: nn.Module, liger_module: type[nn.Module]) -> bool:
    """Make an MLP with the same projections compute as `liger_module`; False as in `patch_module`."""
    return patch_module(module, liger_module)


def _patch_geglu_module(module: nn.Module) -> bool:
    """Make an MLP with the same projections compute as `LigerGEGLUMLP`; False as in `patch_module`."""
    return patch_module(module, LigerGEGLUMLP)
