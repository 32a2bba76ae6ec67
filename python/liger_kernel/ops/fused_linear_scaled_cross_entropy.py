"""Cross entropy of a linear head's logits over a temperature, and on request entropy and log-probabilities of selected ids.

A form of `LigerLinearLogProbFunction` that policy-gradient code calls, and one over a vocabulary that is split over processes. Nothing here is chosen by device; `_resolve_implementation`
and the names that it looks up are for callers who put an implementation of their own in their place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import readable, unrecorded
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._linear_head import compute_dtype, require_temperature
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.ops.linear_logprob import LigerLinearLogProbFunction, linear_logprob
from liger_kernel.ops.vocab_parallel_logprob import LigerVocabParallelLinearLogProbFunction


def _as_losses(results: Any, dtype: torch.dtype, entropy: bool) -> Any:
    """(log p, entropy, ...) as (-log p, entropy in the logits' dtype, ...)."""
    if isinstance(results, Tensor):
        return -results
    first, *others = results
    if entropy:
        others[0] = others[0].to(dtype)
    return (-first, *others)


class _FusedLinearPPOFallbackFunction(LigerFunction):
    """`apply(hidden_states, vocab_weights, input_ids, temperature, ignore_index, return_entropy, selected_token_ids=None)`."""

    operator = linear_logprob
    names = "fused_linear_scaled_cross_entropy linear_logprob"
    gradients = ("hidden_states", "vocab_weights")
    held = ("input_ids", "selected_token_ids")

    @staticmethod
    def _given(hidden_states, vocab_weights, input_ids, temperature, ignore_index, return_entropy, selected=None):
        outputs = ("entropy",) if return_entropy else ()
        return (
            hidden_states,
            vocab_weights,
            input_ids,
            None,
            selected,
            temperature,
            None,
            1.0,
            ignore_index,
            None,
            outputs,
        )

    @staticmethod
    def forward(ctx, *args):
        given = _FusedLinearPPOFallbackFunction._given(*args)
        ctx.dtype = compute_dtype(args[0], args[1])
        return _as_losses(LigerLinearLogProbFunction.forward(ctx, *given), ctx.dtype, bool(args[5]))

    @staticmethod
    def backward(ctx, dnll, *others):
        dlog_prob = None if dnll is None else -dnll
        dx, dweight, *_ = LigerLinearLogProbFunction.backward(ctx, dlog_prob, *others)
        return (dx, dweight, *(None,) * 5)[: len(ctx.needs_input_grad)]

    @classmethod
    def compiled(cls, *args):
        results = LigerLinearLogProbFunction.compiled(*cls._given(*args))
        return _as_losses(results, compute_dtype(args[0], args[1]), bool(args[5]))

    @classmethod
    def check(cls, *args):
        LigerLinearLogProbFunction.check(*cls._given(*args))

    @staticmethod
    def torch_forward(
        hidden_states, vocab_weights, input_ids, temperature, ignore_index, return_entropy, selected_token_ids=None
    ):
        given = _FusedLinearPPOFallbackFunction._given(
            hidden_states, vocab_weights, input_ids, temperature, ignore_index, return_entropy, selected_token_ids
        )
        results = LigerLinearLogProbFunction.torch_forward(*given)
        return _as_losses(results, compute_dtype(hidden_states, vocab_weights), bool(return_entropy))


class _WithTiles:
    """The same for callers who pass `m_tiles_per_cluster`, which changes nothing here."""

    @staticmethod
    def apply(hidden_states, vocab_weights, input_ids, temperature, ignore_index, _tiles, return_entropy, *selected):
        return _FusedLinearPPOFallbackFunction.apply(
            hidden_states, vocab_weights, input_ids, temperature, ignore_index, return_entropy, *selected
        )


def _load_sm90_function() -> Any:
    return _WithTiles


def _resolve_implementation(device: torch.device) -> Any:
    """What computes on a device."""
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0):
        return _load_sm90_function()
    return _FusedLinearPPOFallbackFunction


# ---- what is refused ---------------------------------------------------------------------------------------------------


def _require_tensors(_input: Any, weight: Any, target: Any) -> None:
    for name, value in (("_input", _input), ("weight", weight), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")


def _require_a_number(temperature: Any) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature must be a real number, not {type(temperature).__name__}")


def _require_dtypes(_input: Tensor, weight: Tensor, target: Tensor) -> None:
    if not (_input.is_floating_point() and _input.dtype is weight.dtype):
        raise TypeError(
            f"_input is {_input.dtype} and weight {weight.dtype}, but both must be of one floating-point dtype"
        )
    if target.dtype is not torch.int64:
        raise TypeError(f"target is {target.dtype}, but must be int64")


def _require_an_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")


def _require_true_or_false(return_entropy: Any) -> None:
    if not isinstance(return_entropy, bool):
        raise TypeError(f"return_entropy must be True or False, not {type(return_entropy).__name__}")


def _require_types(
    _input: Any, weight: Any, target: Any, temperature: Any, tiles: Any, return_entropy: Any, selected: Any
) -> None:
    _require_tensors(_input, weight, target)
    _require_a_number(temperature)
    _require_dtypes(_input, weight, target)
    _require_an_integer("m_tiles_per_cluster", tiles)
    _require_true_or_false(return_entropy)
    if selected is not None and not (isinstance(selected, Tensor) and selected.dtype is torch.int64):
        given = selected.dtype if isinstance(selected, Tensor) else type(selected).__name__
        raise TypeError(f"selected_token_ids must be an int64 tensor or None, not {given}")


def _to_look_at(labels: Tensor) -> Tensor | None:
    return labels if is_debugging(labels) else readable(labels)


def _require_alike(_input: Tensor, weight: Tensor, target: Tensor, selected: Tensor | None = None) -> None:
    """Ranks, sizes and devices."""
    shapes = f"_input has shape {tuple(_input.shape)}, weight {tuple(weight.shape)} and target {tuple(target.shape)}"
    if _input.dim() != 2 or weight.dim() != 2 or target.dim() != 1:
        raise LigerArgumentError(f"{shapes}, but they must have 2, 2 and 1 dimensions")
    if _input.shape[1] != weight.shape[1] or _input.shape[0] != target.shape[0]:
        raise LigerArgumentError(f"{shapes}, but they must be [M, H], [V, H] and [M]")
    given = [t for t in (_input, weight, target, selected) if t is not None]
    if any(t.device != _input.device for t in given):
        raise LigerArgumentError(
            f"the tensors are on {', '.join(str(t.device) for t in given)}, but must be on one device"
        )


@unrecorded
def _require_values(
    _input: Tensor, weight: Tensor, target: Tensor, temperature: float, tiles: int, selected: Any
) -> None:
    require_temperature(temperature)
    if tiles < 1:
        raise LigerArgumentError(f"m_tiles_per_cluster is {tiles}, but must be 1 or more")
    _require_alike(_input, weight, target, selected)
    if selected is not None and selected.dim() != 1:
        raise LigerArgumentError(f"selected_token_ids has {selected.dim()} dimensions, but must have 1")
    ids = None if selected is None else _to_look_at(selected)
    if ids is not None and ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < weight.shape[0]):
        raise LigerArgumentError(
            f"selected_token_ids must be in [0, V) with V = {weight.shape[0]}, but are from {int(ids.min())} to {int(ids.max())}"
        )


@unrecorded
def _require_targets(target: Tensor, vocab: int, ignore_index: int) -> None:
    values = _to_look_at(target)
    if values is None:
        return
    wrong = values[(values != ignore_index) & ((values < 0) | (values >= vocab))]
    if wrong.numel():
        raise LigerArgumentError(f"target {int(wrong[0])} is outside [0, {vocab}), and not ignore_index {ignore_index}")


class LigerFusedLinearScaledCrossEntropyFunction:
    """`apply(_input, weight, target, temperature=1.0, ignore_index=-100, m_tiles_per_cluster=1, return_entropy=False,
    selected_token_ids=None)` -> nll, or a tuple (nll, entropy if it was asked for, selected if there are ids).

    _input [M, H] and weight [V, H] of one floating-point dtype, target [M] int64, z = _input·weightᵀ/temperature and
    p = softmax(z). nll -log p of the target, float32 [M]; entropy -Σ p log p, [M] in the logits' dtype; selected log p of
    selected_token_ids [K] over the whole vocabulary, float32 [M, K]: all 0 where target is ignore_index, and differentiable
    in _input and weight. TypeError and ValueError as the checks above say; a target or an id that is out of range is a
    ValueError where it can be looked at without waiting for a device, else its results are NaN.
    """

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        temperature: float = 1.0,
        ignore_index: int = -100,
        m_tiles_per_cluster: int = 1,
        return_entropy: bool = False,
        selected_token_ids: Tensor | None = None,
    ) -> Any:
        _require_types(_input, weight, target, temperature, m_tiles_per_cluster, return_entropy, selected_token_ids)
        _require_values(_input, weight, target, temperature, m_tiles_per_cluster, selected_token_ids)
        _require_targets(target, weight.shape[0], ignore_index)
        implementation = _resolve_implementation(_input.device)
        tiles = () if implementation is _FusedLinearPPOFallbackFunction else (m_tiles_per_cluster,)
        selected = () if selected_token_ids is None else (selected_token_ids,)
        return implementation.apply(
            _input, weight, target, float(temperature), ignore_index, *tiles, return_entropy, *selected
        )


# ---- a vocabulary that is split over processes -------------------------------------------------------------------------


def _load_native_tp_function() -> Any:
    """An implementation in a package of its own: there is none."""
    return None


class LigerFusedLinearScaledCrossEntropyTPFunction:
    """`apply(_input, weight, target, tp_group, temperature=1.0, ignore_index=-100, tiles_per_reduce=1, return_entropy=False)`
    -> nll, or (nll, entropy): as `LigerFusedLinearScaledCrossEntropyFunction`, float32 both, over the vocabulary of all processes
    of tp_group (None: of the default group), of which rank r has the ids [r·V_r, (r + 1)·V_r) as weight [V_r, H].

    _input [M, H] and target [M] are the same on every process, and so are the results. The gradient of _input is summed over
    processes in float32 and rounded once; that of weight is its slice's. A target that no process has counts as a logit of 0.
    tiles_per_reduce, 1, 2 or 4, changes nothing here. See `LigerVocabParallelLinearLogProbFunction`.
    """

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        tp_group: Any,
        temperature: float = 1.0,
        ignore_index: int = -100,
        tiles_per_reduce: int = 1,
        return_entropy: bool = False,
    ) -> Any:
        _require_a_number(temperature)
        require_temperature(temperature)
        _require_an_integer("tiles_per_reduce", tiles_per_reduce)
        if tiles_per_reduce not in (1, 2, 4):
            raise LigerArgumentError(f"tiles_per_reduce is {tiles_per_reduce}, but must be 1, 2 or 4")
        _require_true_or_false(return_entropy)
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("torch.distributed must be initialized: a vocabulary is split over its processes")
        _require_tensors(_input, weight, target)
        _require_alike(_input, weight, target)
        _require_dtypes(_input, weight, target)
        outputs = ("entropy",) if return_entropy else ()
        results = LigerVocabParallelLinearLogProbFunction.apply(
            _input, weight, target, dist.group.WORLD if tp_group is None else tp_group, None, None, None,
            float(temperature), None, 1.0, ignore_index, None, outputs, True,
        )  # fmt: skip
        return _as_losses(results, torch.float32, return_entropy)


__all__ = ["LigerFusedLinearScaledCrossEntropyFunction", "LigerFusedLinearScaledCrossEntropyTPFunction"]
