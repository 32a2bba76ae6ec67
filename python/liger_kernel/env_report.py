"""`python -m liger_kernel.env_report`: the versions that belong into a bug report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch_facts() -> list[tuple[str, str]]:
    try:
        import torch
    except Exception as error:  # a broken installation is what a bug report is about
        return [("PyTorch version", f"not usable: {error}")]
    xpu = getattr(torch, "xpu", None)
    has_xpu = xpu is not None and xpu.is_available()
    return [
        ("PyTorch version", torch.__version__),
        ("CUDA version", str(torch.version.cuda) if torch.version.cuda else "not available"),
        ("HIP version", str(torch.version.hip) if torch.version.hip else "not available"),
        ("XPU version", str(getattr(torch.version, "xpu", None) or "available") if has_xpu else "not available"),
    ]


def print_env_report() -> None:
    """Print the operating system and the versions of Python, this package, torch and its back-ends, Triton and
    transformers, one a line."""
    from liger_kernel import __version__

    lines = [
        ("Operating system", platform.platform()),
        ("Python version", sys.version.split()[0]),
        ("Liger Kernel version", __version__),
        *_torch_facts(),
        ("Triton version", _version("triton")),
        ("Transformers version", _version("transformers")),
    ]
    print("Environment report:")
    print("-------------------")
    for name, value in lines:
        print(f"{name}: {value}")


if __name__ == "__main__":
    print_env_report()
