"""`cmake --install`, and C programs outside the tree that find what it installed, in a folder to which it was moved."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_readme import EXAMPLE_PRINTS, example

BUILD = Path(os.environ.get("LIGER_NATIVE_DIR", "nowhere"))

pytestmark = [
    pytest.mark.skipif(not (BUILD / "cmake_install.cmake").exists(), reason="LIGER_NATIVE_DIR is not a build folder"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake on PATH"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on PATH"),
]

PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(outside C)
find_package(liger 0.9 REQUIRED)
add_executable(example example.c)
target_link_libraries(example PRIVATE liger::liger)
"""


def run(*command, **environment) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def prefix(tmp_path) -> Path:
    run("cmake", "--install", BUILD, "--prefix", tmp_path / "first")
    return (tmp_path / "first").rename(tmp_path / "moved")


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "outside/example.c"
    path.parent.mkdir()
    path.write_text(example("c"))
    return path


def libraries(prefix: Path) -> Path:
    (library,) = prefix.rglob("libliger.so")
    return library.parent


def test_headers_library_and_nothing_else(prefix):
    headers = sorted(str(path.relative_to(prefix / "include")) for path in prefix.rglob("*.h"))
    assert "liger/liger.h" in headers and "liger/ops/rms_norm/rms_norm.h" in headers
    private = ("_problem.h", "context_state.h", "kernel_table.h", "fail.h", ".cuh")
    assert not [header for header in headers if header.endswith(private)]
    files = [path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink()]
    others = {path.suffix for path in files} - {".h"}
    assert others == {".cmake", ".pc", ".0"}  # libliger.so.0.9.0, to which its other two names are links
    links = {path.name for path in prefix.rglob("*") if path.is_symlink()}
    assert links == {"libliger.so", "libliger.so.0"}


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="there is no pkg-config on PATH")
def test_pkg_config(prefix, source, tmp_path):
    folder = {"PKG_CONFIG_PATH": str(libraries(prefix) / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "liger", **folder).split()
    run("cc", "-std=c99", "-Werror", source, *flags, f"-Wl,-rpath,{libraries(prefix)}", "-o", tmp_path / "example")
    assert EXAMPLE_PRINTS.fullmatch(run(tmp_path / "example"))


def test_find_package(prefix, source, tmp_path):
    (source.parent / "CMakeLists.txt").write_text(PROJECT)
    run("cmake", "-S", source.parent, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    assert EXAMPLE_PRINTS.fullmatch(run(tmp_path / "build/example"))
