"""The fused loss of an output head, whatever the head is wrapped in.

The rule: a wrapper that owns the weight (FSDP, ZeRO-3, offloading) has it in place only while the head is called, and
hooks its backward work onto what comes out of that call. So the loss is computed inside the call of a wrapped head and
is its result; only a bare nn.Linear is read from outside. A head that computes something else than x · Wᵀ (+ bias) is
not fused at all: its logits are materialised.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from liger_kernel.transformers import stock, stock_code
from liger_kernel.transformers.fsdp import _FSDPForwardRedirection
from liger_kernel.transformers.model import loss_utils
from liger_kernel.utils import loaded_class

# Their hooks move, gather and release weights, and hand on what the head returns, be it logits or a loss.
_KNOWN_HOOKS = ("accelerate.", "deepspeed.", "torch.distributed.")
_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_ALL_HOOKS = ("_forward_pre_hooks", *_HOOKS)

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


def _foreign_forward(head: nn.Module) -> Any:
    """Somebody's own forward that stands on the instance, or None; accelerate's is known, and looked through."""
    slot = "_old_forward" if hasattr(head, "_hf_hook") else "forward"
    forward = head.__dict__.get(slot)
    known = isinstance(forward, _Redirection) or getattr(forward, "__func__", None) is type(head).forward
    return None if known else forward


def obstacle(head: Any) -> str | None:
    """Why the loss cannot be fused with `head`, or None if it can. Asks only what is known outside the head's call."""
    if head is None:
        return "the model has no output head"
    if not isinstance(head, nn.Module):
        return f"it is a {type(head).__name__}, not an nn.Linear"
    inner = unwrap_peft(head)
    reason = _hook_obstacle(head) or _hook_obstacle(inner)
    if reason is None and inner is not head:
        reason = _wrapper_obstacle(head, inner)
    if reason is not None:
        return reason
    if _is_fsdp1(inner):  # its parameters are views of a flat one, which need not be there yet
        inner = unwrap_peft(inner.module)
        return _hook_obstacle(inner) or _class_obstacle(inner)
    return _class_obstacle(inner) or _weight_obstacle(inner) or _trace_obstacle(head, inner)


def _hook_obstacle(head: nn.Module) -> str | None:
    """A hook on the output may look at logits, or change them; one before the head runs before the fused loss too."""
    for hook in _hooks_of(head):
        home = _home_of(hook)
        if not home.startswith(_KNOWN_HOOKS):
            return f"a hook of {home.rstrip('.') or type(hook).__name__} is registered on its output or gradients"
    return None


def _hooks_of(head: nn.Module) -> list[Any]:
    """Those behind its forward. accelerate's stand in an attribute; others may have derived from them."""
    hooks = [hook for name in _HOOKS for hook in getattr(head, name).values()]
    hooks += [hook for name in _HOOKS for hook in getattr(nn.modules.module, f"_global{name}").values()]
    by_accelerate = head.__dict__.get("_hf_hook")
    if by_accelerate is None:
        return hooks
    return hooks + [vars(hook).get("post_forward", type(hook).post_forward) for hook in _with_parts(by_accelerate)]


def _with_parts(hook: Any) -> Iterator[Any]:
    """A hook of accelerate's and, where it is a sequence, which may hold others, those that it runs."""
    yield hook
    for part in getattr(hook, "hooks", ()):
        yield from _with_parts(part)


def _wrapper_obstacle(wrapper: nn.Module, inner: nn.Module) -> str | None:
    """Of PEFT's wrapper, which is to hand on its input, and what comes out of the module that it runs."""
    forward = _foreign_forward(wrapper)
    if forward is not None:
        return stock.cause_of_wrapper(forward)
    if _is_fsdp1(inner) and not _is_quiet(wrapper):
        return "a hook is registered on PEFT's wrapper of a module that FSDP has wrapped"
    return None


def _home_of(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return f"{getattr(hook, '__module__', None) or type(hook).__module__}."


def _class_obstacle(head: nn.Module) -> str | None:
    name = type(head).__name__
    if isinstance(head, loaded_class("peft.tuners.tuners_utils", "BaseTunerLayer")):
        return f"a PEFT adapter is attached to it ({name})"
    if isinstance(head, loaded_class("peft.utils.other", "AuxiliaryTrainingWrapper")):
        return f"it is wrapped by PEFT ({name})"
    if not isinstance(head, nn.Linear):
        return f"it is a {name}, not an nn.Linear"
    if any(getattr(type(head), each) is not getattr(nn.Linear, each) for each in stock_code.CALL):
        return f"its class {name} has a forward of its own"
    replaced = stock_code.replaced_in_call(nn.Linear)
    if replaced is not None:
        return f"{replaced}, which computes its logits, has been replaced"
    if not isinstance(head.__dict__.get("_call_impl"), (_CountedCalls, type(None))):
        return f"{name}._call_impl has been replaced on it"
    wrapper = _foreign_forward(head)
    return None if wrapper is None else stock.cause_of_wrapper(wrapper)


def _weight_obstacle(head: Any) -> str | None:
    weight = _stored_weight(head)
    if weight.dtype not in _FUSED_DTYPES:
        return f"its weight is {weight.dtype} (quantised?)"
    if _is_sharded(weight):
        shards = sum(placement.is_shard() for placement in weight.placements)
        if not _is_fsdp2(head) or shards > 1:
            return "its weight is a DTensor (tensor parallelism)"
    elif type(weight) not in (torch.Tensor, nn.Parameter) and not _is_deepspeed(weight):
        return f"its weight is a {type(weight).__name__} (quantised?)"
    return None


def _trace_obstacle(outer: nn.Module, head: nn.Module) -> str | None:
    if not torch.compiler.is_compiling() or _is_read(outer, head) or _forgets_what_was_deleted():
        return None
    return "it has hooks, and this torch cannot trace their call around the fused loss"


@torch.compiler.assume_constant_result
def _forgets_what_was_deleted() -> bool:
    """Whether the compiler knows that what a trace has put on a module and taken off again was never there. Before torch
    2.13 it deletes a method of the class from the instance, each time that the compiled code has run."""
    return hasattr(sys.modules.get("torch._dynamo.side_effects"), "AttrMutationKind")


def _stored_weight(head: Any) -> Any:
    """The weight, or what a parametrization computes it from: to read that is to compute it, and may change its state."""
    if not parametrize.is_parametrized(head, "weight"):
        return head.weight
    parameters = head.parametrizations["weight"]
    return next(itertools.chain(parameters.parameters(), parameters.buffers()))


def _is_quiet(module: nn.Module) -> bool:
    """Whether nothing waits for the module to be called."""
    return "forward" not in module.__dict__ and not any(
        getattr(module, name) or getattr(nn.modules.module, f"_global{name}") for name in _ALL_HOOKS
    )


def _is_bare(head: nn.Module) -> bool:
    """Whether the weight is here in full and nothing waits for the head to be called."""
    return (
        type(head) is nn.Linear
        and _is_quiet(head)
        and not _is_sharded(head.weight)
        and not _is_deepspeed(head.weight)
        and head.weight.device.type != "meta"
    )


def _is_read(outer: nn.Module, head: nn.Module) -> bool:
    """Whether the loss is computed outside the call of the head, which `outer` is or wraps."""
    return _is_bare(head) and (outer is head or _is_quiet(outer))


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


def _loss_of(
    head: nn.Module,
    hidden_states: torch.Tensor,
    hidden_size: int,
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    multiplier: float | None = None,
    **kwargs: Any,
):
    """The loss from the weight that `head` has at this moment; `multiplier` is that of the logits."""
    head = unwrap_peft(head)
    weight, bias = _require_full_weight(head, hidden_size), cast("torch.Tensor | None", head.bias)
    hidden_states = hidden_states.to(weight.device)
    if multiplier is not None and multiplier != 1.0:  # the projection is linear: its input and bias may carry it
        hidden_states, bias = hidden_states * multiplier, None if bias is None else bias * multiplier
    if bias is not None:
        kwargs["bias"] = bias
    return loss_utils.LigerForCausalLMLoss(
        hidden_states=hidden_states,
        lm_head_weight=weight,
        labels=labels,
        hidden_size=hidden_size,
        shift_labels=shift_labels,
        **kwargs,
    )


class _Standing:
    """Stands in an attribute of a module as long as some thread needs it there."""

    lock = threading.Lock()

    def __init__(self, module: Any, slot: str) -> None:
        self.module, self.slot, self.own, self.users = module, slot, module.__dict__.get(slot), 0

    @classmethod
    @contextlib.contextmanager
    def in_place(cls, module: nn.Module, slot: str) -> Iterator[_Standing]:
        with cls.lock:
            standing = module.__dict__.get(slot)
            if not isinstance(standing, cls):
                standing = module.__dict__[slot] = cls(module, slot)
            standing.users += 1
        try:
            yield standing
        finally:
            with cls.lock:
                standing.users -= 1
                if not standing.users:
                    _put_back(module, slot, standing.own)


class _CountedCalls(_Standing):
    """In `_call_impl`: a hook before a head may call it, and has to be answered with logits."""

    depth = threading.local()  # id of the module -> how many calls of it this thread is in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        depth, key = self.depth.__dict__, str(id(self.module))
        depth[key] = depth.get(key, 0) + 1
        try:
            if self.own is not None:
                return self.own(*args, **kwargs)
            return type(self.module)._call_impl(self.module, *args, **kwargs)
        finally:
            depth[key] -= 1
            if not depth[key]:
                del depth[key]

    @classmethod
    def is_outermost(cls, module: nn.Module) -> bool:
        return cls.depth.__dict__.get(str(id(module)), 0) == 1


class _Redirection(_Standing):
    """In a head's `forward`: another computation. Calls of other threads, and of the head's hooks, pass through."""

    pending = threading.local()  # id of the head -> (who is called, what the outermost call of this thread computes)

    def __call__(self, input: torch.Tensor) -> Any:  # as nn.Linear's forward calls it
        pending, key = self.pending.__dict__, str(id(self.module))
        outer, replacement = pending.get(key, (None, None))
        if outer is not None and all(map(_CountedCalls.is_outermost, (outer, self.module))):
            del pending[key]
            return replacement(input)
        if self.own is not None:
            return self.own(input)
        return type(self.module).forward(self.module, input)


def _slot(head: nn.Module) -> str:
    """accelerate keeps the innermost forward under another name, and its own in `forward`."""
    return "_old_forward" if "_old_forward" in head.__dict__ else "forward"


def _put_back(head: nn.Module, slot: str, own: Any) -> None:
    if own is None:
        head.__dict__.pop(slot, None)
    else:
        head.__dict__[slot] = own


def _call_instead_of_forward(
    outer: nn.Module, head: nn.Module, replacement: Callable[[torch.Tensor], Any], argument: torch.Tensor
):
    """`outer(argument)`, which is `head` or calls it, with the head's innermost forward replaced for this one call of this
    thread."""
    if torch.compiler.is_compiling():  # one thread traces, and it cannot trace locks
        slot = _slot(head)
        own = head.__dict__.get(slot)
        head.__dict__[slot] = replacement
        try:
            return outer(argument)
        finally:
            _put_back(head, slot, own)
    pending, key = _Redirection.pending.__dict__, str(id(head))
    with contextlib.ExitStack() as stack:
        for module in {id(outer): outer, id(head): head}.values():
            stack.enter_context(_CountedCalls.in_place(module, "_call_impl"))
        stack.enter_context(_Redirection.in_place(head, _slot(head)))
        pending[key] = outer, replacement
        try:
            return outer(argument)
        finally:
            pending.pop(key, None)


def _loss_inside(outer: nn.Module, head: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any):
    """The loss as the output of `outer(hidden_states)`, so that hooks and wrappers of the head do their work."""
    results: list[Any] = []

    def loss(input: torch.Tensor) -> torch.Tensor:  # as nn.Linear's forward calls it
        results.append(loss_utils.unpack_cross_entropy_result(_loss_of(head, input, *args, **kwargs)))
        return results[0][0]

    output = _call_instead_of_forward(outer, head, loss, hidden_states)
    if len(results) != 1:  # only a trace can tell no call from another
        raise RuntimeError(
            f"fused loss: lm_head has been called {len(results)} times for one loss, perhaps by its hook"
        )
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
    outer, head = head, unwrap_peft(head)
    arguments = (hidden_states, hidden_size, labels, shift_labels)
    if _is_fsdp1(head):
        return _FSDPForwardRedirection()(head, _loss_of, head.module, *arguments, **loss_kwargs)
    if _is_read(outer, head):
        return _loss_of(head, *arguments, **loss_kwargs)
    return _loss_inside(outer, head, *arguments, **loss_kwargs)


def computed_in_head(
    head: nn.Module,
    hidden_states: torch.Tensor,
    function: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`function(weight, bias, hidden_states)` of another loss, where `head_loss` computes its own."""
    outer, head = head, unwrap_peft(head)

    def compute(input: torch.Tensor) -> torch.Tensor:
        inner = unwrap_peft(head.module) if _is_fsdp1(head) else head
        weight = _require_full_weight(inner, input.shape[-1])
        return function(weight, cast("torch.Tensor | None", inner.bias), input.to(weight.device))

    if _is_fsdp1(head):
        return _FSDPForwardRedirection()(head, compute, hidden_states)
    if _is_read(outer, head):
        return compute(hidden_states)
    return _call_instead_of_forward(outer, head, compute, hidden_states)


def lce_maybe_trainable_lm_head(self, hidden_states, hidden_size, labels, shift_labels, **loss_kwargs):
    """The fused loss with `self.lm_head`, also where PEFT trains a copy of it or FSDP owns it."""
    return head_loss(self.lm_head, hidden_states, hidden_size, labels, shift_labels, **loss_kwargs)
