"""The engine of every fused-loss forward: run the base model, then the loss from its hidden states.

A family's `lce_forward` hands in its arguments and what is really its own (softcap, scale, auxiliary loss, output
class). Logits are materialised only when somebody asks for them: in evaluation, without targets, or with a head that
the loss cannot be fused with.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers.model import lm_head, loss_utils
from liger_kernel.transformers.model.output_classes import LigerCausalLMOutputWithPast

logger = logging.getLogger(__name__)

# What a fused loss is given by the model itself. Keyword arguments of these names are nobody's: a base model would hand
# `softcap` on to its attention, and the loss would receive `target` twice.
_SET_HERE = frozenset({"input", "weight", "target", "reduction", "softcap"})

_warned: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def _warn_once(module: nn.Module, message: str) -> None:
    """One WARNING per module and message: a training loop comes by here at every step."""
    if torch.compiler.is_compiling():
        return
    said = _warned.setdefault(module, set())
    if message not in said:
        said.add(message)
        logger.warning(message)


def _config_flag(config: Any, name: str, given: bool | None) -> bool | None:
    if given is not None:
        return given
    if name == "return_dict" and not hasattr(config, "return_dict"):
        name = "use_return_dict"
    return getattr(config, name, None)


@torch.compiler.assume_constant_result
def _cache_name(model_class: Any) -> str:
    """What a model's own forward calls the keys and values of earlier tokens. transformers 5.24 has renamed them."""
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


def _with_one_cache(model_class: type, base_kwargs: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`base_kwargs` with the cache under the one name that the base model has; `kwargs` may hold it under the new one."""
    old, new = base_kwargs.pop("past_key_values", None), kwargs.pop("cache", None)
    if old is not None and new is not None:
        raise ValueError("past_key_values and cache are two names of the same thing: give one of them")
    return {**base_kwargs, _cache_name(model_class): old if new is None else new}


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


def _decide_skip(model: nn.Module, skip_logits: bool | None, has_targets: bool) -> bool:
    if skip_logits is None:
        return model.training and has_targets
    if skip_logits and not has_targets:
        message = "skip_logits is True, but labels and shift_labels are None"
        if model.training:
            raise ValueError(message)
        # Trainer asks for it in every evaluation that wants the loss only, also when it keeps the labels to itself
        _warn_once(model, message + ": logits are computed")
        return False
    return bool(skip_logits)


def _fusible(model: nn.Module, head: nn.Module | None) -> bool:
    reason = lm_head.obstacle(head)
    if reason is None:
        return True
    _warn_once(model, f"The loss is not fused with the output head of {type(model).__name__}: {reason}.")
    return False


def _materialised_loss(model, logits, labels, shift_labels, loss_kwargs: dict[str, Any]) -> torch.Tensor:
    return model.loss_function(
        logits=logits,
        labels=labels,
        shift_labels=None if shift_labels is None else shift_labels.contiguous(),  # transformers takes a view
        vocab_size=logits.shape[-1],
        **loss_kwargs,
    )


def _build_output(output_class: type, outputs: Any, fields: dict[str, Any]) -> Any:
    """`output_class` with `fields`; what else it declares is taken over from the base model's output."""
    for name in output_class.__dataclass_fields__:  # type: ignore[attr-defined]
        if name not in fields:
            fields[name] = getattr(outputs, name, None)
    return output_class(**fields)


def causal_lm_forward(
    model: Any,
    base_kwargs: dict[str, Any],
    *,
    labels: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor,
    skip_logits: bool | None,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
    return_dict: bool | None,
    kwargs: dict[str, Any],
    config: Any = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
    aux_loss: Callable[[Any], torch.Tensor | None] | None = None,
    fused_loss: Callable[..., Any] | None = None,
    output_class: type = LigerCausalLMOutputWithPast,
) -> Any:
    """The forward of a causal language model with the fused loss.

    base_kwargs   the named inputs of the base model
    kwargs        the caller's other keyword arguments; they reach the base model and the loss
    config        that of the text model, where it is not the model's own
    softcap       logits become c · tanh(logits / c);  logit_scale: logits are multiplied by it, before the cap
    aux_loss      from the base model's output, the weighted term that is added to the loss
    fused_loss    (model, hidden_states, hidden_size, labels, shift_labels, **loss kwargs) -> loss; default: `head_loss`

    Returns `output_class`, or a tuple (loss?, logits, rest of the base model's output, token_accuracy?,
    predicted_tokens?) if return_dict is false. ValueError if skip_logits is true in training without targets, or if
    the kept positions and the targets differ in number.
    """
    config = model.config if config is None else config
    kwargs = {name: value for name, value in kwargs.items() if name not in _SET_HERE}
    return_dict = _config_flag(model.config, "return_dict", return_dict)
    outputs = model.base_model(
        **_with_one_cache(type(model.base_model), base_kwargs, kwargs),
        output_attentions=_config_flag(config, "output_attentions", output_attentions),
        output_hidden_states=_config_flag(config, "output_hidden_states", output_hidden_states),
        return_dict=True,
        **kwargs,
    )
    loss_kwargs = dict(kwargs)
    shift_labels = loss_kwargs.pop("shift_labels", None)
    has_targets = labels is not None or shift_labels is not None

    kept = _keep(outputs[0], logits_to_keep)
    _require_as_many_targets(kept, kept is outputs[0], labels, shift_labels)
    if logit_scale is not None and logit_scale != 1.0:
        kept = kept * logit_scale  # the projection is linear, so the hidden states may carry the scale

    loss = logits = token_accuracy = predicted_tokens = None
    head = model.get_output_embeddings()
    if _decide_skip(model, skip_logits, has_targets) and _fusible(model, head):
        result = (fused_loss or _fused_loss)(
            model,
            kept,
            config.hidden_size,
            labels,
            shift_labels,
            **{**loss_kwargs, "final_logit_softcapping": softcap},
        )
        loss, _, token_accuracy, predicted_tokens = loss_utils.unpack_cross_entropy_result(result)
    else:
        logits = head(kept)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        if has_targets:
            loss = _materialised_loss(model, logits, labels, shift_labels, loss_kwargs)

    if aux_loss is not None and loss is not None:
        extra = aux_loss(outputs)
        if extra is not None:
            loss = loss + extra.to(loss.device)

    if not return_dict:
        parts = (logits, *outputs[1:])
        parts = parts if loss is None else (loss, *parts)
        return parts + tuple(part for part in (token_accuracy, predicted_tokens) if part is not None)
    return _build_output(
        output_class,
        outputs,
        {"loss": loss, "logits": logits, "token_accuracy": token_accuracy, "predicted_tokens": predicted_tokens},
    )


def _fused_loss(model, hidden_states, hidden_size, labels, shift_labels, **loss_kwargs):
    return lm_head.head_loss(
        model.get_output_embeddings(), hidden_states, hidden_size, labels, shift_labels, **loss_kwargs
    )
