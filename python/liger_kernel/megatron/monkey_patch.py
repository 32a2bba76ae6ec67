"""Putting our kernels in the places of Megatron-Core's.

Megatron's modules are looked up by name in each call, because programs substitute and reload them. A replacement carries
`__liger_patched__`, and what it stands for as `__wrapped__`. All replacements are recorded in `transformers.patching`, so
`revert_liger_kernel()` puts back what is still ours.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from liger_kernel.megatron.rms_norm import LigerMegatronRMSNorm
from liger_kernel.megatron.swiglu import LigerMegatronSwiGLU
from liger_kernel.transformers import patching
from liger_kernel.transformers.messages import warn_once

logger = logging.getLogger(__name__)

_UNSET: Any = object()


# ---- what stands in Megatron's places --------------------------------------------------------------------------------


def _layer_norm(original: Any) -> Any:
    """Of a provider of the modules that layers are built from: the class of its norms."""

    @functools.wraps(original)
    def layer_norm(self, rms_norm=False, *args, **kwargs):
        return LigerMegatronRMSNorm if rms_norm else original(self, rms_norm, *args, **kwargs)

    return layer_norm


def _norm_impl(original: Any) -> Any:
    """The class of final norms that are not named in a specification."""

    class LayerNormImpl:
        def __new__(cls, config, hidden_size, eps=1e-5, **kwargs):
            is_rms = getattr(config, "normalization", None) == "RMSNorm"
            return (LigerMegatronRMSNorm if is_rms else original)(config, hidden_size, eps=eps, **kwargs)

    return LayerNormImpl


def _megatrons(tp_group: Any) -> Any:
    """Megatron's functions take its tensor-parallel group where a call names none, as it is at that time."""
    state = sys.modules.get("megatron.core.parallel_state")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if tp_group is not None or state is None or not distributed:
        return tp_group
    group_of = getattr(state, "get_tensor_model_parallel_group", None)
    if group_of is None:
        return None
    try:
        return group_of(check_initialized=False)
    except TypeError:  # of a Megatron-Core that always asserts
        return group_of()


def _fused_cross_entropy(original: Any) -> Any:
    from liger_kernel.megatron.cross_entropy import LigerMegatronCrossEntropy

    loss = LigerMegatronCrossEntropy()

    @functools.wraps(original)
    def fused_vocab_parallel_cross_entropy(vocab_parallel_logits, target, tp_group=None):
        return loss(vocab_parallel_logits, target, _megatrons(tp_group))

    return fused_vocab_parallel_cross_entropy


def _cross_entropy(original: Any) -> Any:
    from liger_kernel.megatron.cross_entropy import LigerMegatronCrossEntropy

    by_default = LigerMegatronCrossEntropy()

    @functools.wraps(original)
    def vocab_parallel_cross_entropy(vocab_parallel_logits, target, label_smoothing=_UNSET, tp_group=None):
        is_set = label_smoothing is not _UNSET
        loss = LigerMegatronCrossEntropy(label_smoothing=label_smoothing) if is_set else by_default
        return loss(vocab_parallel_logits, target, _megatrons(tp_group))

    return vocab_parallel_cross_entropy


def _swiglu_function(original: Any) -> Any:
    """No autograd Function itself: its `apply` calls ours."""
    swiglu = LigerMegatronSwiGLU(lambda input, bias, *flags: original.apply(input, *flags))

    class SwiGLUFunction:
        @staticmethod
        def apply(input, fp8_input_store=False, cpu_offload_input=False):
            return swiglu(input, None, fp8_input_store, cpu_offload_input)

    return SwiGLUFunction


# ---- the places ------------------------------------------------------------------------------------------------------

_BACKENDS = "models.backends"


@dataclass(frozen=True)
class _Place:
    """A symbol of a module below megatron.core; `copies`: where modules of Megatron's have bound it at import."""

    flag: str
    module: str
    symbol: str
    replacement: Callable[[Any], Any]
    copies: tuple[tuple[str, str], ...] = ()


_FUSED = _Place(
    "cross_entropy",
    "fusions.fused_cross_entropy",
    "fused_vocab_parallel_cross_entropy",
    _fused_cross_entropy,
    (
        ("models.common.language_module.language_module", "fused_vocab_parallel_cross_entropy"),
        (_BACKENDS, "_fused_ce"),
    ),
)
_PLACES = (
    _Place("rms_norm", _BACKENDS, "LocalSpecProvider.layer_norm", _layer_norm),
    _FUSED,
    _Place(
        "cross_entropy",
        "tensor_parallel.cross_entropy",
        "vocab_parallel_cross_entropy",
        _cross_entropy,
        (("tensor_parallel", "vocab_parallel_cross_entropy"),),
    ),
    _Place("swiglu", "fusions.fused_bias_swiglu", "SwiGLUFunction", _swiglu_function),
)


def _owner(place: _Place) -> Any:
    """The module or class whose attribute it is. ImportError where this Megatron-Core has none."""
    path = f"megatron.core.{place.module}.{place.symbol}"
    try:
        owner: Any = importlib.import_module(f"megatron.core.{place.module}")
    except ImportError as error:
        raise ImportError(
            f"apply_liger_kernel_to_megatron({place.flag}=True) replaces {path}, whose module cannot be imported: {error}. "
            "Is megatron-core installed?"
        ) from error
    *classes, name = place.symbol.split(".")
    for part in classes:
        owner = getattr(owner, part, None)
    if not hasattr(owner, name):
        raise ImportError(
            f"apply_liger_kernel_to_megatron({place.flag}=True) replaces {path}, which this megatron-core has not"
        )
    return owner


def _module(name: str) -> Any:
    """None for one that cannot be imported."""
    try:
        return importlib.import_module(f"megatron.core.{name}")
    except Exception:
        return None


def _is_patched(value: Any) -> bool:
    return getattr(value, "__liger_patched__", False) is True


def _replace(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Any:
    """What stands there then: ours, also if it did before."""
    original = getattr(owner, name)
    if not _is_patched(original):
        ours = replacement(original)
        ours.__wrapped__, ours.__liger_patched__ = original, True
        patching.replace(owner, name, ours)
    return getattr(owner, name)


def _replace_copies(copies: list[tuple[Any, str]], ours: Any) -> bool:
    """Where they are still what `ours` stands for. Whether any of them is `ours` now."""
    original = ours
    while _is_patched(original):
        original = original.__wrapped__
    for owner, name in copies:
        if getattr(owner, name, None) is original:
            patching.replace(owner, name, ours)
    return any(getattr(owner, name, None) is ours for owner, name in copies)


def _replace_norm_impl() -> None:
    """Transformer Engine's and Apex's are left alone, and there may be none."""
    block, stock = _module("transformer.transformer_block"), _module("transformer.torch_norm")
    impl = getattr(block, "LayerNormImpl", None)
    if impl is not None and impl is getattr(stock, "WrappedTorchNorm", None):
        _replace(block, "LayerNormImpl", _norm_impl)


def apply_liger_kernel_to_megatron(rms_norm=True, cross_entropy=False, swiglu=False) -> None:
    """Patch Megatron-Core, for models that are built later. Applying twice equals applying once.

    rms_norm        the RMSNorms of the local specification, and the final norm if it would be Megatron's wrapper of torch's
    cross_entropy   fused_vocab_parallel_cross_entropy and vocab_parallel_cross_entropy, and Megatron's own copies of them
    swiglu          the SwiGLU without a bias; an input stored in fp8 or offloaded stays with Megatron

    ImportError, and nothing is replaced, where one of these places does not exist. Megatron's parallel state is not asked
    here, so this may come before its initialisation. A call of a cross entropy that names no group takes Megatron's.
    """
    flags = {"rms_norm": rms_norm, "cross_entropy": cross_entropy, "swiglu": swiglu}
    found = [
        (place, _owner(place), [(_module(module), name) for module, name in place.copies])
        for place in _PLACES
        if flags[place.flag]
    ]
    for place, owner, copies in found:
        about = _replace(owner, place.symbol.rpartition(".")[2], place.replacement)
        if not _replace_copies(copies, about) and place is _FUSED:
            warn_once(logger, about, "megatron-call-sites", symbol=place.symbol)
    if rms_norm:
        _replace_norm_impl()
