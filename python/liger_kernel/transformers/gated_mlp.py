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
from liger_kernel.transformers import stock_code
from liger_kernel.transformers.messages import warn_once
from liger_kernel.transformers.patching import PatchedAs
from liger_kernel.transformers.stock_calls import class_of_tensors, is_compiling, is_left_to_stock, is_other
from liger_kernel.transformers.while_stock import logger

_HOOKS = nn.modules.module._global_forward_hooks
_PRE_HOOKS = nn.modules.module._global_forward_pre_hooks
_BACKWARD_HOOKS = nn.modules.module._global_backward_hooks
_BACKWARD_PRE_HOOKS = nn.modules.module._global_backward_pre_hooks
_SEEN = "_liger_activation"  # the instance attribute: (name of the child, its class), as they were when it was patched
_GELU, _TANH = torch._C._nn.gelu, {"approximate": "tanh"}


class GatedMLP(nn.Module, metaclass=PatchedAs):
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
    return {} if name is None else {_SEEN: (name, type(mlp._modules[name]))}


def is_bare(activation: Any) -> bool:
    """Whether a call is that of its class's forward, and nothing else."""
    own = activation.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_call_impl" in own
        or ("act" in own and not _is_tanh_gelu(own["act"]))
    )


def is_bare_product(projection: Any) -> bool:
    """Whether a call is a product with a matrix, and nothing sees what goes in or comes out."""
    if type(projection) is not nn.Linear or projection.bias is not None or not is_bare(projection) or _is_seen():
        return False
    return stock_code.replaced_in_call(nn.Linear) is None


def _is_seen() -> bool:
    """Whether something waits for the call of any module."""
    return bool(_HOOKS or _PRE_HOOKS or _BACKWARD_HOOKS or _BACKWARD_PRE_HOOKS)


def _is_tanh_gelu(function: Any) -> bool:
    """What Hugging Face's activation of that name holds, which has a variant that rounds at every step."""
    return (
        type(function) is functools.partial
        and function.func is _GELU
        and function.keywords == _TANH
        and not function.args
    )


def _is_as_seen(mlp: nn.Module, name: str, cls: type) -> bool:
    """Whether the activation computes what ours does, and nothing waits for its call, or that of any module."""
    if _calls_other_code(cls, type(mlp)):
        return False
    activation = mlp.__dict__["_modules"].get(name)
    if activation.__class__ is cls and name not in mlp.__dict__ and is_bare(activation):
        return not _is_seen()
    cause = f"{name} ({type(activation).__name__}) has been replaced or hooked"
    about = type(mlp)  # once for all layers: an `__init__` around ours may have changed every one
    warn_once(logger, about, "changed-since", model=about.__name__, cause=cause)
    return False


@torch.compiler.assume_constant_result
def _calls_other_code(cls: type, about: type) -> bool:
    """Whether something has been replaced that a call of the activation runs; `about` is the MLP's class."""
    code = stock_code.of_call(cls)
    if code.stands():
        return False
    found = code.replaced()
    if found is not None:
        warn_once(logger, about, "changed-since", True, model=about.__name__, cause=f"{found} has been replaced")
    return found is not None


def gated(mlp: nn.Module, function: Any, *args: Any) -> torch.Tensor:
    """`function.apply(*args)`, or what stands for it where the activation of `mlp` is another one by now, or the dtype is
    not one of ours. `args`: gate and up, or both in one tensor, and multipliers."""
    own = mlp.__dict__
    seen = own.get(_SEEN)
    known = "act_fn" not in own["_modules"] if seen is None else _is_as_seen(mlp, *seen)
    if not known:
        return _composed(getattr(mlp, "act_fn" if seen is None else seen[0]), *args)
    a_trace_fails = is_compiling() and is_other(args[0])  # and has no use for the error
    if not (is_left_to_stock(mlp, _cause(args)) or a_trace_fails):
        try:
            return function.apply(*args)
        except LigerArgumentError:
            if not is_other(args[0]):
                raise
    return _composed(getattr(mlp, seen[0]) if seen else _PLAIN.get(function, nn.functional.silu), *args)


def _cause(args: Any) -> str | None:
    """In words, why our operator is not to have these."""
    if not _are_alike(args):
        return "its gate and up differ in shape or dtype"
    named = class_of_tensors(*args)
    return None if named is None else f"its input is {named}"


def _are_alike(args: Any) -> bool:
    """Gate and up: they might broadcast, or be promoted."""
    if len(args) < 2:
        return True
    gate, up = args[:2]
    return gate.dtype is up.dtype and gate.shape == up.shape


_PLAIN = {LigerGELUMulFunction: functools.partial(nn.functional.gelu, approximate="tanh")}


def _composed(activation: Any, gate: torch.Tensor, up: Any = None, *multipliers: float) -> torch.Tensor:
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    product = activation(gate * multipliers[0] if multipliers else gate) * up
    return product * multipliers[1] if multipliers[1:] else product
