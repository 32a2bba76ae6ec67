"""LIGER_DISABLE: the named operator runs on torch alone, to the same values and gradients; no other one does."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from test_operators import CASES, on, run, upstreams

# a name in LIGER_DISABLE -> the cases that it moves to torch
NAMES = {
    name: [other.name for other in CASES.values() if name in other.function.names.split()]
    for case in CASES.values()
    for name in case.function.names.split()
}


def test_names_are_those_of_operators():
    assert {"rms_norm", "fused_add_rms_norm", "add_rms_norm", "rope", "swiglu"} <= set(NAMES)
    assert NAMES["swiglu"] == ["swiglu", "swiglu_packed"]
    assert NAMES["fused_linear_cross_entropy"] == NAMES["linear_cross_entropy"]


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
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(worker), str(tmp_path / "results")],
        env={**os.environ, "LIGER_DISABLE": f"nothing_of_ours , {name}", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
