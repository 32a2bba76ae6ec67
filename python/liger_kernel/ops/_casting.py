"""What the operators that are an RMSNorm share: the casting mode, what forward answers outside of autograd, the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from liger_kernel._native import LigerArgumentError

_CASTING_MODES = {"llama": 0, "gemma": 1, "none": -1}
NATIVE_CASTING = {0: 0, 1: 1, -1: 2}  # the package's numbers -> liger_casting


def casting_number(mode: str | int) -> int:
    """0 llama, 1 gemma, -1 none, from the name or the number."""
    if mode == "llama":
        return 0
    number = _CASTING_MODES.get(mode) if isinstance(mode, str) else mode
    if not isinstance(number, int) or isinstance(number, bool) or number not in NATIVE_CASTING:
        raise LigerArgumentError(f"Invalid casting mode: {mode!r}; it must be one of {list(_CASTING_MODES)}")
    return number


def rms_norm_results(y: Tensor, rstd: Tensor, X: Tensor, casting: int) -> tuple:
    """(Y, X as [rows, H], RSTD, block size, warps, casting number); the two sizes are opaque and zero here."""
    if casting == -1:
        rstd = rstd.to(X.dtype)  # exact: the kernel has rounded it
    return y, X.reshape(-1, X.shape[-1]), rstd, 0, 0, casting


def rms_norm_in_f32(X: Tensor, W: Tensor | None, eps: float, offset: float, casting: int) -> Tensor:
    """From differentiable torch operations; not rounded at the end."""
    x = X.float()
    if casting == -1:
        eps, offset = (torch.tensor(v, dtype=X.dtype, device="cpu").item() for v in (eps, offset))
    rstd = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    normal = x * (rstd.to(X.dtype).float() if casting == -1 else rstd)
    if W is None:
        return normal
    if casting == 0:
        normal = normal.to(X.dtype).float()
    scale = (W + offset).float() if casting == -1 else W.float() + offset
    return normal * scale
