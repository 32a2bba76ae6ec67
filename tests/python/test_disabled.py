"""LIGER_DISABLE: the named operator runs on torch alone, to the same values and gradients; no other one does."""

from __future__ import annotations

import pathlib

import own_process
import pytest
import torch
from test_operators import CASES, on, run, upstreams

# a name in LIGER_DISABLE -> the cases that it moves to torch
NAMES = {
    "rms_norm": ["rms_norm"],
    "add_rms_norm": ["add_rms_norm"],
    "fused_add_rms_norm": ["add_rms_norm"],
    "rope": ["rope"],
    "swiglu": ["swiglu", "swiglu_packed"],
    "cross_entropy": ["cross_entropy", "cross_entropy_none"],
    "linear_cross_entropy": ["linear_cross_entropy", "linear_cross_entropy_none"],
    "fused_linear_cross_entropy": ["linear_cross_entropy", "linear_cross_entropy_none"],
}


def test_every_operator_is_in_the_table():
    assert {name for names in NAMES.values() for name in names} == set(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_disabled_by_environment(name, device, tmp_path):
    native_results = []
    for case in CASES.values():
        for dtype in (torch.float32, torch.bfloat16):
            args = on(device, case.make(7), dtype)
            up = upstreams(case(*args))
            native_results.append((case.name, args, up, run(case, args, up)))
    torch.save((NAMES[name], native_results), tmp_path / "results")
    worker = pathlib.Path(__file__).with_name("disabled_operator_worker.py")
    own_process.output(worker, tmp_path / "results", LIGER_DISABLE=f"nothing_of_ours , {name}")
