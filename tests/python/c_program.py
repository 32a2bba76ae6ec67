"""A program in C against the library under test."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def output(source: pathlib.Path, program: pathlib.Path) -> str:
    """What it prints; it must return 0."""
    build = os.environ.get("LIGER_NATIVE_DIR")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler on PATH")
    if not build or not (pathlib.Path(build) / "libliger.so").exists():
        pytest.skip("LIGER_NATIVE_DIR does not point at a build with libliger.so")
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}", source, "-o", program]
    command += [f"-L{build}", "-lliger", "-lm", f"-Wl,-rpath,{pathlib.Path(build).resolve()}"]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
