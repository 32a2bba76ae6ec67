"""The clock of bench/: what it counts."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def measure():
    spec = importlib.util.spec_from_file_location("measure", BENCH / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_median_of_two_is_between_them():
    assert measure().summary([3.0, 1.0])["ms"] == 2000


def test_a_first_call_on_a_cpu_is_not_counted():
    """It pays for memory that the process has just given back."""
    calls = []

    def call(i: int) -> None:
        calls.append(i)
        time.sleep(0.2 if len(calls) == 1 else 0)

    samples = measure().Cpu().times(call, 0.0)
    assert len(samples) == len(calls) - 1 >= 3 and max(samples) < 0.1
