"""LIGER_DISABLE: the named operator runs on torch alone, to the same values and gradients; no other one does."""

from __future__ import annotations

import pathlib

import own_process
import pytest
import torch
from test_operators import CASES, on, run, upstreams

# A name in LIGER_DISABLE -> the cases that it moves to torch.
NAMES: dict[str, list[str]] = {}
for case in CASES.values():
    for its_name in case.function.names.split():
        NAMES.setdefault(its_name, []).append(case.name)


def test_the_names_are_the_operators():
    old = {"rms_norm", "add_rms_norm", "fused_add_rms_norm", "rope", "swiglu", "cross_entropy", "linear_cross_entropy"}
    assert old | {"fused_linear_cross_entropy"} <= set(NAMES)
    assert NAMES["swiglu"] == ["swiglu", "swiglu_packed"] and NAMES["fused_add_rms_norm"] == ["add_rms_norm"]


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
