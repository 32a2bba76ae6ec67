#!/usr/bin/env python3
"""Makes an operator that works, y = x², to be turned into the one that is wanted: its room, its Python, its tests, its rows.

usage: new_op.py NAME [--root ROOT]        e.g. new_op.py layer_norm

The files come from tools/room/; what is to be written is marked TODO. They build and pass all tests as they are, so that
every step from there can be tried. Outside of its own files an operator has these places, which get a first form too:

  liger/ops/ops.def                      its row
  python/liger_kernel/_exports.py        its names
  bench/operators.py                     its inputs and its formula
  bench/rows.py                          its rows
  README.md                              its row in the table of operators

liger/liger.h and tests/abi are written by tools. Nothing that exists is overwritten.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

TEMPLATES = Path(__file__).resolve().parent / "room"

# template -> the file it becomes
FILES = {
    **{f"op{ending}": f"liger/ops/@op@/@op@{ending}"
       for ending in (".h", ".c", "_problem.h", "_cpu.c", "_cuda.cu", "_ref.h", "_ref.c", "_cases.c")},
    "op.py": "python/liger_kernel/ops/@op@.py",
    "op_module.py": "python/liger_kernel/transformers/@op@.py",
    "test_op.py": "tests/python/test_@op@.py",
}  # fmt: skip

ROWS = """\
    Row("@Op@ {shape}", "pointwise", "@op@", ({sizes}){dtype}),
"""


def named(text: str, op: str) -> str:
    camel = "".join(part.capitalize() for part in op.split("_"))
    return text.replace("@op@", op).replace("@OP@", op.upper()).replace("@Op@", camel)


def insert(path: Path, before: str, text: str, op: str) -> None:
    """Puts `text` before the first line that the pattern matches."""
    old = path.read_text()
    match = re.search(before, old, re.MULTILINE)
    if match is None:
        raise SystemExit(f"new_op: {path} has no place for the row of {op}: nothing there is like /{before}/")
    path.write_text(old[: match.start()] + named(text, op) + old[match.start() :])


def next_name(path: Path, pattern: str, op: str) -> str:
    """The pattern of the first line of a sorted table that comes after `op`."""
    later = [name for name in re.findall(pattern.format(r"(\w+)"), path.read_text(), re.MULTILINE) if name > op]
    return pattern.format(later[0]) if later else r"^}$"


def add_rows(root: Path, op: str) -> None:
    row = f"LIGER_OP(       {op + ',':<23}{op:<21})\n"
    insert(root / "liger/ops/ops.def", r"^LIGER_KERNEL\(", row, op)
    exports = root / "python/liger_kernel/_exports.py"
    names = '    "@op@": Exports(\n        "Liger@Op@Function @op@_backward @op@_forward",\n        "Liger@Op@",\n        "liger_@op@",\n    ),\n'
    insert(exports, next_name(exports, r'^    "{}": Exports\(', op), names, op)
    insert(root / "README.md", r"^\| scale \|", "| @op@ | `liger_@op@_*` | `Liger@Op@` | TODO |\n", op)


def add_bench(root: Path, op: str) -> None:
    operators, rows = (root / f"bench/{name}.py" for name in ("operators", "rows"))
    formula = "def @op@(x: Tensor) -> Tensor:\n    return x * x  # TODO\n\n\n"
    inputs = (
        "def _@op@_inputs(shape, dtype, device) -> Inputs:\n"
        "    return Inputs([normal(shape, dtype, device, 1)], upstream=[normal(shape, dtype, device, 3)])\n\n\n"
    )
    insert(operators, r"^def cross_entropy\(", formula, op)
    insert(operators, r"^def _loss_inputs\(", inputs, op)
    entry = '    "@op@": Operator(_@op@_inputs, @op@, "Liger@Op@Function", "@op@", passes=5),  # TODO\n'
    insert(operators, r'^    "cross_entropy": Operator\(', entry, op)
    insert(rows, r'^    Row\("CE ', ROWS.format(shape="16384x4096", sizes="16384, 4096", dtype=""), op)
    shape = ROWS.format(shape="2048x4096 {short}", sizes="2048, 4096", dtype=", dtype").replace('Row("', 'Row(f"')
    insert(rows, r'^        Row\(f"CE ', "    " + shape, op)


def add_include(umbrella: Path, op: str) -> None:
    text = umbrella.read_text()
    includes = re.findall(r'#include "liger/ops/[^"]+"\n', text)
    block = "".join(includes)
    text = text.replace(block, "".join(sorted([*includes, f'#include "liger/ops/{op}/{op}.h"\n'])))
    umbrella.write_text(text)


def write_files(root: Path, op: str) -> list[Path]:
    files = {root / named(place, op): TEMPLATES / f"{template}.in" for template, place in FILES.items()}
    for path in files:
        if path.exists():
            raise SystemExit(f"new_op: there is a {path.relative_to(root)} already")
    for path, template in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(named(template.read_text(), op))
    return list(files)


def format_files(paths: list[Path]) -> None:
    c_files = [str(path) for path in paths if path.suffix != ".py"]
    if shutil.which("clang-format"):
        subprocess.run(["clang-format", "-i", *c_files], check=True)
    if shutil.which("ruff"):
        python_files = [str(path) for path in paths if path.suffix == ".py"]
        subprocess.run(["ruff", "format", "--quiet", *python_files], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args()
    op, root = options.name, options.root.resolve()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", op):
        raise SystemExit(f"new_op: `{op}` is not a name: lower-case letters, digits and underscores")
    files = write_files(root, op)
    add_rows(root, op)
    add_bench(root, op)
    add_include(root / "liger/liger.h", op)
    format_files([*files, root / "bench/operators.py", root / "bench/rows.py"])
    for path in files:
        print(path.relative_to(root))
    print("rows: liger/ops/ops.def, _exports.py, bench/operators.py, bench/rows.py, README.md; include: liger/liger.h")
    print(f"Next: make build && build/dev/liger_test --op {op}; then `grep -rn TODO`, the contract first.")
    print(
        "At the end: tests/abi/check_abi.py --update, tools/check_library.py --symbols tests/abi/symbols.txt --update."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
