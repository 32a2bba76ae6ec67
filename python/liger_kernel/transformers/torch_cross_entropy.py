"""What stands in for torch.nn.functional.cross_entropy while `cross_entropy=True` is applied.

Any code of the process may call it. So what our operator does not do, or does otherwise, goes to the function that stood
there before: other ranks, class probabilities, float64, tensor subclasses, the old reduction arguments, transforms of
torch.func, forward-mode derivatives, and torch.jit, whose traces and scripts are to hold torch's own operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers import patching
from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
from liger_kernel.transformers.functional import liger_cross_entropy
from liger_kernel.transformers.while_stock import watching, while_stock

_PLAIN = (torch.Tensor, nn.Parameter)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_recorded = nn.functional.cross_entropy


def stand_in(functional: Any) -> bool:
    """Replace `functional.cross_entropy`, in a way that `revert_liger_kernel` undoes."""
    global _recorded
    if not patching.is_ours(functional.cross_entropy):
        _recorded = functional.cross_entropy
    return patching.replace(functional, "cross_entropy", cross_entropy)


def _is_transformed() -> bool:
    """Whether something watches the calls that knows operators of torch only. Asked in a way that torch.compile, which is
    not among them, can trace: a compiled torch.func.grad is."""
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _is_ours_to_do(input: Any, target: Any, weight: Any) -> bool:
    return (
        type(input) in _PLAIN
        and type(target) in _PLAIN
        and input.ndim == 2
        and target.ndim == 1
        and input.shape[0] == target.shape[0]
        and input.device.type in ("cpu", "cuda")
        and input.device == target.device
        and input.dtype in _FLOATS
        and target.dtype in (torch.int64, torch.int32)
        and (weight is None or (type(weight) in _PLAIN and weight.dtype in _FLOATS and weight.device == input.device))
    )


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """torch.nn.functional.cross_entropy, by our operator where it can serve the call."""
    ours = size_average is None and reduce is None and reduction in ("mean", "sum", "none")
    if not ours or _is_transformed() or not _is_ours_to_do(input, target, weight):
        return _recorded(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    if torch.is_autocast_enabled(input.device.type):
        input = input.float()  # autocast's rule for this function: the loss is float32, and a scale of 65536 fits
    return liger_cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


@while_stock
def _forward(self, input, target):
    """As that of torch.nn.CrossEntropyLoss."""
    return cross_entropy(
        input,
        target,
        weight=self.weight,
        ignore_index=self.ignore_index,
        reduction=self.reduction,
        label_smoothing=self.label_smoothing,
    )


@dataclass(frozen=True)
class OfLosses:
    """What a torch.nn.CrossEntropyLoss is patched with: see `patching.Patch`. It takes what torch's takes."""

    owner: type[nn.Module] = LigerCrossEntropyLoss

    def methods(self, cls: type) -> Mapping[str, Any]:
        return {"forward": _forward, **watching(cls, written=True)}


# torch.jit.script compiles what this answers, instead of the source above
cross_entropy.__prepare_scriptable__ = lambda: _recorded  # type: ignore[attr-defined]
