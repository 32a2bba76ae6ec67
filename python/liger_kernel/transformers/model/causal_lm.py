"""The engine of every fused-loss forward: run the base model, then the loss from its hidden states.

Logits are materialised only when somebody asks for them: in evaluation, without targets, or where the loss cannot be
fused: with a head that is more than a projection, or a loss that is not Hugging Face's causal-LM loss.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers import stock
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.model import lm_head, loss_utils, output_classes
from liger_kernel.transformers.rows import Head
from liger_kernel.transformers.stock_calls import class_of_tensors

logger = logging.getLogger(__name__)

# What a loss of ours, or Hugging Face's, is given by the model itself. There keyword arguments of these names are nobody's
# and ignored: attention would refuse `softcap`, the loss receive `target` twice. To another loss they may mean something.
_SET_HERE = frozenset({"input", "weight", "target", "reduction", "softcap"})
# What the decorators of a stock forward take out of its keywords: no loss is given it.
_OF_THE_CALL = frozenset({"return_dict", "past_key_values", "cache"})

_NOT_HANDED_ON = frozenset({"self", "labels", "logits_to_keep", "skip_logits", "return_dict"})


def run(model: Any, head: Head, named: frozenset[str], given: dict[str, Any], caller: str | None = None) -> Any:
    """The forward of a causal language model with the fused loss.

    `given` are the arguments of the call; those that are not `named` parameters of its forward reach the loss too. `caller`:
    somebody's forward that calls this one, and may look at logits.

    Returns the head's output class, or a tuple (loss?, aux_loss?, logits, rest of the base model's output,
    token_accuracy?, predicted_tokens?) if return_dict is false. ValueError if skip_logits is true in training without
    targets, or if the kept positions and the targets differ in number.
    """
    if not _SET_HERE.isdisjoint(given) and _loss_obstacle(model) is None:
        given = {name: value for name, value in given.items() if name not in _SET_HERE}
    loss_kwargs = {name: value for name, value in given.items() if name not in named and name not in _OF_THE_CALL}
    handed_on = _handed_on(type(model))
    absent = {name for name, value in given.items() if value is None and name in named and name not in handed_on}
    given = {**dict.fromkeys(handed_on), **{name: value for name, value in given.items() if name not in absent}}
    labels, logits_to_keep = given.pop("labels", None), given.pop("logits_to_keep", 0)
    skip_logits, return_dict = given.pop("skip_logits", None), given.pop("return_dict", None)
    base, config = _at(model, head.base), _at(model.config, head.config)
    if head.eager and model.training:
        _advise_eager(model)
    if labels is not None and _takes_labels(type(base)):
        given["labels"] = labels  # its masks may depend on them
    if head.router_loss and given.get("output_router_logits") is None:
        given["output_router_logits"] = model.config.output_router_logits
    if _gives_return_dict(type(model)) or not getattr(getattr(base, "config", None), "return_dict", True):
        given["return_dict"] = True
    outputs = base(**_with_one_cache(type(base), given))

    shift_labels = loss_kwargs.pop("shift_labels", None)
    has_targets = labels is not None or shift_labels is not None
    hidden_states = outputs.last_hidden_state if _goes_by_name(type(model)) else outputs[0]
    kept = _keep(hidden_states, logits_to_keep)
    _require_as_many_targets(kept, kept is hidden_states, labels, shift_labels)

    softcap = getattr(config, head.softcap, None) if head.softcap and _applies(type(model), head.softcap) else None
    multiplier = _at(model, head.multiplier) if head.multiplier else None
    projection, targets = projection_of(model, head), (labels, shift_labels)
    logits = result = None
    if _decide_skip(model, skip_logits, has_targets, caller) and _fusible(model, projection, kept):
        changes = {"final_logit_softcapping": softcap, "multiplier": multiplier}
        result = lm_head.head_loss(projection, kept, kept.shape[-1], *targets, **{**_present(loss_kwargs), **changes})
    else:
        logits = _logits(projection, kept, multiplier, softcap)
        if has_targets:
            result = _loss_of_logits(model, logits, *targets, loss_kwargs)
    loss, _, token_accuracy, predicted_tokens = loss_utils.unpack_cross_entropy_result(result)

    aux_loss = None
    if head.router_loss and given["output_router_logits"]:
        aux_loss = router_loss(model, outputs, given.get("attention_mask"))
        if loss is not None:
            loss = loss + model.router_aux_loss_coef * aux_loss.to(loss.device)

    fields = {"loss": loss, "logits": logits, "token_accuracy": token_accuracy, "predicted_tokens": predicted_tokens}
    if _config_flag(model.config, "return_dict", return_dict):
        fields.update({} if aux_loss is None else {"aux_loss": aux_loss})
        return _build_output(getattr(output_classes, head.output), outputs, fields)
    first = tuple(part for part in (loss, aux_loss) if part is not None)
    last = tuple(part for part in (token_accuracy, predicted_tokens) if part is not None)
    return (*first, logits, *outputs[1:], *last)


def projection_of(model: Any, head: Head) -> Any:
    """The module that the family's own forward calls for its logits, which get_output_embeddings need not be."""
    found = getattr(model, head.projection, None)
    return model.get_output_embeddings() if found is None else found


# ---- arguments -------------------------------------------------------------------------------------------------------


def _at(owner: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        owner = getattr(owner, name)
    return owner


def _present(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _config_flag(config: Any, name: str, given: bool | None) -> bool | None:
    if given is not None:
        return given
    return getattr(config, name if hasattr(config, name) else f"use_{name}", None)


@torch.compiler.assume_constant_result
def _cache_name(model_class: Any, otherwise: str) -> str:
    """What a model's own forward calls the keys and values of earlier tokens, which transformers 5.24 has renamed;
    `otherwise` for a wrapper's forward, which hands on what it is given."""
    names = stock.parameters_of(model_class.forward)
    return next((name for name in ("cache", "past_key_values") if name in names), otherwise)


@torch.compiler.assume_constant_result
def _applies(model_class: Any, name: str) -> bool:
    return stock.forward_names(model_class, name)


@torch.compiler.assume_constant_result
def _goes_by_name(model_class: Any) -> bool:
    """Whether a model's own forward asks the base model's output for its hidden states by name, not for its first entry."""
    return stock.forward_names(model_class, "last_hidden_state")


@torch.compiler.assume_constant_result
def _takes_labels(model_class: Any) -> bool:
    return "labels" in stock.parameters_of(model_class.forward)


@torch.compiler.assume_constant_result
def _handed_on(model_class: Any) -> tuple[str, ...]:
    """The arguments that a model's own forward gives to its base model whatever they are, None too."""
    return stock.handed_on(model_class, _NOT_HANDED_ON)


@torch.compiler.assume_constant_result
def _gives_return_dict(model_class: Any) -> bool:
    return stock.forward_spells(model_class, "return_dict")


def _with_one_cache(model_class: type, given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the cache under the one name that the base model has."""
    names = [name for name in ("past_key_values", "cache") if name in given]
    old, new = given.pop("past_key_values", None), given.pop("cache", None)
    if old is not None and new is not None:
        raise ValueError("past_key_values and cache are two names of the same thing: give one of them")
    cache = old if new is None else new
    if cache is None:
        return {**given, **dict.fromkeys(names[-1:])}
    return {**given, _cache_name(model_class, "past_key_values" if new is None else "cache"): cache}


def _keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of hidden_states [B, T, H] whose logits are wanted: the last n (0: all) or those of an index.

    A 2-D index has transformers' own meaning: positions per sample, or a mask if it is boolean.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:, :] if logits_to_keep else hidden_states
    from transformers import modeling_utils

    own = getattr(modeling_utils, "slice_logits_to_keep", None)
    return hidden_states[:, logits_to_keep, :] if own is None else own(hidden_states, logits_to_keep)


def _require_as_many_targets(
    kept: torch.Tensor, all_kept: bool, labels: torch.Tensor | None, shift_labels: torch.Tensor | None
) -> None:
    name, targets = ("labels", labels) if shift_labels is None else ("shift_labels", shift_labels)
    if targets is None:
        return
    positions = kept.numel() // max(kept.shape[-1], 1)
    if positions == targets.numel():
        return
    if all_kept:
        raise ValueError(f"{name} holds {targets.numel()} targets, but the input has {positions} positions")
    raise ValueError(
        f"logits_to_keep leaves {positions} positions, but there are {targets.numel()} targets: {name} are not "
        "sliced along with the logits"
    )


# ---- to fuse or not --------------------------------------------------------------------------------------------------


def _decide_skip(model: nn.Module, skip_logits: bool | None, has_targets: bool, caller: str | None) -> bool:
    if skip_logits is None:
        return model.training and has_targets and not _may_look_at_logits(model, caller)
    if skip_logits and not has_targets:
        if model.training:
            raise ValueError("skip_logits is True, but labels and shift_labels are None")
        # Trainer asks for it in every evaluation that wants the loss only, also when it keeps the labels to itself
        warn_once(logger, model, "skip-without-targets")
        return False
    return bool(skip_logits)


def _may_look_at_logits(model: nn.Module, caller: str | None) -> bool:
    if caller is not None:
        reason = f"{caller} is written around its forward, and may look at logits"
        warn_once(logger, model, "loss-not-fused", model=type(model).__name__, reason=reason)
    return caller is not None


def _advise_eager(model: Any) -> None:
    attention = model.config._attn_implementation
    if attention != "eager":
        warn_once(logger, model, "attention-not-eager", model=type(model).__name__, attention=attention)


def _loss_obstacle(model: Any) -> str | None:
    """What computes the model's loss, if not Hugging Face's causal-LM loss."""
    if model.loss_function is not stock.CAUSAL_LM_LOSS:
        name = getattr(model.loss_function, "__qualname__", type(model.loss_function).__name__)
        return f"its loss_function is {name}, not Hugging Face's causal-LM loss"
    replaced = _replaced_in_loss()
    if replaced is not None:
        return f"{replaced}, which Hugging Face's causal-LM loss calls, has been replaced"
    return None


@torch.compiler.assume_constant_result
def _replaced_in_loss() -> str | None:
    return stock.replaced_in_loss()


def _obstacle(model: Any, head: nn.Module | None, hidden_states: torch.Tensor) -> str | None:
    """Why the loss cannot be fused, or None if it can."""
    reason = _loss_obstacle(model)
    if reason is not None:
        return reason
    if getattr(model.config, "pretraining_tp", 1) > 1:
        return f"pretraining_tp is {model.config.pretraining_tp}"
    named = class_of_tensors(hidden_states)
    return (
        lm_head.obstacle(head) if named is None else f"its hidden states are {named}, a class with functions of its own"
    )


def _fusible(model: nn.Module, head: nn.Module | None, hidden_states: torch.Tensor) -> bool:
    reason = _obstacle(model, head, hidden_states)
    if reason is not None:
        warn_once(logger, model, "loss-not-fused", model=type(model).__name__, reason=reason)
    return reason is None


# ---- with logits -----------------------------------------------------------------------------------------------------


def _logits(head: nn.Module, kept: torch.Tensor, multiplier: float | None, softcap: float | None) -> torch.Tensor:
    logits = head(kept)
    if multiplier is not None:
        logits = logits * multiplier
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _loss_of_logits(model: Any, logits, labels, shift_labels, loss_kwargs: dict[str, Any]) -> Any:
    """What the model's own loss says; with options of the fused loss that it does not know, our cross entropy."""
    if loss_utils.asks_for_options(loss_kwargs) and _loss_obstacle(model) is None:
        return loss_utils.loss_of_logits(logits, labels, shift_labels=shift_labels, **_present(loss_kwargs))
    if shift_labels is not None:
        loss_kwargs = {**loss_kwargs, "shift_labels": shift_labels.contiguous()}  # transformers takes a view
    vocab_size = model.vocab_size if _keeps_vocab_size(type(model)) else model.config.get_text_config().vocab_size
    arguments = {"logits": logits, "labels": labels, "vocab_size": vocab_size}
    by_position = [arguments.pop(name) for name in _given_by_position(type(model))]
    return model.loss_function(*by_position, **arguments, **loss_kwargs)


@torch.compiler.assume_constant_result
def _keeps_vocab_size(model_class: Any) -> bool:
    return stock.forward_reads(model_class, "vocab_size")


@torch.compiler.assume_constant_result
def _given_by_position(model_class: Any) -> tuple[str, ...]:
    """Which arguments the family's own forward gives to a loss by position: a custom loss may name them as it likes."""
    if not stock.forward_names(model_class, "loss_function") or stock.forward_spells(model_class, "labels"):
        return ()
    return (
        ("logits", "labels") if stock.forward_spells(model_class, "vocab_size") else ("logits", "labels", "vocab_size")
    )


def router_loss(model: Any, outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The load-balancing loss, by the function of the family's modelling module."""
    modules = (sys.modules.get(cls.__module__) for cls in type(model).__mro__)
    function = next(f for module in modules if (f := getattr(module, "load_balancing_loss_func", None)) is not None)
    return function(outputs.router_logits, model.num_experts, model.num_experts_per_tok, attention_mask)


# ---- output ----------------------------------------------------------------------------------------------------------


def _build_output(output_class: type, outputs: Any, fields: dict[str, Any]) -> Any:
    """`output_class` with `fields`; what else it declares is taken over from the base model's output."""
    for name in output_class.__dataclass_fields__:  # type: ignore[attr-defined]
        if name not in fields:
            fields[name] = getattr(outputs, name, None)
    return output_class(**fields)
