"""RMSNorm with a scale and a shift of each sample, as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerModulatedRMSNormFunction


class LigerModulatedRMSNorm(nn.Module):
    """y = (1 + scale) · RMSNorm(hidden_states) + shift, as adaptive norms of diffusion transformers have it.

    `scale` [..., hidden_size] has a number of rows that divides those of hidden_states: (H,), (B, H), (B, 1, H) or one for
    each; `shift` as many, or None. `weight` [hidden_size] starts as ones or zeros (`init_fn`; AssertionError for another) and
    is None without `elementwise_affine`. The rest is as in `LigerRMSNorm`.
    """

    def __init__(
        self,
        hidden_size,
        eps=1e-6,
        offset=0.0,
        casting_mode="llama",
        init_fn="ones",
        in_place=True,
        elementwise_affine=True,
    ):
        super().__init__()
        assert init_fn in ("ones", "zeros"), f"init_fn must be 'ones' or 'zeros', got {init_fn!r}"
        self.elementwise_affine = elementwise_affine
        if elementwise_affine:
            self.weight = nn.Parameter(torch.ones(hidden_size) if init_fn == "ones" else torch.zeros(hidden_size))
        else:
            self.register_parameter("weight", None)
        self.variance_epsilon = eps
        self.offset = offset
        self.casting_mode = casting_mode
        self.in_place = in_place

    def forward(self, hidden_states, scale, shift=None):
        return LigerModulatedRMSNormFunction.apply(
            hidden_states,
            self.weight,
            scale,
            shift,
            self.variance_epsilon,
            self.offset,
            self.casting_mode,
            self.in_place,
        )

    def extra_repr(self):
        shape = None if self.weight is None else tuple(self.weight.shape)
        return f"weight_shape={shape}, eps={self.variance_epsilon}, offset={self.offset}, in_place={self.in_place}"


def liger_modulated_rms_norm(
    X, W, scale, shift=None, eps: float = 1e-6, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True
):
    """(1 + scale) · RMSNorm(X) + shift: see `LigerModulatedRMSNorm`."""
    return LigerModulatedRMSNormFunction.apply(X, W, scale, shift, eps, offset, casting_mode, in_place)
