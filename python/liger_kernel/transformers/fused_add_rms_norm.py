"""Residual addition and RMSNorm in one pass, as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerFusedAddRMSNormFunction


class LigerFusedAddRMSNorm(nn.Module):
    """(Y, S) with S = hidden_states + residual and Y = RMSNorm(S).

    `hidden_states` and `residual` have one shape [..., hidden_size] and one dtype (fp32, fp16, bf16; ValueError
    otherwise), and so have both results. The statistics are those of S after its rounding to that dtype. The rest is as
    in `LigerRMSNorm`.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        offset: float = 0.0,
        casting_mode: str = "llama",
        init_fn: str = "ones",
        in_place: bool = False,
    ) -> None:
        super().__init__()
        assert init_fn in ("ones", "zeros"), f"init_fn must be 'ones' or 'zeros', got {init_fn!r}"
        self.weight = nn.Parameter(torch.ones(hidden_size) if init_fn == "ones" else torch.zeros(hidden_size))
        self.variance_epsilon = eps
        self.offset = offset
        self.casting_mode = casting_mode
        self.in_place = in_place

    def forward(self, hidden_states, residual):
        return LigerFusedAddRMSNormFunction.apply(
            hidden_states,
            residual,
            self.weight,
            self.variance_epsilon,
            self.offset,
            self.casting_mode,
            self.in_place,
        )

    def extra_repr(self):
        return (
            f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, offset={self.offset}, in_place={self.in_place}"
        )


def liger_fused_add_rms_norm(X, R, W, eps, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True):
    """(RMSNorm(X + R), X + R): see `LigerFusedAddRMSNorm`."""
    return LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode, in_place)
