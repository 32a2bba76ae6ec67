"""Every warning that patching gives: each text once, under the name by which the troubleshooting page explains it."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch import nn

MESSAGES = {
    # which model
    "no-model-type": "There is no model type: no Liger kernel is applied",
    "unknown-model-type": "Model type {model_type!r} is not supported: no Liger kernel is applied",
    "flag-not-available": "{flags}: not available for model type {model_type!r}, ignored",
    "nothing-replaced": "{flag}=True replaced nothing in {modeling}",
    "flag-unused": "{flag}=True replaced nothing in {modeling}: {reason}",
    "experts-stock": "{flag}=True leaves {experts} alone: LigerExperts is not faster than these fused experts",
    "part-not-supported": "{path} of {model} is not patched: model type {model_type!r} is not supported there",
    "flag-of-no-part": "{flags}: no part of {model} has it, ignored",
    # one module
    "unexpected-class": "{path} of {model} is not patched: it is {found}, not {expected}",
    "foreign-class-forward": "{path} of {model} is not patched: {found}, which its forward runs, has been replaced",
    "changed-since": "{model} computes as Hugging Face's own again: {cause} since it was patched",
    "stock-call": "{model} computes as Hugging Face's own where the kernel cannot: {cause}",
    "other-activation": "{path} of {model} is not patched: its activation is {activation}",
    "missing-child": "{path} of {model} is not patched: it has no {child}",
    "foreign-rotary": (
        "apply_rotary_pos_emb is not replaced: {path} of {model} ({found}) is not, or is no longer, the family's own"
    ),
    "stock-rotation": "{name} of {modeling} rotates as Hugging Face's own again: {found} is not, or is no longer, its own",
    "replaced-name": "{name} of {modeling} is not replaced: {found} is not, or is no longer, its own",
    "built-stock": "{name} is built as Hugging Face's own: {reason}",
    "wrapped-forward": "{model} keeps its own forward: {cause}. This module is not patched",
    "epsilon-of-dtype": "{model} is not patched: its epsilon depends on the dtype of its input",
    "no-vector-weight": "{model} is not patched: it has no weight of one dimension",
    "use-kernels": (
        "{model} has use_kernels set: the norms patched on this instance are lost when it next changes between train() "
        "and eval()"
    ),
    # the fused loss, when it is patched in
    "not-a-causal-lm": (
        "fused_linear_cross_entropy=True replaced nothing: {model} is not one of {expected}; its forward is left alone"
    ),
    "no-output-embeddings": (
        "fused_linear_cross_entropy=True replaced nothing: {model} has no output embeddings; its forward is left alone"
    ),
    "own-forward": (
        "fused_linear_cross_entropy=True replaced nothing: {model} has a forward of its own ({found}), which is left "
        "alone"
    ),
    "own-loss": (
        "fused_linear_cross_entropy=True replaced nothing: the forward of {model} in this transformers computes its loss by "
        "itself"
    ),
    "pretraining-tp": (
        "fused_linear_cross_entropy=True replaced nothing: pretraining_tp is {tp}; the forward of {model} is left alone"
    ),
    # the fused loss, when it is run
    "loss-not-fused": "The loss is not fused with the output head of {model}: {reason}.",
    "attention-not-eager": (
        "{model} is trained with {attention} attention; for this family attn_implementation='eager' is recommended"
    ),
    "skip-without-targets": "skip_logits is True, but labels and shift_labels are None: logits are computed",
    # Megatron-Core
    "megatron-call-sites": (
        "cross_entropy=True has replaced {symbol}, but nothing in megatron-core that calls it was found: fused configurations "
        "may keep Megatron's kernel"
    ),
}

_said: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def _text(name: str, values: dict[str, object]) -> str:
    return f"{MESSAGES[name].format(**values)} (docs/troubleshooting.md#{name})"


def warn(logger: logging.Logger, name: str, /, **values: object) -> None:
    """A WARNING with the text of that name, and where the documentation explains it."""
    logger.warning(_text(name, values))


def warn_once(logger: logging.Logger, about: Any, name: str, /, in_trace: object = False, **values: object) -> None:
    """The same, once per text and what it is about, a module, a class or a modelling module: a training loop comes by at
    every step, a Trainer at every train(). Compilers cannot trace it; `in_trace` says that this is a call that they make."""
    if torch.compiler.is_compiling() and not in_trace:
        return
    text = _text(name, values)
    try:
        said = _said.setdefault(about, set())
    except TypeError:  # a substitute for a modelling module need not be hashable
        said = _said.setdefault(type(about), set())
    if text not in said:
        said.add(text)
        logger.warning(text)


def forget_classes() -> None:
    """Class patches have been undone: of the next ones all is said again."""
    for about in [about for about in _said if not isinstance(about, nn.Module)]:
        del _said[about]


def forget(module: nn.Module) -> None:
    """The patch of this module has been undone."""
    _said.pop(module, None)
