"""What is this machine, and which optional packages does it have?

Every answer is computed when it is asked for: importing this module touches no device and imports nothing but torch.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: in sys.modules without a spec, as test doubles are
        return False


def loaded_class(module: str, name: str) -> Any:
    """The class `module.name` for isinstance if that module is imported, else (), which no object is an instance of.

    An object of a package that nobody has imported cannot exist, so optional packages are never imported to look.
    """
    return getattr(sys.modules.get(module), name, ())


def is_peft_available() -> bool:
    """Whether the package `peft` can be imported. It is not imported by asking."""
    return _is_installed("peft")


PEFT_AVAILABLE: bool = is_peft_available()


def is_npu_available() -> bool:
    """Whether torch drives an Ascend NPU here (the extension `torch_npu` adds `torch.npu`)."""
    npu = getattr(torch, "npu", None)
    try:
        return bool(npu is not None and npu.is_available())
    except Exception:
        return False


def _is_xpu_available() -> bool:
    xpu = getattr(torch, "xpu", None)
    return bool(xpu is not None and xpu.is_available())


def infer_device() -> str:
    """The best device type of this machine: "cuda", else "npu", else "xpu", else "cpu"."""
    if torch.cuda.is_available():  # true for AMD builds too, which call themselves cuda
        return "cuda"
    if is_npu_available():
        return "npu"
    if _is_xpu_available():
        return "xpu"
    return "cpu"


def infer_comm_backend() -> str:
    """The first collective backend that torch.distributed can use: nccl, hccl (Ascend), xccl, mpi or gloo.

    RuntimeError if there is none.
    """
    distributed = torch.distributed

    def built_with(name: str) -> bool:
        probe = getattr(distributed, f"is_{name}_available", None)
        return bool(distributed.is_available() and probe is not None and probe())

    if built_with("nccl"):
        return "nccl"
    if is_npu_available():
        return "hccl"
    for name in ("xccl", "mpi", "gloo"):
        if built_with(name):
            return name
    raise RuntimeError("torch.distributed has none of the backends nccl, hccl, xccl, mpi and gloo")


_NVIDIA_ARCHS = {
    (7, 0): "volta_turing",
    (7, 5): "volta_turing",
    (8, 0): "ampere_ada",
    (8, 6): "ampere_ada",
    (8, 9): "ampere_ada",
    (9, 0): "hopper",
    (10, 0): "blackwell",
    (10, 3): "blackwell_ultra",
    (12, 0): "blackwell_consumer",
}

_AMD_ARCHS = {
    "gfx908": "cdna",
    "gfx90a": "cdna2",
    "gfx940": "cdna3",
    "gfx941": "cdna3",
    "gfx942": "cdna3",
    "gfx1100": "rdna3",
    "gfx1101": "rdna3",
    "gfx1102": "rdna3",
}


def _infer_nvidia_arch(device_id: int) -> str:
    properties = torch.cuda.get_device_properties(device_id)
    major, minor = properties.major, properties.minor
    return _NVIDIA_ARCHS.get((major, minor), f"sm_{major}{minor}")


def _infer_amd_arch(device_id: int) -> str:
    raw = torch.cuda.get_device_properties(device_id).gcnArchName
    return _AMD_ARCHS.get(raw.split(":")[0], raw)  # "gfx90a:sramecc+:xnack-" is a gfx90a


def _infer_xpu_arch(device_id: int) -> str:
    name = torch.xpu.get_device_properties(device_id).name.lower()
    if "max" in name or "pvc" in name or "ponte vecchio" in name:
        return "pvc"
    return "arc" if "arc" in name else "xpu"


def _infer_npu_arch(device_id: int) -> str:
    npu: Any = torch.npu  # type: ignore[attr-defined]
    name = str(npu.get_device_properties(device_id).name).lower()
    for number in ("910", "310"):
        if number in name:
            return "ascend" + number
    return "npu"


@functools.cache
def infer_device_arch(device_id: int = 0) -> str:
    """The architecture family of a device ("hopper", "ampere_ada", "cdna3", "pvc", ...), remembered per `device_id`.

    An NVIDIA device without a family name is "sm_<major><minor>", an AMD device its raw name; whatever cannot be found
    out is the plain device type.
    """
    device = infer_device()
    try:
        if device == "cuda":
            return _infer_amd_arch(device_id) if torch.version.hip else _infer_nvidia_arch(device_id)
        if device == "xpu":
            return _infer_xpu_arch(device_id)
        if device == "npu":
            return _infer_npu_arch(device_id)
    except Exception:
        pass
    return device


def get_total_gpu_memory() -> float:
    """The whole memory of the current accelerator in GiB. RuntimeError without one."""
    device = infer_device()
    if device == "cpu":
        raise RuntimeError("get_total_gpu_memory: this machine has no accelerator that torch can use")
    module = getattr(torch, device)
    return float(module.get_device_properties(module.current_device()).total_memory) / 2**30


def transformers_version_dispatch(
    required_version: str,
    before_fn: Callable[..., Any],
    after_fn: Callable[..., Any],
    before_args: Sequence[Any] = (),
    after_args: Sequence[Any] = (),
    before_kwargs: Mapping[str, Any] | None = None,
    after_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Call `after_fn` if the installed transformers is `required_version` or newer, else `before_fn`; its result."""
    import transformers
    from packaging import version

    if version.parse(transformers.__version__) >= version.parse(required_version):
        return after_fn(*after_args, **(after_kwargs or {}))
    return before_fn(*before_args, **(before_kwargs or {}))
