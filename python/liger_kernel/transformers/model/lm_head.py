"""The fused loss of an output head, whatever the head is wrapped in.

The rule: a wrapper that owns the weight (FSDP, ZeRO-3, offloading) has it in place only while the head is called, and
hooks its backward work onto what comes out of that call. So the loss is computed inside the call of a wrapped head and
is its result; only a bare nn.Linear is read from outside. A head that computes something else than x · Wᵀ (+ bias) is
not fused at all: its logits are materialised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers.fsdp import _FSDPForwardRedirection
from liger_kernel.transformers.model import loss_utils
from liger_kernel.utils import loaded_class

_FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unwrap_peft(head: Any) -> Any:
    """The module that a PEFT ModulesToSaveWrapper runs now: the active adapter's copy, else the original module."""
    if not isinstance(head, loaded_class("peft.utils.other", "ModulesToSaveWrapper")):
        return head
    copies = head.modules_to_save
    active = head.active_adapter
    names = [active] if isinstance(active, str) else list(active)
    if getattr(head, "disable_adapters", False) or not names or any(name not in copies for name in names):
        return head.original_module
    return copies[names[0]]


def _is_sharded(weight: Any) -> bool:
    at_home = loaded_class("torch.distributed.tensor", "DTensor")
    return isinstance(weight, at_home or loaded_class("torch.distributed._tensor", "DTensor"))  # there in torch 2.4


def _is_fsdp2(head: nn.Module) -> bool:
    at_home = loaded_class("torch.distributed.fsdp", "FSDPModule")
    return isinstance(head, at_home or loaded_class("torch.distributed._composable.fsdp", "FSDPModule"))  # before 2.6


def _is_fsdp1(head: nn.Module) -> bool:
    return isinstance(head, loaded_class("torch.distributed.fsdp", "FullyShardedDataParallel"))


def _is_deepspeed(weight: torch.Tensor) -> bool:
    """Whether DeepSpeed keeps it, in parts or in full. Most traces never ask the tensor: torch 2.4 cannot trace hasattr."""
    return "deepspeed" in sys.modules and hasattr(weight, "ds_id")


def _foreign_forward(head: nn.Module) -> bool:
    """Whether somebody's own forward stands on the instance; accelerate's is known, and looked through."""
    slot = "_old_forward" if hasattr(head, "_hf_hook") else "forward"
    forward = head.__dict__.get(slot)
    return forward is not None and getattr(forward, "__func__", None) is not nn.Linear.forward


def obstacle(head: Any) -> str | None:
    """Why the loss cannot be fused with `head`, or None if it can. Asks only what is known outside the head's call."""
    if head is None:
        return "the model has no output head"
    head = unwrap_peft(head)
    if _is_fsdp1(head):  # its parameters are views of a flat one, which need not be there yet
        return _class_obstacle(unwrap_peft(head.module))
    return _class_obstacle(head) or _weight_obstacle(head)


def _class_obstacle(head: nn.Module) -> str | None:
    name = type(head).__name__
    if isinstance(head, loaded_class("peft.tuners.tuners_utils", "BaseTunerLayer")):
        return f"a PEFT adapter is attached to it ({name})"
    if isinstance(head, loaded_class("peft.utils.other", "AuxiliaryTrainingWrapper")):
        return f"it is wrapped by PEFT ({name})"
    if not isinstance(head, nn.Linear):
        return f"it is a {name}, not an nn.Linear"
    if type(head).forward is not nn.Linear.forward:
        return f"its class {name} has a forward of its own"
    if _foreign_forward(head):
        return "its forward has been wrapped (tensor parallelism?)"
    return None


def _weight_obstacle(head: Any) -> str | None:
    weight = head.weight
    if weight.dtype not in _FUSED_DTYPES:
        return f"its weight is {weight.dtype} (quantised?)"
    if _is_sharded(weight):
        shards = sum(placement.is_shard() for placement in weight.placements)
        if not _is_fsdp2(head) or shards > 1:
            return "its weight is a DTensor (tensor parallelism)"
    elif type(weight) not in (torch.Tensor, nn.Parameter) and not _is_deepspeed(weight):
        return f"its weight is a {type(weight).__name__} (quantised?)"
    return None


def _is_bare(head: nn.Module) -> bool:
    """Whether the weight is here in full and nothing waits for the head to be called."""
    return (
        type(head) is nn.Linear
        and "forward" not in head.__dict__
        and not (head._forward_pre_hooks or head._forward_hooks)
        and not (head._backward_pre_hooks or head._backward_hooks)
        and not _is_sharded(head.weight)
        and not _is_deepspeed(head.weight)
        and head.weight.device.type != "meta"
    )


def _require_full_weight(head: Any, hidden_size: int) -> torch.Tensor:
    weight = head.weight
    if weight.device.type == "meta":
        raise RuntimeError("fused loss: lm_head.weight is on the meta device while the head runs (offloaded?)")
    if _is_sharded(weight):
        raise RuntimeError("fused loss: lm_head.weight is still a DTensor while the head runs (tensor parallelism?)")
    if weight.ndim != 2 or weight.shape[1] != hidden_size:
        cause = "partitioned by DeepSpeed and not gathered" if _is_deepspeed(weight) else "not there in full"
        raise RuntimeError(
            f"fused loss: lm_head.weight has shape {tuple(weight.shape)} while the head runs, but hidden_size is "
            f"{hidden_size}: it is {cause}"
        )
    return weight


def _loss_of(head: nn.Module, hidden_states: torch.Tensor, hidden_size: int, labels, shift_labels, **kwargs: Any):
    """The loss from the weight that `head` has at this moment."""
    head = unwrap_peft(head)
    weight = _require_full_weight(head, hidden_size)
    if head.bias is not None:
        kwargs["bias"] = head.bias
    return loss_utils.LigerForCausalLMLoss(
        hidden_states=hidden_states.to(weight.device),
        lm_head_weight=weight,
        labels=labels,
        hidden_size=hidden_size,
        shift_labels=shift_labels,
        **kwargs,
    )


def _call_instead_of_forward(head: nn.Module, replacement: Callable[[torch.Tensor], Any], argument: torch.Tensor):
    """`head(argument)` with the innermost forward replaced for this one call.

    accelerate keeps the innermost forward under another name and its own in `forward`.
    """
    slot = "_old_forward" if "forward" in head.__dict__ else "forward"
    own = head.__dict__.get(slot)

    def restore() -> None:
        if own is None:
            head.__dict__.pop(slot, None)
        else:
            head.__dict__[slot] = own

    def once(hidden_states: torch.Tensor) -> Any:
        restore()
        return replacement(hidden_states)

    head.__dict__[slot] = once
    try:
        return head(argument)
    finally:
        restore()


def _loss_inside(head: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any):
    """The loss as the output of `head(hidden_states)`, so that hooks and wrappers of the head do their work."""
    results: list[Any] = []

    def loss(inputs: torch.Tensor) -> torch.Tensor:
        results.append(loss_utils.unpack_cross_entropy_result(_loss_of(head, inputs, *args, **kwargs)))
        return results[0][0]

    output = _call_instead_of_forward(head, loss, hidden_states)
    exact, z_loss, token_accuracy, predicted_tokens = results[0]
    if output.dtype != exact.dtype:  # mixed precision casts what leaves the unit; the value need not suffer
        output = output.to(exact.dtype)
        output = output + (exact.detach() - output.detach())
    return output, z_loss, token_accuracy, predicted_tokens


def head_loss(
    head: nn.Module,
    hidden_states: torch.Tensor,
    hidden_size: int,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    **loss_kwargs: Any,
):
    """The loss of `head` on `hidden_states` [..., hidden_size]: what LigerForCausalLMLoss returns, or its four parts.

    The head must have no `obstacle`. RuntimeError, naming the cause, if its weight is not there in full when needed.
    """
    head = unwrap_peft(head)
    arguments = (hidden_states, hidden_size, labels, shift_labels)
    if _is_fsdp1(head):
        return _FSDPForwardRedirection()(head, _loss_of, head.module, *arguments, **loss_kwargs)
    if _is_bare(head):
        return _loss_of(head, *arguments, **loss_kwargs)
    return _loss_inside(head, *arguments, **loss_kwargs)
