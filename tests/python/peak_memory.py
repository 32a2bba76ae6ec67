"""How much memory a call takes, above what is there before it.

The peak is the whole process's, so a program of the test's own makes the call (own_process.py): once in small, which sets
everything up, and then inside of `tell`. The test reads what the program has told with `told`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import own_process
import torch


def told(program: str, *arguments: str, **environment: str) -> float:
    """MB, of a program whose last word is that of `tell`."""
    return float(own_process.output("-c", program, *arguments, **environment).split()[-1]) / 1024


def tell(device: str, call: Callable[[], object]) -> None:
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    before = torch.cuda.memory_allocated() / 1024 if cuda else _kilobytes("VmRSS")
    call()
    print((torch.cuda.max_memory_allocated() / 1024 if cuda else _kilobytes("VmHWM")) - before)


def _kilobytes(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])
