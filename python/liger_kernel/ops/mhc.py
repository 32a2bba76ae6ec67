"""Manifold-constrained hyper-connections: the coefficients of each token, what a layer reads, and what becomes of the streams.

Z. Xie et al.: mHC: Manifold-Constrained Hyper-Connections (2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _native
from liger_kernel.ops._formula import require_shape
from liger_kernel.ops._function import LigerFunction, refuse_second_derivative
from liger_kernel.ops._memory import require_float
from liger_kernel.ops._operator import Asked, EachShaped, LigerArgumentError, Made, Wish

MOST_STREAMS, _MOST_STEPS = 1024, 65536  # the library's limits


def _whole(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In one piece; the library takes six dimensions."""
    tensor = tensor.contiguous()
    return tensor if tensor.dim() <= 6 else tensor.view(-1, tensor.shape[-1])


def _whole_f32(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return _whole(tensor.float(), dtype)


def _whole_widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the activations' dtype, or f32."""
    return _whole(tensor if tensor.dtype is dtype else tensor.float(), dtype)


Whole = Annotated[Tensor, _whole]
F32 = Annotated[Tensor, _whole_f32]
Widened = Annotated[Tensor, _whole_widened]


class _Shaped(EachShaped):
    def _results(self, given: tuple, flags: tuple, new: Callable[..., Tensor]) -> list:
        try:
            return super()._results(given, flags, new)
        except IndexError:
            name, shape = self.inputs[0].name, tuple(given[0].shape)
            raise LigerArgumentError(f"{self.name}: {name} has shape {shape}, but must have [..., HC, C]") from None


# ---- coefficients ------------------------------------------------------------------------------------------------------


def _require_streams(operator: str, x: Tensor) -> None:
    if x.dim() < 2 or 0 in x.shape[-2:]:
        empty = " with no 0 among the last two" if x.dim() >= 2 else ""
        raise LigerArgumentError(f"{operator}: x has shape {tuple(x.shape)}, but must have [..., HC, C]{empty}")
    if x.shape[-2] > MOST_STREAMS:
        raise LigerArgumentError(f"{operator}: x has {x.shape[-2]} streams, but there may be {MOST_STREAMS} at most")


def check_options(
    operator: str, tmax: int, rms_eps: float, pre_eps: float, sinkhorn_eps: float, post_mult: float
) -> None:
    """What the library refuses of them, for where it is not asked."""
    if not 1 <= tmax <= _MOST_STEPS:
        raise LigerArgumentError(f"{operator}: tmax is {tmax}, but must be in [1, {_MOST_STEPS}]")
    for name, value in (("rms_eps", rms_eps), ("sinkhorn_eps", sinkhorn_eps)):
        if not value >= 0:
            raise LigerArgumentError(f"{operator}: {name} is {value:g}, but must be 0 or more")
    for name, value in (("pre_eps", pre_eps), ("post_mult", post_mult)):
        if not math.isfinite(value):
            raise LigerArgumentError(f"{operator}: {name} is {value:g}, but must be finite")


def _require_parameters(x: Tensor, phi: Tensor, b: Tensor) -> None:
    _require_streams("mhc", x)
    hc, c = x.shape[-2:]
    require_shape("mhc", "phi", phi, (hc * c, hc * hc + 2 * hc))
    require_shape("mhc", "b", b, (hc * hc + 2 * hc,))


class _Coeffs(_Shaped):
    def require(self, *args: Any) -> None:
        _require_parameters(*args[:3])
        require_float("mhc", **dict(zip(_TENSORS, args)))
        for name, alpha in zip(_TENSORS[3:], args[3:6]):
            if alpha.numel() != 1:
                raise LigerArgumentError(f"mhc: {name} has {alpha.numel()} elements, but must have 1")
        check_options("mhc", *args[6:])

    def shapes(self, x: Tensor, phi: Tensor, *_: Any) -> tuple:
        f32, rows = torch.float32, math.prod(x.shape[:-2])
        per_stream = (x.shape[:-1], f32)
        kept = ((rows, phi.shape[-1]), f32), ((rows,), f32)
        return per_stream, per_stream, ((*x.shape[:-1], x.shape[-2]), f32), *kept


class _Aggregate(_Coeffs):
    """`streams` is one zero in the shape of x, and stands for x where a gradient belongs: see mhc_post_res_streams."""

    def shapes(self, x: Tensor, phi: Tensor, *_: Any) -> tuple:
        *public, mix, rstd = super().shapes(x, phi)
        return *public, ((*x.shape[:-2], x.shape[-1]), x.dtype), ((1,) * x.dim(), x.dtype), mix, rstd

    def _results(self, given: tuple, flags: tuple, new: Callable[..., Tensor]) -> list:
        made = super()._results(given, flags, new)
        made[4] = made[4].zero_().expand(given[0].shape)
        return made


class _Gradients(_Shaped):
    """Of the first six arguments."""

    def shapes(self, *given: Any) -> tuple:
        return given[:6]


@_Coeffs
def mhc_coeffs(x: Whole, phi: Widened, b: F32, alpha_pre: F32, alpha_post: F32, alpha_res: F32, tmax: int, rms_eps: float,
               pre_eps: float, sinkhorn_eps: float, post_mult: float, h_pre: Made = Wish.LIKE, h_post: Made = Wish.LIKE,
               h_res: Made = Wish.LIKE, mix: Made = Wish.LIKE, rstd: Made = Wish.LIKE) -> Any:  # fmt: skip
    return _native.mhc_coeffs_forward(x, phi, b, alpha_pre, alpha_post, alpha_res, h_pre, h_post, h_res, None, mix, rstd,
                                      tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult, Wish.SCRATCH)  # fmt: skip


def _backward(x, phi, b, alpha_pre, alpha_post, alpha_res, mix, rstd, dh_pre, dh_post, dh_res, dx_in, so_far, tmax,
              pre_eps, sinkhorn_eps, post_mult, *gradients):  # fmt: skip
    return _native.mhc_coeffs_backward(x, phi, b, alpha_pre, alpha_post, alpha_res, mix, rstd, dh_pre, dh_post, dh_res,
                                       dx_in, so_far, *gradients, tmax, pre_eps, sinkhorn_eps, post_mult, Wish.SCRATCH)  # fmt: skip


def _coeffs_gradient(x: Whole, phi: Widened, b: F32, alpha_pre: F32, alpha_post: F32, alpha_res: F32, mix: F32, rstd: F32,
                     dh_pre: F32 | None, dh_post: F32 | None, dh_res: F32 | None, tmax: int, pre_eps: float,
                     sinkhorn_eps: float, post_mult: float, dx: Asked = Wish.LIKE, dphi: Asked = Wish.LIKE[1],
                     db: Asked = Wish.LIKE[2], dalpha_pre: Asked = Wish.LIKE[3], dalpha_post: Asked = Wish.LIKE[4],
                     dalpha_res: Asked = Wish.LIKE[5]) -> Any:  # fmt: skip
    return _backward(x, phi, b, alpha_pre, alpha_post, alpha_res, mix, rstd, dh_pre, dh_post, dh_res, None, None, tmax,
                     pre_eps, sinkhorn_eps, post_mult, dx, dphi, db, dalpha_pre, dalpha_post, dalpha_res)  # fmt: skip


mhc_coeffs.gradient(_coeffs_gradient, _Gradients)


@_Aggregate
def mhc_aggregate(x: Whole, phi: Widened, b: F32, alpha_pre: F32, alpha_post: F32, alpha_res: F32, tmax: int,
                  rms_eps: float, pre_eps: float, sinkhorn_eps: float, post_mult: float, h_pre: Made = Wish.LIKE,
                  h_post: Made = Wish.LIKE, h_res: Made = Wish.LIKE, x_in: Made = Wish.LIKE,
                  streams: Made = Wish.LIKE, mix: Made = Wish.LIKE, rstd: Made = Wish.LIKE) -> Any:  # fmt: skip
    """The coefficients, what the layer reads, and what stands for x."""
    return _native.mhc_coeffs_forward(x, phi, b, alpha_pre, alpha_post, alpha_res, h_pre, h_post, h_res, x_in, mix, rstd,
                                      tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult, Wish.SCRATCH)  # fmt: skip


def _aggregate_gradient(x: Whole, phi: Widened, b: F32, alpha_pre: F32, alpha_post: F32, alpha_res: F32, mix: F32,
                        rstd: F32, dh_pre: F32 | None, dh_post: F32 | None, dh_res: F32 | None, dx_in: Widened | None,
                        dstreams: Widened | None, tmax: int, pre_eps: float, sinkhorn_eps: float, post_mult: float,
                        dx: Asked = Wish.LIKE, dphi: Asked = Wish.LIKE[1], db: Asked = Wish.LIKE[2],
                        dalpha_pre: Asked = Wish.LIKE[3], dalpha_post: Asked = Wish.LIKE[4],
                        dalpha_res: Asked = Wish.LIKE[5]) -> Any:  # fmt: skip
    so_far = None if dx is None else dstreams
    return _backward(x, phi, b, alpha_pre, alpha_post, alpha_res, mix, rstd, dh_pre, dh_post, dh_res, dx_in, so_far, tmax,
                     pre_eps, sinkhorn_eps, post_mult, dx, dphi, db, dalpha_pre, dalpha_post, dalpha_res)  # fmt: skip


mhc_aggregate.gradient(_aggregate_gradient, _Gradients)


def _count_logits(x: Any, phi: Any, *_: Any, **__: Any) -> int:
    """For FlopCounterMode: 2 N (HC C) M of x·phi. Nothing else here is a product of matrices."""
    return 2 * math.prod(x) * phi[1]


def _count_logits_gradients(x: Any, phi: Any, *rest: Any, **_: Any) -> int:
    """As many for x's and for phi's, each where it is asked for."""
    need_dx, need_dphi = rest[-6:-4]
    return _count_logits(x, phi) * (bool(need_dx) + bool(need_dphi))


for _operator in (torch.ops.liger.mhc_coeffs, torch.ops.liger.mhc_aggregate):
    register_flop_formula(_operator)(_count_logits)
for _operator in (torch.ops.liger.mhc_coeffs_backward, torch.ops.liger.mhc_aggregate_backward):
    register_flop_formula(_operator)(_count_logits_gradients)

_TENSORS = ("x", "phi", "b", "alpha_pre", "alpha_post", "alpha_res")


def _coeffs_formula(x, phi, b, alpha_pre, alpha_post, alpha_res, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult):
    hc, flat = x.shape[-2], x.float().flatten(-2)
    mix = (flat @ phi.float()) * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + rms_eps)
    sizes = (hc, hc, hc * hc)
    logits = [part * alpha.float().reshape(()) + own for part, alpha, own in
              zip(mix.split(sizes, -1), (alpha_pre, alpha_post, alpha_res), b.float().split(sizes))]  # fmt: skip
    matrix = torch.softmax(logits[2].unflatten(-1, (hc, hc)), -1) + sinkhorn_eps
    for step in range(2 * tmax - 1):
        matrix = matrix / (matrix.sum(-2 if step % 2 == 0 else -1, keepdim=True) + sinkhorn_eps)
    return torch.sigmoid(logits[0]) + pre_eps, torch.sigmoid(logits[1]) * post_mult, matrix


class _OfCoeffs(LigerFunction):
    """What the Functions of the coefficients share."""

    operator = mhc_coeffs
    names = "mhc"
    gradients = _TENSORS

    @staticmethod
    def arguments(
        x, phi, b, alpha_pre, alpha_post, alpha_res, allow_fp32, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
    ):
        if x.dtype is torch.float32 and not allow_fp32:
            raise LigerArgumentError(
                "mhc: x is torch.float32, but must be bfloat16 or float16 unless allow_fp32 is True"
            )
        return x, phi, b, alpha_pre, alpha_post, alpha_res, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult

    @classmethod
    def require(cls, x, phi, b, alpha_pre, alpha_post, alpha_res, *options):
        _require_parameters(x, phi, b)

    @classmethod
    def check(cls, *args):
        cls.operator.require(*cls.arguments(*args))

    @staticmethod
    def torch_forward(
        x, phi, b, alpha_pre, alpha_post, alpha_res, allow_fp32, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
    ):
        return _coeffs_formula(
            x, phi, b, alpha_pre, alpha_post, alpha_res, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
        )


class LigerMHCCoeffsFunction(_OfCoeffs):
    """`apply(x, phi, b, alpha_pre, alpha_post, alpha_res, allow_fp32, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult)` ->
    (h_pre [..., HC], h_post [..., HC], h_res [..., HC, HC]), float32.

    x [..., HC, C] bfloat16 or float16, float32 if allow_fp32; phi [HC·C, HC² + 2·HC] and b of any of these dtypes, alphas of one
    element. With mix = x·phi / √(mean(x²) + rms_eps) of each token: h_pre = σ(mix·alpha_pre + b) + pre_eps, h_post =
    σ(mix·alpha_post + b)·post_mult, and h_res the softmax of mix·alpha_res + b after tmax rounds of Sinkhorn's iteration. All in
    f32. Every gradient is exact, and zero where nothing comes from above.
    """


class LigerMHCAggregateFunction(_OfCoeffs):
    """The arguments of LigerMHCCoeffsFunction -> its results, x_in [..., C] = Σ h_pre·x, x, and what stands for x, or None.

    Whoever goes on with that x instead of his own has its gradient added in the kernel, and not by autograd, which would round
    the sum twice. Under torch.compile an operator may not answer its argument: there the last result is a tensor, and
    post_res_of_node, which is given it too, answers x's gradient as that one's.
    """

    operator = mhc_aggregate

    @staticmethod
    def forward(ctx, *args):
        given = _OfCoeffs.arguments(*args)
        results = LigerMHCAggregateFunction.now(args, given)
        ctx.set_materialize_grads(False)
        mhc_aggregate.save(ctx, given, results)
        if not ctx.needs_input_grad[0]:  # else whoever goes on with x would make a gradient of it
            ctx.mark_non_differentiable(args[0])
        return *results[:4], args[0], None

    @staticmethod
    def backward(ctx, *upstreams):
        refuse_second_derivative("LigerMHCAggregateFunction")
        needs = list(ctx.needs_input_grad[:6])
        return *mhc_aggregate.gradients(ctx.saved_tensors, ctx.options, upstreams, needs), *[None] * 6

    @classmethod
    def compiled(cls, *args):
        *results, streams = super().compiled(*args)
        return *results, args[0], streams

    @staticmethod
    def torch_forward(
        x, phi, b, alpha_pre, alpha_post, alpha_res, allow_fp32, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
    ):
        h = _coeffs_formula(
            x, phi, b, alpha_pre, alpha_post, alpha_res, tmax, rms_eps, pre_eps, sinkhorn_eps, post_mult
        )
        return *h, LigerMHCPreFunction.torch_forward(x, h[0]), x, None


# ---- pre-aggregation ---------------------------------------------------------------------------------------------------


class _Pre(_Shaped):
    def require(self, x: Any, h_pre: Any) -> None:
        LigerMHCPreFunction.check(x, h_pre)

    def shapes(self, x: Tensor, h_pre: Tensor) -> tuple:
        return (((*x.shape[:-2], x.shape[-1]), x.dtype),)


class _PreGradients(_Shaped):
    def shapes(self, dy: Tensor, x: Tensor, h_pre: Tensor) -> tuple:
        return x, h_pre


@_Pre
def mhc_pre(x: Whole, h_pre: F32, y: Made = Wish.LIKE) -> Any:
    return _native.mhc_pre_forward(x, h_pre, y)


def _pre_gradient(dy: Whole, x: Whole, h_pre: F32, dx: Asked = Wish.LIKE[1], dh_pre: Asked = Wish.LIKE[2]) -> Any:
    return _native.mhc_pre_backward(dy, x, h_pre, dx, dh_pre)


mhc_pre.gradient(_pre_gradient, _PreGradients)


class LigerMHCPreFunction(LigerFunction):
    """`apply(x, h_pre)` -> Σ_s h_pre[s]·x[s] of x's dtype: x [..., HC, C], h_pre [..., HC], sums in f32."""

    operator = mhc_pre
    names = "mhc"
    gradients = ("x", "h_pre")

    @staticmethod
    def arguments(x, h_pre):
        LigerMHCPreFunction.require(x, h_pre)  # the library would take other shapes with as many elements
        return x, h_pre

    @staticmethod
    def require(x, h_pre):
        _require_streams("mhc_pre", x)
        require_shape("mhc_pre", "h_pre", h_pre, x.shape[:-1])

    @classmethod
    def check(cls, x, h_pre):
        cls.require(x, h_pre)
        require_float("mhc_pre", x=x, h_pre=h_pre)

    @staticmethod
    def torch_forward(x, h_pre):
        return (h_pre.float().unsqueeze(-1) * x.float()).sum(-2).to(x.dtype)


# ---- post-aggregation and residual -------------------------------------------------------------------------------------


class _PostRes(_Shaped):
    def require(self, x: Any, f: Any, h_post: Any, h_res: Any) -> None:
        LigerMHCPostResFunction.check(x, f, h_post, h_res)

    def shapes(self, x: Tensor, *_: Any) -> tuple:
        return (x,)


class _PostResGradients(_Shaped):
    def shapes(self, dy: Tensor, *given: Tensor) -> tuple:
        return given


@_PostRes
def mhc_post_res(x: Whole, f: Widened, h_post: F32, h_res: F32, y: Made = Wish.LIKE) -> Any:
    return _native.mhc_post_res_forward(x, f, h_post, h_res, y)


def _post_res_gradient(dy: Whole, x: Whole, f: Widened, h_post: F32, h_res: F32, dx: Asked = Wish.LIKE[1],
                       df: Asked = Wish.LIKE[2], dh_post: Asked = Wish.LIKE[3], dh_res: Asked = Wish.LIKE[4]) -> Any:  # fmt: skip
    return _native.mhc_post_res_backward(dy, x, f, h_post, h_res, dx, df, dh_post, dh_res)


mhc_post_res.gradient(_post_res_gradient, _PostResGradients)


def _count_mixing(x: Any, *_: Any, **__: Any) -> int:
    """For FlopCounterMode: 2 N HC² C of h_res·x."""
    return 2 * math.prod(x) * x[-2]


def _count_mixing_gradients(dy: Any, x: Any, *rest: Any, **_: Any) -> int:
    """As many for x's and for h_res's, each where it is asked for."""
    need_dx, need_dh_res = rest[-4], rest[-1]
    return _count_mixing(x) * (bool(need_dx) + bool(need_dh_res))


register_flop_formula(torch.ops.liger.mhc_post_res)(_count_mixing)
register_flop_formula(torch.ops.liger.mhc_post_res_backward)(_count_mixing_gradients)


class LigerMHCPostResFunction(LigerFunction):
    """`apply(x, f_out, h_post, h_res)` -> Σ_i h_res[o, i]·x[i] + h_post[o]·f_out for each stream o, of x's shape and dtype.

    x [..., HC, C], f_out [..., C] of its own dtype, h_post [..., HC], h_res [..., HC, HC]. Sums in f32, rounded once.
    """

    operator = mhc_post_res
    names = "mhc"
    gradients = ("x", "f_out", "h_post", "h_res")

    @staticmethod
    def arguments(x, f_out, h_post, h_res):
        LigerMHCPostResFunction.require(x, f_out, h_post, h_res)
        return x, f_out, h_post, h_res

    @staticmethod
    def require(x, f_out, h_post, h_res):
        _require_streams("mhc_post_res", x)
        require_shape("mhc_post_res", "f_out", f_out, (*x.shape[:-2], x.shape[-1]))
        require_shape("mhc_post_res", "h_post", h_post, x.shape[:-1])
        require_shape("mhc_post_res", "h_res", h_res, (*x.shape[:-1], x.shape[-2]))

    @classmethod
    def check(cls, x, f_out, h_post, h_res):
        cls.require(x, f_out, h_post, h_res)
        require_float("mhc_post_res", x=x, f_out=f_out, h_post=h_post, h_res=h_res)

    @staticmethod
    def torch_forward(x, f_out, h_post, h_res):
        mixed = torch.einsum("...oi,...ic->...oc", h_res.float(), x.float())
        return (mixed + h_post.float().unsqueeze(-1) * f_out.float().unsqueeze(-2)).to(x.dtype)


# ---- the same of a node's x -------------------------------------------------------------------------------------------


def _itself(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor


Unread = Annotated[Tensor, _itself]


class _PostResStreams(_PostRes):
    def require(self, *args: Any) -> None:
        super().require(*args[:4])
        require_shape("mhc_post_res", "streams", args[4], args[0].shape)


class _PostResStreamsGradients(_Shaped):
    def shapes(self, dy: Tensor, x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor) -> tuple:
        return f, h_post, h_res, x


@_PostResStreams
def mhc_post_res_streams(x: Whole, f: Widened, h_post: F32, h_res: F32, streams: Unread, y: Made = Wish.LIKE) -> Any:
    """mhc_post_res, but the gradient of x is that of `streams`, of which nothing is read."""
    return _native.mhc_post_res_forward(x, f, h_post, h_res, y)


def _post_res_streams_gradient(dy: Whole, x: Whole, f: Widened, h_post: F32, h_res: F32, df: Asked = Wish.LIKE[2],
                               dh_post: Asked = Wish.LIKE[3], dh_res: Asked = Wish.LIKE[4],
                               dstreams: Asked = Wish.LIKE[1]) -> Any:  # fmt: skip
    return _native.mhc_post_res_backward(dy, x, f, h_post, h_res, dstreams, df, dh_post, dh_res)


mhc_post_res_streams.gradient(_post_res_streams_gradient, _PostResStreamsGradients)


def _count_streams_gradients(dy: Any, x: Any, *rest: Any, **_: Any) -> int:
    need_dh_res, need_dstreams = rest[-2:]
    return _count_mixing(x) * (bool(need_dh_res) + bool(need_dstreams))


register_flop_formula(torch.ops.liger.mhc_post_res_streams)(_count_mixing)
register_flop_formula(torch.ops.liger.mhc_post_res_streams_backward)(_count_streams_gradients)


def post_res_of_node(x: Tensor, f_out: Tensor, h_post: Tensor, h_res: Tensor, streams: Tensor | None) -> Tensor:
    """LigerMHCPostResFunction of the last two results of LigerMHCAggregateFunction."""
    if streams is None:
        return LigerMHCPostResFunction.apply(x, f_out, h_post, h_res)
    LigerMHCPostResFunction.require(x, f_out, h_post, h_res)
    return mhc_post_res_streams.traced(x, f_out, h_post, h_res, streams)
