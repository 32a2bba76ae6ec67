"""Manifold-constrained hyper-connections: functions, and a module that puts a layer between them."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from liger_kernel.ops import LigerMHCCoeffsFunction, LigerMHCPostResFunction, LigerMHCPreFunction
from liger_kernel.ops.mhc import MOST_STREAMS, LigerMHCAggregateFunction, check_options, post_res_of_node


def liger_mhc_coeffs(x, phi, b, alpha_pre, alpha_post, alpha_res, *, allow_fp32: bool = False, tmax: int = 20,
                     rms_eps: float = 1e-6, pre_eps: float = 0.0, sinkhorn_eps: float = 1e-6, post_mult: float = 2.0):  # fmt: skip
    """(h_pre, h_post, h_res) of x [..., HC, C]: see `liger_kernel.ops.LigerMHCCoeffsFunction`."""
    return LigerMHCCoeffsFunction.apply(
        x, phi, b, alpha_pre, alpha_post, alpha_res, allow_fp32, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
    )


def liger_mhc_pre(x, h_pre):
    """Σ_s h_pre[s]·x[s], what the layer reads: see `liger_kernel.ops.LigerMHCPreFunction`."""
    return LigerMHCPreFunction.apply(x, h_pre)


def liger_mhc_post_res(x, f_out, h_post, h_res):
    """The streams after the layer: see `liger_kernel.ops.LigerMHCPostResFunction`."""
    return LigerMHCPostResFunction.apply(x, f_out, h_post, h_res)


def liger_mhc_apply(x, f_out, h_pre, h_post, h_res, *, return_x_in: bool = False):
    """liger_mhc_post_res; with return_x_in also liger_mhc_pre of the same x."""
    x_out = liger_mhc_post_res(x, f_out, h_post, h_res)
    return (x_out, liger_mhc_pre(x, h_pre)) if return_x_in else x_out


def _dtype_of(layer) -> torch.dtype | None:
    """That of its first parameter."""
    first = next(layer.parameters(), None) if isinstance(layer, nn.Module) else None
    return None if first is None else first.dtype


def liger_mhc_forward(x, layer, phi, b, alpha_pre, alpha_post, alpha_res, *, allow_fp32: bool = False, tmax: int = 20,
                      rms_eps: float = 1e-6, pre_eps: float = 0.0, sinkhorn_eps: float = 1e-6, post_mult: float = 2.0,
                      return_coeffs: bool = False):  # fmt: skip
    """Coefficients, aggregation, `layer` of it in the dtype of its first parameter, post-aggregation and residual.

    x [..., HC, C] -> the same; with return_coeffs (x_out, (h_pre, h_post, h_res)).
    """
    h_pre, h_post, h_res, x_in, x, streams = LigerMHCAggregateFunction.apply(
        x, phi, b, alpha_pre, alpha_post, alpha_res, allow_fp32, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
    )
    dtype = _dtype_of(layer)
    f_out = layer(x_in if dtype is None else x_in.to(dtype))
    x_out = post_res_of_node(x, f_out, h_post, h_res, streams)
    return (x_out, (h_pre, h_post, h_res)) if return_coeffs else x_out


class LigerMHC(nn.Module):
    """`layer` within manifold-constrained hyper-connections of `hc` streams of `c` columns.

    Parameters, on the device of layer's first: phi [hc·c, hc² + 2·hc] of phi_dtype, about N(0, 0.02²); b zeros; alpha_pre,
    alpha_post and alpha_res ones; the last four float32. x [..., hc, c] -> the same, bfloat16 or float16, float32 if allow_fp32.
    """

    def __init__(
        self,
        layer,
        *,
        hc,
        c,
        tmax=20,
        rms_eps=1e-6,
        pre_eps=0.0,
        sinkhorn_eps=1e-6,
        post_mult=2.0,
        phi_dtype=torch.float16,
        allow_fp32=False,
    ):
        super().__init__()
        for name, value in (("hc", hc), ("c", c)):
            if value < 1:
                raise ValueError(f"LigerMHC: {name} is {value}, but must be at least 1")
        if hc > MOST_STREAMS:
            raise ValueError(f"LigerMHC: hc is {hc}, but must be {MOST_STREAMS} at most")
        check_options("LigerMHC", tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult)
        if hc > 16:
            warnings.warn(f"LigerMHC: hc is {hc}: more than 16 streams take slower kernels", stacklevel=2)
        self.layer, self.hc, self.c, self.tmax = layer, int(hc), int(c), int(tmax)
        self.rms_eps, self.pre_eps, self.sinkhorn_eps = rms_eps, pre_eps, sinkhorn_eps
        self.post_mult, self.allow_fp32 = post_mult, allow_fp32
        first = next(layer.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        k, m = self.hc * self.c, self.hc * self.hc + 2 * self.hc
        self.phi = nn.Parameter((0.02 * torch.randn(k, m, device=device)).to(phi_dtype))
        self.b = nn.Parameter(torch.zeros(m, dtype=torch.float32, device=device))
        for name in ("alpha_pre", "alpha_post", "alpha_res"):
            setattr(self, name, nn.Parameter(torch.ones((), dtype=torch.float32, device=device)))

    def forward(self, x):
        if x.dim() < 2 or tuple(x.shape[-2:]) != (self.hc, self.c):
            raise ValueError(f"LigerMHC: x has shape {tuple(x.shape)}, but must have [..., {self.hc}, {self.c}]")
        return liger_mhc_forward(
            x,
            self.layer,
            self.phi,
            self.b,
            self.alpha_pre,
            self.alpha_post,
            self.alpha_res,
            allow_fp32=self.allow_fp32,
            tmax=self.tmax,
            rms_eps=self.rms_eps,
            pre_eps=self.pre_eps,
            sinkhorn_eps=self.sinkhorn_eps,
            post_mult=self.post_mult,
        )

    def extra_repr(self):
        return f"hc={self.hc}, c={self.c}, tmax={self.tmax}"
