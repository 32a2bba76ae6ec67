"""The operators as plain functions, `liger_<operator>`: thin calls of the autograd Functions.

Each is defined beside its module in `liger_kernel.transformers.<operator>` and imported when it is first asked for.
Default values differ from those of the modules at some places (`in_place`); both are interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from liger_kernel import _exports

_OFFERED = _exports.homes(__name__.rpartition(".")[0], "functional")
__all__ = ["CrossEntropyOutput", *sorted(_OFFERED)]  # noqa: PLE0604


@dataclass
class CrossEntropyOutput:
    """The result of a cross entropy when more than the loss was asked for; what was not asked for is None."""

    loss: torch.Tensor
    z_loss: torch.Tensor | None = None
    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None


def loss_or_output(results: tuple, wants_more: bool) -> torch.Tensor | CrossEntropyOutput:
    """What a caller gets of a Function's (loss, z_loss, token_accuracy, predicted_tokens)."""
    return CrossEntropyOutput(*results) if wants_more else results[0]


def __getattr__(name: str) -> Any:
    return _exports.find(__name__, name, _OFFERED)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})
