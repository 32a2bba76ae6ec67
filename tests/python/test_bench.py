"""The clock of bench/: what it counts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def measure():
    spec = importlib.util.spec_from_file_location("measure", BENCH / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_median_of_two_is_between_them(measure):
    assert measure.summary([3.0, 1.0])["ms"] == 2000


def test_a_first_call_on_a_cpu_is_not_counted(measure):
    """It pays for memory that the process has just given back."""
    now = 0.0

    def call(i: int) -> None:
        nonlocal now
        now += 1.0 if i else 100.0

    measure.time = SimpleNamespace(perf_counter=lambda: now)
    assert measure.Cpu().times(call, 0.0) == [1.0, 1.0, 1.0]
