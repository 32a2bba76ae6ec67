"""Processes of the tests' own: every program that a test starts in Python runs through this file.

After a backward on CUDA Python's own way out may abort inside torch ("terminate called without an active exception"),
with torch's operators alone as well: a thread of autograd lets go of its last objects while the interpreter ends
(pytorch/pytorch#38230). So a program ends here instead: the device is idle, everything is printed, then os._exit.

A program is `FILE ARGUMENT ...`, `-c CODE ARGUMENT ...` or `-m MODULE ARGUMENT ...`, as after `python`.

Importing torch is most of what such a process does, so it is done once: a template imports torch and nothing else, and each
program begins as a fork of it, with an environment of its own. What torch itself reads from the environment needs a fresh
interpreter, and gets one.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import traceback
import types
from collections.abc import Mapping
from typing import NamedTuple


def start(*program: object, **environment: str) -> subprocess.Popen:
    """The process, its two streams as pipes of text. It finds the modules that this process finds."""
    path = os.pathsep.join(filter(None, sys.path))
    whole = {**os.environ, "PYTHONPATH": path, **environment}
    way = [sys.executable, __file__]
    if _of_torch(whole) == template().environment:
        way = [sys.executable, "-S", __file__, "--fork-of", template().address]
    return subprocess.Popen(
        [*way, *map(str, program)],
        env=whole,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _of_torch(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter, or torch when it is imported, may have read: all but what says which test this is, and what torch
    sets itself, with CUDA and when it compiles."""
    later = ("LIGER_", "PYTEST_CURRENT_TEST", "PYTHONPATH", "CUDA_MODULE_LOADING", "TORCHINDUCTOR_", "_TORCHINDUCTOR_")
    return {name: value for name, value in environment.items() if not name.startswith(later)}


class Template(NamedTuple):
    process: subprocess.Popen
    address: str
    environment: dict[str, str]


@functools.cache
def template() -> Template:
    """This process's template, which ends with it: its input is a pipe from here."""
    address = os.path.join(tempfile.mkdtemp(prefix="liger-template-"), "socket")
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, __file__, "--template", address],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n", "the template of the tests' processes does not start"
    return Template(process, address, _of_torch(os.environ))


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


# ---- the template ----------------------------------------------------------------------------------------------------


def be_template(address: str) -> None:
    import torch  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who look after a program are waited for by nobody
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            look_after(client)
        client.close()
    os.remove(address)
    os.rmdir(os.path.dirname(address))


def look_after(client: socket.socket) -> None:
    """Forks the program that the client asks for, tells the client how it ended, and ends it if the client is gone."""
    length, streams, _, _ = socket.recv_fds(client, 8, 2)
    asked = json.loads(client.makefile("rb").read(int.from_bytes(length, "little")))
    program = os.fork()
    if program == 0:
        client.close()
        for ours, theirs in zip((1, 2), streams, strict=True):
            os.dup2(theirs, ours)
            os.close(theirs)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.path[1:1] = filter(None, asked["environment"]["PYTHONPATH"].split(os.pathsep))
        leave(main(asked["words"]))
    for stream in streams:
        os.close(stream)
    end = os.pidfd_open(program)
    if end not in select.select([end, client], [], [])[0]:
        os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    try:
        client.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "little", signed=True))
    finally:
        os._exit(0)


def be_fork_of(address: str, words: list[str]) -> None:
    """Stands for the program: gives it this process's streams and environment, and ends as it ends."""
    asked = json.dumps({"words": words, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(asked).to_bytes(8, "little")], [1, 2])
        server.sendall(asked)
        answer = server.recv(8, socket.MSG_WAITALL)
    if len(answer) != 8:
        sys.exit("nobody can say how the program ended: the process that looked after it is gone")
    status = int.from_bytes(answer, "little", signed=True)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


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
    if sys.argv[1] == "--template":
        be_template(sys.argv[2])
    elif sys.argv[1] == "--fork-of":
        be_fork_of(sys.argv[2], sys.argv[3:])
    else:
        leave(main(sys.argv[1:]))
