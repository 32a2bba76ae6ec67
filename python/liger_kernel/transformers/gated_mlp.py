"""The projections of a gated MLP, down(f(gate(x)) ⊙ up(x)).

They are ordinary nn.Linear, so that adapters, quantisation and sharding apply to them; only the activation is ours. A
Hugging Face module that computes as one of these has its activation as a child still: what is put in its place, or hooked
onto it, is called.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from liger_kernel.ops import LigerGELUMulFunction
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.transformers.other_dtypes import is_compiling, is_other

_modules = nn.modules.module
_SEEN = "_liger_activation"  # the instance attribute: (name of the child, its class), as they were when it was patched
_FORWARDS: dict[type, Any] = {}  # of the activations' classes, when an MLP was patched first


class GatedMLP(nn.Module):
    """gate_proj and up_proj H → I, down_proj I → H. The sizes are those of `config` unless `intermediate_size` is given."""

    def __init__(self, config: Any, intermediate_size: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=bias)


def seen_activation(mlp: nn.Module) -> dict[str, tuple[str, type]]:
    """The attribute that `gated` goes by, of a module that is patched now."""
    if _SEEN in mlp.__dict__:
        return {}
    name = next((name for name in ("act_fn", "activation_fn") if mlp._modules.get(name) is not None), None)
    if name is None:
        return {}
    cls: Any = type(mlp._modules[name])
    _FORWARDS.setdefault(cls, cls.forward)
    return {_SEEN: (name, cls)}


def is_bare(activation: Any) -> bool:
    """Whether a call is that of its class's forward, and nothing else."""
    own = activation.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _is_watched() -> bool:
    """Whether a global hook waits for the call of any module."""
    return bool(
        _modules._global_forward_hooks
        or _modules._global_forward_pre_hooks
        or _modules._global_backward_hooks
        or _modules._global_backward_pre_hooks
    )


def _computes_as_seen(activation: Any) -> bool:
    forward = activation.__class__.forward
    return forward is _FORWARDS.get(activation.__class__, forward) and is_bare(activation) and not _is_watched()


def gated(mlp: nn.Module, function: Any, *args: Any) -> torch.Tensor:
    """`function.apply(*args)`, or what stands for it where the activation of `mlp` is another one by now, or the dtype is
    not one of ours. `args`: gate and up, or both in one tensor, and multipliers."""
    own = mlp.__dict__
    seen = own.get(_SEEN)
    if seen is None:
        known = "act_fn" not in own["_modules"]
    else:
        activation = own["_modules"].get(seen[0])
        known = activation.__class__ is seen[1] and _computes_as_seen(activation)
    if not known:
        return _composed(getattr(mlp, "act_fn" if seen is None else seen[0]), *args)
    if not (is_compiling() and is_other(args[0])):  # a trace has no use for the error
        try:
            return function.apply(*args)
        except LigerArgumentError:
            if not is_other(args[0]):
                raise
    return _composed(getattr(mlp, seen[0]) if seen else _PLAIN.get(function, nn.functional.silu), *args)


_PLAIN = {LigerGELUMulFunction: functools.partial(nn.functional.gelu, approximate="tanh")}


def _composed(activation: Any, gate: torch.Tensor, up: Any = None, *multipliers: float) -> torch.Tensor:
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    product = activation(gate * multipliers[0] if multipliers else gate) * up
    return product * multipliers[1] if multipliers[1:] else product
