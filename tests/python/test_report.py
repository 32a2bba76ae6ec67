"""`python -m liger_kernel` and the environment report: what they say, and that a missing part is named with its reason."""

from __future__ import annotations

import sys
import types

import own_process
import pytest

import liger_kernel
from liger_kernel import __main__ as report
from liger_kernel import env_report


def test_command_line():
    done = own_process.run("-m", "liger_kernel", LIGER_DISABLE="rope")
    assert done.returncode in (0, 1), done.stderr
    for word in (liger_kernel.__version__, "torch", "transformers", "python", "LIGER_DISABLE", "rope"):
        assert word in done.stdout, done.stdout
    assert done.returncode == 0 or "not usable" in done.stdout


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        ("rope", "rope  (run on torch)"),
        (" rms_norm,rope ,", "rms_norm, rope  (run on torch)"),
        ("rope, rmsnorm", "rope  (run on torch); no operator is called rmsnorm"),
    ],
)
def test_disabled_operators_are_known_by_name(value, fact):
    assert report.disabled_fact(value) == fact


def test_env_report_command_line():
    done = own_process.run("-m", "liger_kernel.env_report")
    assert done.returncode == 0, done.stderr
    for word in ("Operating system", "Python", "0.9.0", "PyTorch", "CUDA", "HIP", "Triton", "Transformers", "XPU"):
        assert word in done.stdout, done.stdout
    assert "RuntimeWarning" not in done.stderr


def test_print_env_report_returns_nothing(capsys):
    assert env_report.print_env_report() is None
    assert "PyTorch" in capsys.readouterr().out


def test_native_facts_come_from_the_binding(monkeypatch):
    binding = types.ModuleType("liger_kernel._native")
    binding.report = lambda: {"library": "/somewhere/libliger.so 0.9.0", "cuBLASLt": "not found: no such file"}
    monkeypatch.setitem(sys.modules, "liger_kernel._native", binding)
    rows, usable = report.collect()
    assert usable and dict(rows)["library"] == "/somewhere/libliger.so 0.9.0"


def test_a_broken_binding_is_named_with_its_reason(monkeypatch):
    binding = types.ModuleType("liger_kernel._native")

    def broken():
        raise OSError("libliger.so: cannot open shared object file")

    binding.report = broken
    monkeypatch.setitem(sys.modules, "liger_kernel._native", binding)
    rows, usable = report.collect()
    assert not usable
    assert dict(rows)["library"] == "not usable: OSError: libliger.so: cannot open shared object file"
    assert report.main() == 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert report.package_fact("transformers").startswith("not ")
    assert report.package_fact("surely_no_such_package") == "not installed"


@pytest.mark.parametrize("with_rich", [True, False])
def test_table_with_and_without_rich(monkeypatch, capsys, with_rich):
    if with_rich:
        pytest.importorskip("rich", reason="rich is not installed")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    report.print_table([("library", "/a/[b]/lib.so"), ("GPU", "none: no driver")])
    shown = capsys.readouterr().out
    assert "/a/[b]/lib.so" in shown and "none: no driver" in shown
    assert ("─" in shown or "━" in shown) == with_rich


def matrix_products(**environment):
    """That row alone: the others import transformers."""
    code = (
        "from liger_kernel.__main__ import native_facts; print(*map(': '.join, native_facts()[0].items()), sep='\\n')"
    )
    lines = own_process.output("-c", code, **environment).splitlines()
    return next(line for line in lines if "f32 matrix products" in line)


def test_which_matrix_products_the_cpu_runs():
    """LIGER_BLAS turns a BLAS off, or on even where our own AVX-512 kernel is faster; without AVX-512 it changes nothing."""
    assert "our own kernel (LIGER_BLAS=none)" in matrix_products(LIGER_BLAS="none")
    always = matrix_products(LIGER_BLAS="always")
    assert "MKL" not in always
    assert matrix_products(LIGER_BLAS="", LIGER_CPU_ISA="base") == always
    by_itself = matrix_products(LIGER_BLAS="")
    assert by_itself == always or "PyTorch's MKL is slower" in by_itself
