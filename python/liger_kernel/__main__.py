"""`python -m liger_kernel`: what was found on this machine, what is usable, and why the rest is not.

The native half is reported by the binding itself, which knows what it loaded; here it is only asked and laid out.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys

from liger_kernel import __version__

_PACKAGES = ("torch", "transformers", "peft")


def native_facts() -> tuple[dict[str, str], bool]:
    """(what the native library says of itself, whether it could be asked)."""
    try:
        native = importlib.import_module("liger_kernel._native")
        return {str(name): str(value) for name, value in native.report().items()}, True
    except Exception as error:  # also a binding built for another machine: the reason is the answer
        return {"library": f"not usable: {type(error).__name__}: {error}"}, False


def package_fact(name: str) -> str:
    """The version of an importable package, or why it is not importable."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == name else f"not usable: {error}"
    except Exception as error:
        return f"not usable: {type(error).__name__}: {error}"
    version = str(getattr(module, "__version__", "version unknown"))
    if name == "transformers":
        return version + _patching_note(version)
    return version


def _patching_note(version: str) -> str:
    try:
        importlib.import_module("liger_kernel.transformers.monkey_patch")
    except Exception as error:
        return f" (models cannot be patched: {error})"
    return ""


def disabled_fact(value: str) -> str:
    """What LIGER_DISABLE does. A name that is no operator's disables nothing, and is named."""
    try:
        ops = importlib.import_module("liger_kernel.ops")
        operators = [value for value in (getattr(ops, name) for name in ops.__all__) if hasattr(value, "torch_forward")]
    except Exception as error:  # without torch nothing runs on it
        return f"{value}  (not usable: {error})"
    known = {name for operator in operators for name in operator.names.split()}
    given = [name.strip() for name in value.split(",") if name.strip()]
    fact = ", ".join(name for name in given if name in known) + "  (run on torch)"
    unknown = [name for name in given if name not in known]
    return f"{fact}; no operator is called {', '.join(unknown)}" if unknown else fact


def collect() -> tuple[list[tuple[str, str]], bool]:
    """The rows of the report, and whether the native library is usable."""
    native, usable = native_facts()
    rows = [("liger_kernel", f"{__version__}  ({os.path.dirname(os.path.abspath(__file__))})"), *native.items()]
    rows.append(("python", f"{platform.python_version()}  ({platform.platform()})"))
    rows += [(name, package_fact(name)) for name in _PACKAGES]
    disabled = os.environ.get("LIGER_DISABLE", "").strip()
    if disabled:
        rows.append(("LIGER_DISABLE", disabled_fact(disabled)))
    return rows, usable


def print_plain(rows: list[tuple[str, str]]) -> None:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        first, *more = value.splitlines() or [""]
        print(f"{name:<{width}}  {first}")
        for line in more:
            print(" " * (width + 2) + line)


def print_table(rows: list[tuple[str, str]]) -> None:
    """A table with rich where it is installed, else two plain columns."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        print_plain(rows)
        return
    table = Table(title="liger_kernel", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        missing = value.startswith(("not ", "missing", "none", "no "))
        table.add_row(name, escape(value), style="yellow" if missing else None)
    Console().print(table)


def main() -> int:
    """Print the report. 0 if the native library is usable, else 1."""
    rows, usable = collect()
    if sys.stdout.isatty():
        print_table(rows)
    else:  # a pipe or a log: no box, no folding at 80 columns
        print_plain(rows)
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
