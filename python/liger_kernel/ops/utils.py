"""Helpers that code around the operators imports from here. None of them needs Triton.

The operators themselves use none of this; the names are kept because programs built on this package call them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from packaging.version import Version

from liger_kernel.utils import infer_device

__all__ = [
    "amp_custom_bwd",
    "amp_custom_fwd",
    "calculate_settings",
    "compare_version",
    "device_context",
    "ensure_contiguous",
    "get_amp_custom_fwd_bwd",
    "get_npu_core_count",
    "infer_device",
    "is_hip",
    "set_large_grf_mode",
    "torch_to_triton_dtype",
]


def is_hip() -> bool:
    """Whether this torch is built for AMD's HIP."""
    return torch.version.hip is not None


@contextlib.contextmanager
def device_context(device: torch.device | str) -> Iterator[None]:
    """Make `device` the current one of its type inside the block. Does nothing for the CPU."""
    device = torch.device(device)
    module = getattr(torch, device.type, None)
    guard = getattr(module, "device", None)
    if device.type == "cpu" or guard is None:
        yield
        return
    with guard(device):
        yield


def ensure_contiguous(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an autograd Function's forward or backward so that it sees contiguous tensors only."""

    def contiguous(value: Any) -> Any:
        return value.contiguous() if isinstance(value, torch.Tensor) else value

    @functools.wraps(fn)
    def wrapper(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(ctx, *map(contiguous, args), **{name: contiguous(value) for name, value in kwargs.items()})

    return wrapper


def calculate_settings(n: int) -> tuple[int, int]:
    """(block size, warps) for rows of `n` elements: the next power of two, and 4, 8, 16 or 32 warps.

    There is no upper limit on `n`.
    """
    block = 1 << max(n - 1, 0).bit_length()
    if block >= 32768:
        return block, 32
    if block >= 8192:
        return block, 16
    return block, 8 if block >= 2048 else 4


def compare_version(package: str, operator: Callable[[Any, Any], bool], target: str) -> bool:
    """`operator(version of package, target)`; False if the package is not installed. Reads `package.__version__`."""
    try:
        module = importlib.import_module(package)
    except ImportError:
        return False
    return operator(Version(module.__version__), Version(target))


def get_amp_custom_fwd_bwd() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """torch's decorators for an autograd Function's forward and backward, bound to this machine's device type."""
    device = infer_device()
    return (
        functools.partial(torch.amp.custom_fwd, device_type=device),
        functools.partial(torch.amp.custom_bwd, device_type=device),
    )


amp_custom_fwd, amp_custom_bwd = get_amp_custom_fwd_bwd()


class _TritonDtypes(Mapping[torch.dtype, Any]):
    """torch dtype -> Triton dtype. Triton is imported at the first look; without it the mapping is empty."""

    _NAMES = {
        torch.float64: "float64",
        torch.float32: "float32",
        torch.float16: "float16",
        torch.bfloat16: "bfloat16",
        torch.int64: "int64",
        torch.int32: "int32",
        torch.int16: "int16",
        torch.int8: "int8",
        torch.uint8: "uint8",
        torch.bool: "int1",
    }

    @functools.cached_property
    def _entries(self) -> dict[torch.dtype, Any]:
        try:
            language = importlib.import_module("triton.language")
        except ImportError:
            return {}
        return {dtype: getattr(language, name) for dtype, name in self._NAMES.items()}

    def __getitem__(self, dtype: torch.dtype) -> Any:
        return self._entries[dtype]

    def __iter__(self) -> Iterator[torch.dtype]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


torch_to_triton_dtype: Mapping[torch.dtype, Any] = _TritonDtypes()


def get_npu_core_count(default: int = 20) -> int:
    """The number of vector cores of the current NPU, or `default` where that cannot be found out."""
    try:
        npu: Any = torch.npu  # type: ignore[attr-defined]
        count = npu.get_device_properties(npu.current_device()).vector_core_num
    except Exception:
        return default
    return int(count) or default


def set_large_grf_mode(kernel_args: dict[str, Any]) -> None:
    """Ask Intel's Triton for the large register file: sets `kernel_args["grf_mode"]`."""
    kernel_args["grf_mode"] = "large"
