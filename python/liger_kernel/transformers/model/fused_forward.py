"""The fused-loss forward as a method: made from the signature of the forward that it replaces.

Trainer drops the columns of a data set by that signature, `generate` the inputs of a step, and callers may pass arguments
by position. All forwards made here are one function with different signatures; what it does stands in `causal_lm`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from liger_kernel.transformers import patching
from liger_kernel.transformers.model import causal_lm
from liger_kernel.transformers.rows import Head
from liger_kernel.transformers.stock import names_in, spelled_in
from liger_kernel.transformers.while_stock import WATCH, Watch, runs_stock, watching

# The parameters of most families' forwards.
LANGUAGE_MODEL = (
    "input_ids attention_mask position_ids past_key_values inputs_embeds labels use_cache output_attentions "
    "output_hidden_states return_dict cache_position logits_to_keep skip_logits kwargs"
)

_SKIP_LOGITS = inspect.Parameter("skip_logits", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="bool | None")


@dataclass(frozen=True)
class FusedForward:
    """What an instance's class is patched with: see `patching.Patch`. `values`, `written`: see `while_stock.watching`."""

    head: Head
    values: patching.Values = ()
    written: bool = True

    def methods(self, cls: type) -> Mapping[str, Callable[..., Any]]:
        forward: Any = cls.forward  # type: ignore[attr-defined]
        watched = watching(cls, self.written, self.values)
        if not patching.is_ours(forward):
            forward = fused_forward(self.head, forward, watched[WATCH])
        return {**watched, "forward": forward}


def asks_for_loss(forward: Callable[..., Any]) -> bool:
    """Whether a forward takes its loss from the model's loss_function, as the fused one does."""
    return patching.is_ours(forward) or "loss_function" in names_in(forward)


def fused_forward(head: Head, stock: Callable[..., Any], watch: Watch | None = None) -> Callable[..., Any]:
    """A forward with the parameters of `stock`, and the keyword `skip_logits`. Once what is watched has changed, `stock`
    runs, or what stands in its place."""
    signature = inspect.signature(stock)
    if "skip_logits" not in signature.parameters:
        parameters = list(signature.parameters.values())
        last = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        signature = signature.replace(parameters=[*parameters[:last], _SKIP_LOGITS, *parameters[last:]])
    return _with_signature(head, signature, "forward", getattr(stock, "__qualname__", "forward"), stock, watch)


def _forward_now(model: Any, stock: Callable[..., Any]) -> Callable[..., Any]:
    """That of an instance's class, which may be another one by now, or the one that was replaced in the class."""
    forward = patching.forward_below(type(model)) if patching.is_patched(model) else stock
    return stock if patching.is_ours(forward) else forward


@torch.compiler.assume_constant_result
def _caller(cls: Any) -> tuple[str | None, bool]:
    """The forward of a class, if it is not ours: that of somebody who has derived from a class of ours, or has wrapped its
    forward. And whether it may have said `skip_logits` itself; else it hands on what a Trainer has said."""
    if patching.is_ours(cls.forward):
        return None, True
    return getattr(cls.forward, "__qualname__", type(cls.forward).__name__), "skip_logits" in spelled_in(cls.forward)


def named_forward(head: Head, parameters: str, name: str = "lce_forward") -> Callable[..., Any]:
    """The forward of a family's file in this folder: its parameters, separated by blanks, are the same whatever
    transformers is installed. The last one gathers the loss's keyword arguments."""
    *named, rest = parameters.split()
    kinds = inspect.Parameter
    signature = inspect.Signature(
        [
            kinds("self", kinds.POSITIONAL_OR_KEYWORD),
            *(
                kinds(word, kinds.POSITIONAL_OR_KEYWORD, default=0 if word == "logits_to_keep" else None)
                for word in named
            ),
            kinds(rest, kinds.VAR_KEYWORD),
        ]
    )
    return _with_signature(head, signature, name, name)


def _with_signature(
    head: Head,
    signature: inspect.Signature,
    name: str,
    qualified: str,
    stock: Any = None,
    watch: Watch | None = None,
) -> Callable[..., Any]:
    by_position = tuple(
        p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    )[1:]
    named = frozenset(p.name for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD)

    def lce_forward(self, *args: Any, **kwargs: Any):
        """The family's forward, without materialising the logits where only the loss is wanted.

        `skip_logits` None means: in training, when there are targets. The keyword arguments may hold `shift_labels`
        (already shifted targets), `num_items_in_batch` (a number or tensor to divide the summed loss by),
        `ignore_index`, `label_smoothing`, `return_token_accuracy`, `return_predicted_tokens`, `accum_dtype`,
        `use_token_scaling`, and what the base model takes.
        """
        if watch is not None and runs_stock(self, watch):
            kwargs.pop("skip_logits", None)
            return _forward_now(self, stock)(self, *args, **kwargs)
        if len(args) > len(by_position):
            raise TypeError(f"{qualified} takes {len(by_position)} positional arguments, but {len(args)} were given")
        for given in by_position[: len(args)]:
            if given in kwargs:
                raise TypeError(f"{qualified} got multiple values for argument {given!r}")
        arguments = {**dict(zip(by_position, args, strict=False)), **kwargs}
        is_called = stock is None or type(self).forward is stock  # as a function, by who knows it
        caller, speaks_for_itself = (None, True) if is_called else _caller(type(self))
        if not speaks_for_itself:
            arguments.pop("skip_logits", None)
        return causal_lm.run(self, head, named, arguments, caller)

    lce_forward.__signature__ = signature  # type: ignore[attr-defined]
    lce_forward.__name__, lce_forward.__qualname__ = name, qualified
    return lce_forward
