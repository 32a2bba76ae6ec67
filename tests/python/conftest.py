"""Options and fixtures of all Python tests. `--device cuda` runs on the GPU what is written for any device."""

from __future__ import annotations

import os

# Read by OpenMP when torch is imported, here and in the processes that tests start: the threads of several workers share the
# cores, and one that waits by spinning takes the time of one that works. More than half of a run of small models went into it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import own_process  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

SESSION = pytest.StashKey[pytest.Session]()


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="device of the tensors under test")


def pytest_sessionstart(session):
    session.config.stash[SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """A process that ran on the device ends as the tests' own processes do."""
    if SESSION in config.stash and torch.cuda.is_initialized():
        config.get_terminal_writer().flush()
        own_process.leave(int(config.stash[SESSION].exitstatus))


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda: torch finds no CUDA device here", returncode=2)
    return torch.device(name)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _small_gradients_reuse_memory(monkeypatch):
    """As large ones do: the tests are of small tensors, and whoever sees a saved tensor must keep it whatever its size."""
    monkeypatch.setattr("liger_kernel.ops._memory.LEAST_REUSED", 0)


@pytest.fixture
def unpatched():
    """Nothing is patched before the test, and nothing after it."""
    monkey_patch = pytest.importorskip("liger_kernel.transformers.monkey_patch", reason="needs transformers")
    monkey_patch.revert_liger_kernel()
    yield monkey_patch
    monkey_patch.revert_liger_kernel()
