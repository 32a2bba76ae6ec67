"""The C library, one function per operator: `_native.rms_norm_forward(x, weight, y, rstd, epsilon, offset, casting)`.

Arguments are positional, in the order of the C args struct without its `size`; a tensor that is absent is None; workspace
and workspace_bytes are one argument, a uint8 tensor or None. `<operator>_workspace(...)` takes the same arguments and
answers bytes. The first tensor's device decides where the call runs.

In the place of a result may stand a `Wish`: the call makes the tensor, and answers all that it has made, in the order of
the arguments; a workspace can be wished for too. That costs less host time than to make it here and to ask for its sizes.

The library is loaded at the first use of any of these names, not at import: where it is missing, the error says so in
words, and only to those who need it. From then on the names are plain attributes of this module.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["LigerArgumentError", "LigerError", "Wish", "load", "report"]

_BINDING = "_binding.abi3.so"
_binding: ModuleType | None = None
_failure: str | None = None


class Wish(int):
    """A result that the call is to make itself. `Wish.LIKE[1]`: like the argument number 1 (one of the first four)."""

    # as `enum wish` in torch_functions.h
    NOTHING: Wish  # None among the results: nobody asked for it
    LIKE: Wish  # contiguous memory of the source's shape and dtype
    HEADS: Wish  # [B, S, H, D] memory seen as [B, H, S, D], like the source
    PER_ROW: Wish  # one float32 for each row of the source
    PER_ROW_SAME: Wish  # one value of the source's dtype for each of its rows
    PER_ROW_I64: Wish
    PER_ROW_BITS: Wish  # one bit for each element of a row, in words of int32: [rows, (cols + 31) // 32]
    SCALAR: Wish  # one float32, no dimensions
    SCALAR_SAME: Wish  # of the source's dtype
    SCRATCH: Wish  # a workspace as large as the call needs

    @property
    def kind(self) -> int:
        return self // 16

    @property
    def source(self) -> int:
        return self % 16

    def __getitem__(self, source: int) -> Wish:
        return Wish(self.kind * 16 + source)

    def __repr__(self) -> str:
        return f"<{_WISHES[self.kind]} of argument {self.source}>"


_WISHES = [name for name in Wish.__annotations__]
for _kind, _name in enumerate(_WISHES):
    setattr(Wish, _name, Wish(_kind * 16))


class LigerError(RuntimeError):
    """The library could not do what was asked, though the arguments were right."""


class LigerArgumentError(ValueError, AssertionError):
    """An argument is outside what the operator accepts. The message names it; outputs are untouched."""


def _folder() -> Path:
    """Where the binding and the library are: beside this file, or where LIGER_NATIVE_DIR points."""
    given = os.environ.get("LIGER_NATIVE_DIR")
    return Path(given) if given else Path(__file__).resolve().parent


def _cuda_functions() -> tuple[Callable[[int], int], Callable[[], int]]:
    """(device index -> address of torch's current stream, the current index). Looked up at the first CUDA tensor: CPU
    builds lack them."""
    import torch

    stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return (
        stream or (lambda index: torch.cuda.current_stream(index).cuda_stream),
        getattr(torch._C, "_cuda_getDevice", None) or torch.cuda.current_device,
    )


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Without torch.jit.trace, which records a look at a shape and warns of what is decided by it. Inside a dispatch mode's
    handler nothing is recorded, and torch does not let anybody touch what is on."""
    import torch

    trace = torch._C._get_tracing_state()
    is_open = trace is not None and not torch._C._dispatch_tls_is_dispatch_key_excluded("Tracer")
    if is_open:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # no stub
    try:
        yield
    finally:
        if is_open:
            torch._C._set_tracing_state(trace)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _untransformed() -> Iterator[None]:
    """Torch as it is without the modes, traces and transforms that may be on where the library is used first: what it finds
    of torch is for good."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with untraced(), _disable_current_modes(), torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch():
        yield


def _quick_functions() -> tuple[Any, Any]:
    """What torch's own generated code makes memory with, on the CPU and on the current GPU, in a third of empty_strided's
    time: (shape, stride, dtype) -> tensor. None where this torch has none, or it does not do that."""
    import torch

    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    on_cpu, on_cuda = (getattr(guards, f"_empty_strided_{device}", None) for device in ("cpu", "cuda"))
    try:
        made = on_cpu((2, 3), (1, 2), torch.bfloat16)  # type: ignore[misc]
    except (AttributeError, TypeError, RuntimeError):
        return None, None
    right = (type(made), made.shape, made.stride(), made.dtype) == (torch.Tensor, (2, 3), (1, 2), torch.bfloat16)
    return (on_cpu, on_cuda) if right else (None, None)


def _import_binding(folder: Path) -> ModuleType:
    path = folder / _BINDING
    if not path.exists():
        where = "LIGER_NATIVE_DIR" if os.environ.get("LIGER_NATIVE_DIR") else "the installed package"
        raise ImportError(f"there is no {_BINDING} in {folder} ({where})")
    name = f"{__name__}._binding"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
    return module


def _watch_dispatch(module: ModuleType) -> None:
    """Lets the binding see modes and transforms for itself, if it sees those that are put on here."""
    import torch

    guard, key_of = (getattr(torch._C, name, None) for name in ("_IncludeDispatchKeyGuard", "_parse_dispatch_key"))
    if guard is None or key_of is None:
        return
    module.watch_dispatch(True)
    for name in ("Tracer", "Python", "FuncTorchDynamicLayerFrontMode"):
        with guard(key_of(name)):
            if module.is_usual():
                module.watch_dispatch(False)


def load() -> ModuleType:
    """Loads the library, once; LigerError with the reason if that is not possible."""
    global _binding, _failure
    if _binding is not None:
        return _binding
    if _failure is not None:
        raise LigerError(_failure)
    import torch  # noqa: F401  # first: the library borrows torch's threads and matrix products, and looks for what is loaded

    try:
        module = _import_binding(_folder())
    except ImportError as error:
        _failure = (
            f"liger_kernel's C library could not be loaded: {error}. Install the wheel, or build the library "
            f"(make build) and point LIGER_NATIVE_DIR at the build folder."
        )
        raise LigerError(_failure) from error
    with _untransformed():
        _set_up(module)
    for name in dir(module):
        if not name.startswith("_") and name != "setup":
            globals()[name] = getattr(module, name)
    _binding = module
    return module


def _set_up(module: ModuleType) -> None:
    """Tells the binding what there is of torch."""
    import torch

    dtypes = (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.int8,
        torch.bool,
    )
    module.setup(
        torch._C.TensorBase,
        torch.Tensor,
        torch.nn.Parameter,
        dtypes,
        LigerArgumentError,
        LigerError,
        _cuda_functions,
        torch.empty(3, 2, device="cpu").t(),
        Wish,
        torch.empty_like,
        torch.empty_strided,
        _quick_functions(),
    )
    _watch_dispatch(module)


def _load_before_fork() -> None:
    """Torch's threads do not survive a fork, and whoever waits for them in the child waits for ever. The library watches
    for forks, so it has to be there when one comes, even if nobody has called it yet."""
    if "torch" in sys.modules:
        with contextlib.suppress(LigerError):
            load()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_load_before_fork)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    module = load()
    try:
        return getattr(module, name)
    except AttributeError:
        raise AttributeError(f"liger_kernel's C library {module.version()} has no {name}") from None


def report() -> dict[str, str]:
    """What was found, in words, for `python -m liger_kernel`. Never raises."""
    try:
        module = load()
    except LigerError as error:
        return {"library": str(error)}
    facts = {
        "library": f"{module.version()} in {_folder()}",
        "instruction sets": ", ".join(module.isa_names()),
    }
    facts.update(_describe(module, -1, "CPU"))
    import torch

    if not module.has_cuda_backend():
        facts["CUDA"] = "this build of the library has no CUDA backend"
    elif not torch.cuda.is_available():
        facts["CUDA"] = "the library has a CUDA backend, but torch sees no GPU"
    else:
        for index in range(torch.cuda.device_count()):
            facts.update(_describe(module, index, f"GPU {index}"))
    return facts


def _describe(module: ModuleType, device: int, label: str) -> dict[str, str]:
    try:
        facts = module.context_facts(device)
    except (LigerError, LigerArgumentError, MemoryError) as error:
        return {label: f"not usable: {error}"}
    described = {label: facts["backend"], f"{label} matrix products": facts["gemm"]}
    if facts["threads"]:
        described[f"{label} threads"] = facts["threads"]
    return described
