"""Arguments that choose an implementation by its name. There is one, `liger-c`, and what is chosen changes nothing."""

from __future__ import annotations

import functools
import sys
import warnings
from types import FrameType

import torch


def accept(operator: str, name: str | None, mode: str | None) -> None:
    """Silent for None, "liger-c" and the mode "default"; any other choice gives a UserWarning, once, but not in what
    torch.compile traces: a warning would break the graph."""
    if name in (None, "liger-c") and mode in (None, "default") or torch.compiler.is_compiling():
        return
    _warn_once(operator, name, mode)


@functools.cache
def _warn_once(operator: str, name: str | None, mode: str | None) -> None:
    warnings.warn(
        f"{operator}: implementation {name!r}, mode {mode!r}: there is one implementation, 'liger-c', which runs instead",
        stacklevel=_level_of_the_caller(),
    )


def _level_of_the_caller() -> int:
    """The `stacklevel`, for who asks, of the line that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("liger_kernel", "torch"):
        frame, level = frame.f_back, level + 1
    return level
