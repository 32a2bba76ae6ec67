#!/usr/bin/env python3
"""Fails on register spills in any kernel, for sm_80 and sm_90a or for the architectures that are named.

A spill is memory traffic that nobody wrote. Where one is known and cheaper than the alternative, the .cu names it:
    /* spills allowed: <part of the kernel's name>: reason */
An exception that no kernel needs any more is an error too. Without nvcc the check says so and passes.

What ptxas said is read from a build folder, which keeps it beside each object; without --build the files are compiled.

usage: check_cuda_build.py --build BUILD [--report] [--archs 75,80,...] [FILE.cu ...]
       check_cuda_build.py [-j JOBS] [--report] [--archs 75,80,...] [FILE.cu ...]
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90a")
CACHE = ROOT / "build/.cuda-check"
FLAGS = [
    *("-std=c++17", "-O3", "-Xptxas=-v", "-DLIGER_HAS_CUDA=1"),
    "-Xcompiler=-fPIC,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-fvisibility=hidden,-ffp-contract=off",
]
EXCEPTION = re.compile(r"/\*\s*spills allowed:\s*([^:]+?)\s*:\s*(.+?)\s*\*/", re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    name: str
    architecture: str
    registers: int
    stack: int
    spill: int  # bytes stored and loaded


def parse_ptxas(text: str) -> list[Kernel]:
    kernels = []
    for block in text.split("Compiling entry function '")[1:]:
        name, architecture = re.match(r"([^']+)' for 'sm_(\w+)'", block).groups()  # type: ignore[union-attr]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", block)]
        registers = re.search(r"Used (\d+) registers", block)
        stack = re.search(r"(\d+) bytes stack frame", block)
        kernels.append(
            Kernel(
                name, architecture, int(registers[1]) if registers else 0, int(stack[1]) if stack else 0, sum(spills)
            )
        )
    return kernels


def compile_one(source: Path, architecture: str, nvcc: str) -> tuple[Path, str, str]:
    """(source, what ptxas said, error). What was compiled from the same text before is not compiled again."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    preprocess = [nvcc, "-E", *FLAGS, target, f"-I{ROOT}", str(source)]
    text = subprocess.run(preprocess, capture_output=True).stdout
    key = hashlib.sha256(text + nvcc.encode()).hexdigest()[:24]
    saved = CACHE / f"{source.stem}.{architecture}.{key}"
    if text and saved.exists():
        return source, saved.read_text(), ""
    command = [nvcc, *FLAGS, target, f"-I{ROOT}", "-c", str(source), "-o", "/dev/null"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        return source, "", f"{source.relative_to(ROOT)} for sm_{architecture} does not compile:\n{result.stderr}"
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{source.stem}.{architecture}.*"):
        old.unlink()
    saved.write_text(result.stderr)
    return source, result.stderr, ""


def said_by_build(build: Path, source: Path, architectures: list[str]) -> tuple[Path, str, str]:
    """(source, what ptxas said when this was built, error)."""
    saved = build / "cuda" / f"{source.name}.o.ptxas"
    if not saved.exists():
        return source, "", f"{source.relative_to(ROOT)}: there is no {saved}: it was not built there"
    said = saved.read_text()
    spoken_of = {kernel.architecture for kernel in parse_ptxas(said)}
    if said.count("bytes gmem") < len(architectures) or spoken_of and not spoken_of.issuperset(architectures):
        return source, said, f"{saved}: is no report of ptxas -v on sm_{', sm_'.join(architectures)}"
    return source, said, ""


def judge(source: Path, kernels: list[Kernel]) -> list[str]:
    allowed = dict(EXCEPTION.findall(source.read_text()))
    used = set()
    found = []
    where = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source
    for kernel in kernels:
        excuses = [part for part in allowed if part in kernel.name]
        if kernel.spill and excuses:
            used.update(excuses)
        elif kernel.spill:
            found.append(f"{where}: {kernel.name} spills {kernel.spill} bytes on sm_{kernel.architecture}")
    found += [f"{where}: the exception for `{part}` is not needed (any more)" for part in allowed if part not in used]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-j", "--jobs", type=int, default=1)
    parser.add_argument("--build", type=Path, help="a build folder: its nvcc's words are read, nothing is compiled")
    parser.add_argument("--archs", default=",".join(ARCHITECTURES), help="GPU architectures, separated by commas")
    parser.add_argument("--report", action="store_true", help="list every kernel: registers, stack, spills")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    architectures = options.archs.split(",")
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        print("CUDA: no nvcc on this machine, nothing compiled")
        return 0
    sources = [file.resolve() for file in options.files] or sorted(ROOT.glob("liger/**/*.cu"))
    if options.build:
        answers = [said_by_build(options.build, source, architectures) for source in sources]
    else:
        jobs = [(source, architecture) for source in sources for architecture in architectures]
        with ThreadPoolExecutor(options.jobs) as pool:
            answers = list(pool.map(lambda job: compile_one(*job, nvcc), jobs))
    by_source: dict[Path, list[Kernel]] = {source: [] for source in sources}
    found = []
    for source, said, error in answers:
        found += [error] if error else []
        by_source[source] += parse_ptxas(said)
    for source, kernels in by_source.items():
        found += judge(source, kernels)
        for kernel in kernels if options.report else ():
            print(
                f"{source.stem} sm_{kernel.architecture} {kernel.registers} registers {kernel.stack} stack {kernel.spill} spilled {kernel.name}"
            )
    for problem in found:
        print(problem, file=sys.stderr)
    count = sum(map(len, by_source.values()))
    print(f"CUDA: {len(sources)} files, {count} kernels, sm_{', sm_'.join(architectures)}: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
