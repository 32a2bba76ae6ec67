#!/usr/bin/env python3
"""Checks a built wheel: one for every Python from 3.10 on, and it holds the package and its two libraries, nothing else.

What the build picks up is decided by patterns, so a file too many or too few shows only here. What the libraries
themselves need and export is the business of check_library.py and abi3audit.

usage: check_wheel.py WHEEL
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"liger_kernel/_native/_binding.abi3.so", "liger_kernel/_native/libliger.so"}
INFORMATION = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


def version() -> str:
    return re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def wanted_files() -> set[str]:
    package = ROOT / "python"
    sources = {*package.rglob("*.py"), *package.rglob("py.typed")}
    return {
        *(str(source.relative_to(package)) for source in sources),
        *LIBRARIES,
        *(f"liger_kernel-{version()}.dist-info/{name}" for name in INFORMATION),
    }


def problems(wheel: Path) -> list[str]:
    found = []
    if not re.fullmatch(rf"liger_kernel-{re.escape(version())}-cp310-abi3-\w+\.whl", wheel.name):
        found.append(f"is not called liger_kernel-{version()}-cp310-abi3-<platform>.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        metadata = [name for name in files if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata[0]).decode() if metadata else ""
    found += [f"lacks {name}" for name in sorted(wanted_files() - files)]
    found += [f"holds {name}, which does not belong there" for name in sorted(files - wanted_files())]
    if "Requires-Python: >=3.10\n" not in text:
        found.append("does not require Python >= 3.10")
    return found


def main() -> int:
    wheel = Path(sys.argv[1])
    found = problems(wheel)
    for problem in found:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    if not found:
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(wanted_files())} files, ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
