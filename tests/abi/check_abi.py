#!/usr/bin/env python3
"""The promises that compiled callers rely on.

1. Every public header compiles alone, as C99 and as C++11, without a warning.
2. Layouts: size and field offsets of every public struct, and the value of every public enumerator, are those of
   layouts.txt. A line that changes or goes is a broken caller; new fields go to the end of a struct.
3. No public struct has padding, inside or at its end: its garbage would become the value of a field that is appended
   there. What would be padding is a `reserved` field, which the library checks to be zero.

usage: check_abi.py [--update]      (--update writes layouts.txt; the diff is what a reviewer reads)
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LAYOUTS = HERE / "layouts.txt"
DIALECTS = [("gcc", "-std=c99", "c"), ("g++", "-std=c++11", "c++")]


def public_headers() -> list[str]:
    """The headers that liger.h includes, and itself."""
    umbrella = (ROOT / "liger/liger.h").read_text()
    return ["liger/liger.h", *re.findall(r'#include "(liger/[^"]+)"', umbrella)]


def compile_alone(header: str) -> list[str]:
    found = []
    for compiler, standard, language in DIALECTS:
        # The ARGS_INIT macros are C (designated initialisers); C++ callers set size and fields. Only the text of the
        # header is judged here.
        command = [compiler, standard, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", language]
        source = f'#include "{header}"\n#include "{header}"\n'
        result = subprocess.run([*command, f"-I{ROOT}", "-"], input=source, capture_output=True, text=True)
        if result.returncode != 0:
            found.append(f"{header} does not compile alone with {compiler} {standard}:\n{result.stderr}")
    return found


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


def structs_of(text: str) -> list[tuple[str, list[str]]]:
    """(name, fields) of each `typedef struct NAME { ... } NAME;`."""
    found = []
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}\s*\1\s*;", without_comments(text), re.DOTALL):
        fields = []
        for declaration in filter(None, (part.strip() for part in body.split(";"))):
            pointer = re.search(r"\(\*(\w+)\)", declaration)
            if pointer:
                fields.append(pointer[1])
                continue
            for part in re.sub(r"\[[^]]*\]", "", declaration).split(","):
                fields.append(re.split(r"[\s*]+", part.strip())[-1])
        found.append((name, fields))
    return found


def enumerators_of(text: str) -> list[str]:
    bodies = re.findall(r"enum(?:\s+\w+)?\s*\{(.*?)\}", without_comments(text), re.DOTALL)
    return [part.split("=")[0].strip() for body in bodies for part in body.split(",") if part.strip()]


PADDING = "padding: "


def padding_of(name: str, fields: list[str]) -> list[str]:
    """Statements that print a line for each gap in front of a field and at the end."""
    ends = [f"offsetof({name}, {field}) + sizeof((({name} *)0)->{field})" for field in fields]
    starts = [*(f"offsetof({name}, {field})" for field in fields[1:]), f"sizeof({name})"]
    return [
        f'if ({end} != {start}) printf("{PADDING}{name} has %d bytes behind {field}\\n", (int)({start} - ({end})));'
        for field, end, start in zip(fields, ends, starts, strict=True)
    ]


def layouts() -> str:
    """Printed by a program that the C compiler builds: the truth, not this parser's opinion of it."""
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "liger/liger.h"', "int main(void) {"]
    for header in public_headers()[1:]:
        text = (ROOT / header).read_text()
        for name, fields in structs_of(text):
            lines.append(f'printf("{name} %zu bytes\\n", sizeof({name}));')
            lines += [f'printf("{name}.{field} at %zu\\n", offsetof({name}, {field}));' for field in fields]
            lines += padding_of(name, fields)
        lines += [f'printf("{value} = %d\\n", (int){value});' for value in enumerators_of(text)]
    lines += ["return 0;", "}"]
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "layouts")
        command = ["gcc", "-std=c11", f"-I{ROOT}", "-x", "c", "-", "-o", program]
        subprocess.run(command, input="\n".join(lines), text=True, check=True)
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def main() -> int:
    problems = [problem for header in public_headers() for problem in compile_alone(header)]
    now = layouts() if not problems else ""
    gaps = [line for line in now.splitlines() if line.startswith(PADDING)]
    problems += [f"{gap.removeprefix(PADDING)}: give them a field `reserved`" for gap in gaps]
    now = "".join(f"{line}\n" for line in now.splitlines() if line not in gaps)
    if now and "--update" in sys.argv[1:]:
        LAYOUTS.write_text(now)
    if now:
        before = LAYOUTS.read_text() if LAYOUTS.exists() else ""
        diff = difflib.unified_diff(before.splitlines(), now.splitlines(), "layouts.txt", "this tree", lineterm="", n=1)
        text = "\n".join(diff)
        if text:
            problems.append(f"{text}\nIf this only appends: tests/abi/check_abi.py --update")
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"abi: {len(public_headers())} headers alone as C99 and C++11, {len(now.splitlines())} layout facts, ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
