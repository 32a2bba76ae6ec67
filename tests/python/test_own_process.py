"""Processes of the tests' own end as they should, whatever Python's way out would have done."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import own_process
import pytest

HERE = pathlib.Path(__file__).parent

# What torch does to some processes after a backward on CUDA.
ABORTS_AT_EXIT = "import atexit, os; atexit.register(os.abort)\n"
# A device that is in use, where there is none or nobody has used it: torch.cuda says so and remembers who waited for it.
# Nobody may ask for its generators, which appear only with the real thing.
IN_USE = """
import sys, torch
torch.cuda.is_initialized = lambda: True
torch.cuda.device_count = torch.cuda.random.device_count = lambda: 2
torch.cuda.manual_seed_all = lambda seed: None
torch.cuda.synchronize = lambda index: print("waited for", index, file=sys.stderr)
"""


def test_no_abort_and_nothing_lost():
    text = own_process.output(
        "-c", ABORTS_AT_EXIT + "import sys; sys.stdout.write('x' * 100000); print(sys.argv[1])", "y"
    )
    assert text == "x" * 100000 + "y\n"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("raise ValueError('of the program')", 1, "ValueError: of the program"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('what is wrong')", 1, "what is wrong"),
        ("import sys; sys.exit()", 0, ""),
    ],
)
def test_a_failure_is_seen(code, status, words):
    done = own_process.run("-c", ABORTS_AT_EXIT + code)
    assert done.returncode == status and words in done.stderr


def test_a_file_and_a_module_run_as_main(tmp_path):
    program = (
        ABORTS_AT_EXIT + "import neighbour, sys\nif __name__ == '__main__': print(neighbour.NAME, *sys.argv[1:])\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "neighbour.py").write_text("NAME = 'found'\n")
    assert own_process.output(tmp_path / "program.py", "a", "b") == "found a b\n"
    assert own_process.output("-m", "program", "a", PYTHONPATH=str(tmp_path)) == "found a\n"


def test_the_device_is_waited_for():
    done = own_process.run("-c", IN_USE + ABORTS_AT_EXIT)
    assert (done.returncode, done.stderr) == (0, "waited for 0\nwaited for 1\n")
    broken = "def broken(index): raise RuntimeError('a fault of the device')\ntorch.cuda.synchronize = broken\n"
    done = own_process.run("-c", IN_USE + broken)
    assert done.returncode == 1 and "a fault of the device" in done.stderr


ENVIRONMENT = "import ctypes, os; getenv = ctypes.CDLL(None).getenv; getenv.restype = ctypes.c_char_p\n"


def test_an_environment_of_its_own():
    code = ENVIRONMENT + "print(os.environ.get('LIGER_TEST'), getenv(b'LIGER_TEST'))"
    assert own_process.output("-c", code, LIGER_TEST="one") == "one b'one'\n"
    assert own_process.output("-c", code) == "None None\n"


def test_a_fork_unless_torch_reads_the_environment():
    code = "import sys; print('torch' in sys.modules, 'liger_kernel' in sys.modules, 'pytest' in sys.modules)"
    assert own_process.output("-c", code, LIGER_TEST="one") == "True False False\n"
    assert own_process.output("-c", code, OMP_NUM_THREADS="1") == "False False False\n"


def test_what_the_test_has_set_is_not_lost(monkeypatch):
    """torch looks at some names when it is imported: a fork would be too late."""
    assert own_process.output("-c", "import sys; print('torch' in sys.modules)") == "True\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = "import sys; print('torch' in sys.modules); import torch; print(torch.get_num_threads())"
    assert own_process.output("-c", code) == "False\n1\n"


def test_what_a_compilation_has_set_is_no_reason_for_an_interpreter(monkeypatch):
    """torch.compile leaves its folder and an address in the environment of the process that has used it."""
    code = "import sys; print('torch' in sys.modules)"
    assert own_process.output("-c", code) == "True\n"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/nowhere")
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "1")
    assert own_process.output("-c", code) == "True\n"


def test_an_end_that_nobody_has_seen_is_a_failure():
    """Whoever looks after the program may be killed before the program is."""
    done = own_process.run("-c", "import os; os.kill(os.getppid(), 9); raise SystemExit(3)")
    assert done.returncode == 1 and "how the program ended" in done.stderr


def test_a_signal_is_seen():
    done = own_process.run("-c", "import os; print('before', flush=True); os.abort()")
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, "before\n")


def test_a_process_that_is_killed_leaves_nothing_behind():
    with own_process.start("-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)") as process:
        program = int(process.stdout.readline())
        assert program != process.pid
        process.kill()
    for _ in range(500):
        if not pathlib.Path(f"/proc/{program}").exists():
            return
        time.sleep(0.02)
    pytest.fail("the program outlives the process that stands for it")


@pytest.mark.parametrize(("fact", "status", "workers"), [("False", 1, ""), ("True", 0, "-n1")])
def test_pytest_itself_leaves_so(tmp_path, fact, status, workers):
    """pytest's own process, and xdist's, ran backwards on the device too."""
    if workers:
        pytest.importorskip("xdist", reason="needs pytest-xdist")
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(f"{IN_USE}{ABORTS_AT_EXIT}def test_it(): assert {fact}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *filter(None, [workers]), tmp_path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("1 passed" if status == 0 else "1 failed") in done.stdout.splitlines()[-1], done.stdout
    assert "crashed" not in done.stdout and "properly" not in done.stdout


def test_every_process_goes_this_way():
    """Nothing else in tests/python starts an interpreter; the tools that test_tools.py runs know no torch."""
    others = {path.name for path in HERE.glob("*.py") if "sys.executable" in path.read_text()}
    assert others == {"own_process.py", "test_own_process.py", "test_tools.py"}
