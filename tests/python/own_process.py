"""Processes of the tests' own: every program that a test starts in Python runs through this file.

After a backward on CUDA Python's own way out may abort inside torch ("terminate called without an active exception"),
with torch's operators alone as well: a thread of autograd lets go of its last objects while the interpreter ends
(pytorch/pytorch#38230). So a program ends here instead: the device is idle, everything is printed, then os._exit.

A program is `FILE ARGUMENT ...`, `-c CODE ARGUMENT ...` or `-m MODULE ARGUMENT ...`, as after `python`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import textwrap
import traceback
import types


def start(*program: object, **environment: str) -> subprocess.Popen:
    """The process, its two streams as pipes of text. It finds the modules that this process finds."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, program)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*program: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    with start(*program, **environment) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(program, process.returncode, out, errors)


def output(*program: object, **options) -> str:
    """What the program prints; its failure is this test's."""
    done = run(*program, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- in the process --------------------------------------------------------------------------------------------------


def leave(status: int) -> None:
    """Ends this process without Python's own way out."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
    except Exception:
        traceback.print_exc()
        status = status or 1
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        stream.flush()
    os._exit(status)


def execute(kind: str, *rest: str) -> None:
    if kind == "-c":
        code, *arguments = rest
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(textwrap.dedent(code), "<string>", "exec"), vars(module))
    elif kind == "-m":
        sys.argv, sys.path[0] = list(rest), ""
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [kind, *rest], os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


def main(words: list[str]) -> int:
    try:
        execute(*words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
