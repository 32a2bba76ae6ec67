#!/usr/bin/env python3
"""Checks a built libliger.so: what it needs, how it is named, what it exports, how big it is.

The library must load on a machine with neither CUDA nor a C++ runtime, so it may need nothing but the C library; it must
export liger_* only, and no more and no less than tests/abi/symbols.txt says.

usage: check_library.py LIBRARY [--symbols FILE] [--update]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

SIZE_BUDGET = 80_000_000
# All of these are the C library; librt and libdl are empty in new versions of it.
ALLOWED = re.compile(r"^(libc|libm|libdl|librt|libpthread)\.so\.\d+$|^ld-linux.*\.so\.\d+$")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def exported(library: Path) -> list[str]:
    lines = run("nm", "-D", "--defined-only", str(library)).splitlines()
    return sorted(line.split()[-1].split("@")[0] for line in lines)


def problems(library: Path, symbols: Path | None) -> list[str]:
    found = []
    dynamic = run("readelf", "-dW", str(library))
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
        if not ALLOWED.match(name):
            found.append(f"needs {name}, but only the C library is allowed")
    soname = re.search(r"\(SONAME\).*\[(.*)\]", dynamic)
    if soname is None or not re.fullmatch(r"libliger\.so(\.\d+)?", soname[1]):
        found.append(f"SONAME is {soname and soname[1]}, but must be libliger.so.<major> (or libliger.so in a wheel)")
    size = library.stat().st_size
    if size > SIZE_BUDGET:
        found.append(f"is {size:,} bytes, but the budget is {SIZE_BUDGET:,}")
    names = exported(library)
    found += [f"exports {name}, which does not begin with liger_" for name in names if not name.startswith("liger_")]
    if symbols is not None:
        wanted = set(symbols.read_text().split()) if symbols.exists() else set()
        found += [f"exports {name}, which {symbols} does not list" for name in sorted(set(names) - wanted)]
        found += [f"does not export {name}, which {symbols} lists" for name in sorted(wanted - set(names))]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--symbols", type=Path)
    parser.add_argument("--update", action="store_true", help="write the exported names to --symbols")
    options = parser.parse_args()
    library = options.library.resolve()
    if options.update:
        options.symbols.write_text("\n".join(exported(library)) + "\n")
    found = problems(library, options.symbols)
    for problem in found:
        print(f"{options.library}: {problem}", file=sys.stderr)
    if not found:
        print(f"{options.library}: {library.stat().st_size / 1e6:.1f} MB, {len(exported(library))} exported names, ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
