"""LIGER_DEBUG: checks that wait for the device."""

from __future__ import annotations

import os

import torch
from torch import Tensor

# a look at what is not set takes a microsecond through os.environb
_environment = getattr(os.environb, "_data", os.environb)


def is_debugging(target: Tensor) -> bool:
    """LIGER_DEBUG=1: also the check that CUDA calls leave out, because it waits for the device."""
    if not getattr(target, "is_cuda", False) or torch.compiler.is_compiling():
        return False
    return _environment.get(b"LIGER_DEBUG") == b"1"
