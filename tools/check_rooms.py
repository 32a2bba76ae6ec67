#!/usr/bin/env python3
"""The house rules that a compiler does not check.

  include law    core includes core; cpu and cuda include core and themselves, never each other; chunk includes core and
                 problem headers; a room's file includes core, chunk, at most one backend vocabulary and its own room, and
                 of another room only the problem header (a public header: also another public header; references and
                 cases: also another room's reference, cases header and contract, and the harness)
  skeletons      kernels that several rooms share stand in cuda/ and cpu/ and name no room (but for gemm, which is everybody's
                 slot); a room that includes one brings its formula, and no kernel, launch or parallel loop of its own
  no strangers   no torch, no Python; CUDA's headers only in .cu, .cuh, cuda/ and a room's cublaslt files, never in a public header
  whole rooms    a row of ops.def has a folder with contract or problem, both backends, reference and cases; a folder has a row
  one name       file names are unique in the C tree
  umbrella       liger.h includes every public room header

usage: check_rooms.py [ROOT]
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

C_SUFFIXES = {".c", ".h", ".cu", ".cuh", ".def"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
TEST_FILES = ("_ref.c", "_ref.h", "_cases.c", "_cases.h")
CORE_PUBLIC = {"context.h", "reduction.h", "status.h", "tensor.h", "version.h"}
# Paths of one machine, and numbered places in documents that are not in this tree: a reader cannot follow them.
FOREIGN_TEXT = re.compile(
    r"(?:^|[\s\"'(=])/(?:home|root|mnt|srv|work)/\w|(?:^|[\s\"'(])\.\./\.\./\.\./\w+\.md\b"
    r"|\b(?:contract|design|issue)(?:'s)? sections? \d|\bcontract D\d|\bissue #?\d",
    re.MULTILINE,
)


def place(path: str) -> tuple[str, str]:
    """("room", "rms_norm"), ("core", ""), ... of an include path or a file."""
    parts = path.split("/")
    if parts[0] != "liger":
        return parts[0], ""
    if len(parts) == 4 and parts[1] == "ops":
        return "room", parts[2]
    return (parts[1], "") if len(parts) > 2 else ("umbrella", "")


def is_public(path: str) -> bool:
    kind, room = place(path)
    name = path.rsplit("/", 1)[-1]
    return kind == "umbrella" or (kind == "core" and name in CORE_PUBLIC) or (kind == "room" and name == f"{room}.h")


def backend_of(path: str) -> str:
    """The vocabulary that a room's file may use; "" for those that belong to no backend, "any" for helpers."""
    name = path.rsplit("/", 1)[-1]
    stem = name.split(".")[0]
    if stem.endswith("_cpu"):
        return "cpu"
    if name.endswith((".cu", ".cuh")) or "cublaslt" in stem:
        return "cuda"
    if stem.endswith(("_ref", "_cases", "_problem")) or stem == place(path)[1]:
        return ""
    return "any"


def include_allowed(path: str, target: str) -> bool:
    (kind, room), (target_kind, target_room) = place(path), place(target)
    if target == "liger/ops/ops.def":
        return kind in ("core", "cpu", "cuda")
    if is_public(path):
        return is_public(target) and target_kind != "umbrella" or kind == "umbrella"
    if target_kind == "core":
        return True
    if kind in ("core", "cpu", "cuda"):
        return target_kind == kind
    if kind == "chunk":
        return target_kind == "chunk" or target.endswith("_problem.h")
    if kind != "room":
        return True
    is_test = path.endswith(TEST_FILES)
    if target_kind == "room":
        shown = (
            target.endswith("_problem.h") or is_test and (target.endswith(("_ref.h", "_cases.h")) or is_public(target))
        )
        return target_room == room or shown
    if target_kind in ("cpu", "cuda"):
        return backend_of(path) in (target_kind, "any")
    if target_kind == "chunk":
        return backend_of(path) == ""
    return target_kind == "tests" and is_test


def include_problems(path: str, text: str) -> Iterator[str]:
    vocabularies = set()
    for form, target in INCLUDE.findall(text):
        if form == '"':
            vocabularies.add(place(target)[0])
            if not target.startswith(("liger/", "tests/")):
                yield f'{path}: "{target}" is not a path from the root of the tree'
            elif not include_allowed(path, target):
                yield f"{path}: must not include {target}"
        elif re.match(r"(Python\.h|torch/|ATen/|c10/|pybind11/)", target):
            yield f"{path}: must not include <{target}>: nothing in the library knows torch or Python"
        elif re.match(r"(cuda|cublas|cooperative_groups|mma\.h|nv/)", target):
            in_cuda = place(path)[0] == "cuda" or backend_of(path) == "cuda"
            if is_public(path) or not in_cuda:
                yield f"{path}: must not include <{target}>: only the CUDA backend knows CUDA"
    if place(path)[0] == "room" and {"cpu", "cuda"} <= vocabularies:
        yield f"{path}: includes both backends' vocabularies"


NOT_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', re.DOTALL)
# What a skeleton does for a room. The parallel loop itself is declared in parallel.h.
DOES = {"cuda": re.compile(r"__global__|<<<"), "cpu": re.compile(r"\bliger_parallel_for\s*\(")}


# Its backward reads of dy only what the bits of the support ask for, which no skeleton does.
HAVE_KERNELS_TOO = {"sparsemax"}
# A step between a room's own kernels.
CALLED = {"liger/cuda/sort_keys.cuh"}


def skeletons_of(root: Path, backend: str) -> set[str]:
    """The headers of a vocabulary that hold whole kernels, and those that bring such a header with them."""
    texts = {f"liger/{backend}/{p.name}": p.read_text() for p in (root / "liger" / backend).glob("*.*h")}
    for name in ("liger/cpu/parallel.h", *CALLED):
        texts.pop(name, None)
    found = {name for name, text in texts.items() if DOES[backend].search(NOT_CODE.sub(" ", text))}
    while more := {n for n, text in texts.items() if found & {t for _, t in INCLUDE.findall(text)}} - found:
        found |= more
    return found


def skeleton_problems(root: Path) -> Iterator[str]:
    rooms = [folder.name for folder in (root / "liger/ops").iterdir() if folder.is_dir() and folder.name != "gemm"]
    # a slot, a problem, a struct of arguments, a kernel; `softmax_state` is the vocabulary's own
    named = re.compile(
        rf"\b(?:liger_)?(?:{'|'.join(rooms)})_(?:\w+_)?(?:forward|backward|problem|args|cuda|cpu|door)\w*"
    )
    for backend, does in DOES.items():
        for file in sorted((root / "liger" / backend).iterdir()):
            found = named.search(NOT_CODE.sub(" ", file.read_text()))
            if found:
                yield f"{file.relative_to(root)}: names `{found[0]}`: what rooms share knows none of them"
        skeletons = skeletons_of(root, backend)
        for file in sorted((root / "liger/ops").glob("*/*.c*")):
            text = file.read_text()
            used = skeletons & {target for _, target in INCLUDE.findall(text)}
            found = does.search(NOT_CODE.sub(" ", text))
            if used and found and file.parent.name not in HAVE_KERNELS_TOO:
                yield f"{file.relative_to(root)}: `{found[0].strip()}` beside {used.pop()}: that runs the room's formula"


def room_problems(root: Path) -> Iterator[str]:
    rows = re.findall(
        r"^LIGER_(OP|KERNEL|COMPOSITE)\(\s*(\w+)\s*,\s*(\w+)\s*\)",
        (root / "liger/ops/ops.def").read_text(),
        re.MULTILINE,
    )
    kinds = defaultdict(set)
    for kind, _, room in rows:
        kinds[room].add(kind)
    for room, its_kinds in kinds.items():
        folder = root / "liger/ops" / room
        needed = {"_ref.c", "_cases.c"}
        if its_kinds & {"OP", "COMPOSITE"}:
            needed |= {".h", ".c"}
        if its_kinds & {"OP", "KERNEL"}:
            needed |= {"_problem.h", "_cpu.c", "_cuda.cu"}
        for ending in sorted(needed):
            if not (folder / f"{room}{ending}").exists():
                yield f"liger/ops/{room}: no {room}{ending} (no half rooms: both backends, reference and cases)"
    for folder in sorted((root / "liger/ops").iterdir()):
        if folder.is_dir() and folder.name not in kinds:
            yield f"liger/ops/{folder.name}: no row in ops.def names this room"


def umbrella_problems(root: Path) -> Iterator[str]:
    umbrella = (root / "liger/liger.h").read_text()
    for header in sorted((root / "liger/ops").glob("*/*.h")):
        path = header.relative_to(root).as_posix()
        if is_public(path) and "LIGER_API" in header.read_text() and f'#include "{path}"' not in umbrella:
            yield f"liger/liger.h: does not include the public header {path}"


def tree(root: Path) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in sorted(set(listed)) if (root / path).is_file()]


def problems(root: Path) -> Iterator[str]:
    yield from room_problems(root)
    yield from umbrella_problems(root)
    yield from skeleton_problems(root)
    names = defaultdict(list)
    for path in tree(root):
        file = root / path
        if path.startswith(("liger/", "tests/", "bench/")) and file.suffix in C_SUFFIXES:
            names[file.name].append(path)
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        if path.startswith("liger/") and file.suffix in C_SUFFIXES:
            yield from include_problems(path, text)
        if path != "tools/check_rooms.py":
            for number, line in enumerate(text.splitlines(), 1):
                found = FOREIGN_TEXT.search(line)
                if found:
                    yield f"{path}:{number}: `{found[0]}` means nothing to a reader of this tree; write the fact itself"
    for name, paths in names.items():
        if len(paths) > 1:
            yield f"{name}: several files have this name: {', '.join(paths)}"


def main() -> int:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = list(problems(root))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
