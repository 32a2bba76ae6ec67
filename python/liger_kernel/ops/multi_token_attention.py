"""Multi-token attention: a softmax (or sparsemax) of causal scores, and a convolution over queries, keys and heads of what comes
out.

O. Golovneva et al.: Multi-Token Attention (2025).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _native
from liger_kernel.ops._formula import require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import require_float
from liger_kernel.ops._operator import Asked, Constants, KeepsStatistics, LigerArgumentError, Made, Wish, as_of, fresh
from liger_kernel.ops.sparsemax import _sorted_formula


def _y(scores: Tensor, weight: Tensor) -> Tensor:
    return fresh(scores.new_empty((scores.shape[0], weight.shape[0], *scores.shape[2:])))


class _MultiTokenAttention(KeepsStatistics):
    """y has the channels of weight."""

    def shape(self, scores: Tensor, *_: Any) -> tuple:
        """Two numbers of each row."""
        return *scores.shape[:3], 2

    def eager(self, *args: Any) -> Any:
        return self.function(*args, _y(*args[:2]), self.statistics(*args))

    def _new(self, wish: Wish, likes: tuple, ready: list) -> Tensor:
        return _y(ready[0], ready[1]) if wish.kind == Wish.LIKE.kind else super()._new(wish, likes, ready)

    def require(self, scores: Any, weight: Any, bias: Any, *options: int) -> None:
        stride, padding, dilation = (options[i : i + 2] for i in (0, 2, 4))
        _check(scores, weight, bias, options[6], options[7], stride=stride, padding=padding, dilation=dilation)

    def fake(self, *args: Any) -> Any:
        return _y(*args[:2]), self.statistics(*args)


@_MultiTokenAttention
def multi_token_attention(scores: Tensor, weight: Constants, bias: Constants | None, stride_h: int, stride_w: int,
                          padding_h: int, padding_w: int, dilation_h: int, dilation_w: int, groups: int, sparse: int,
                          y: Made = Wish.LIKE, statistics: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    _native.multi_token_attention_forward(scores, weight, bias, y, statistics, stride_h, stride_w, padding_h, padding_w,
                                          dilation_h, dilation_w, groups, sparse)  # fmt: skip
    return y, statistics


@multi_token_attention.gradient
def multi_token_attention_gradient(dy: Tensor, scores: Tensor, weight: Constants, statistics: Tensor,
                                   bias: Constants | None, stride_h: int, stride_w: int, padding_h: int, padding_w: int,
                                   dilation_h: int, dilation_w: int, groups: int, sparse: int,
                                   dscores: Asked = Wish.LIKE[1], dweight: Asked = Wish.LIKE[2],
                                   dbias: Asked = Wish.LIKE[4], scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    made = as_of(weight, bias, dbias)
    found = _native.multi_token_attention_backward(dy, scores, weight, statistics, dscores, dweight, made, stride_h,
                                                   stride_w, padding_h, padding_w, dilation_h, dilation_w, groups,
                                                   sparse, scratch)  # fmt: skip
    return found if made is dbias else (*found, made)


def _count_convolution(scores: Any, weight: Any, *_: Any, **__: Any) -> int:
    """For FlopCounterMode: 2 B L² out (in / groups) kH kW, which is torch's own count of the convolution: of all that is L x L,
    what lies beyond the diagonal too."""
    return 2 * math.prod(scores) // scores[1] * math.prod(weight)


def _count_gradients(dy: Any, scores: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """As many for each gradient but the bias's. torch counts that of a grouped weight once for each group."""
    need_dscores, need_dweight = rest[-3:-1]
    return _count_convolution(scores, weight) * (bool(need_dscores) + bool(need_dweight))


register_flop_formula(torch.ops.liger.multi_token_attention)(_count_convolution)
register_flop_formula(torch.ops.liger.multi_token_attention_backward)(_count_gradients)


def pair(name: str, value: Any) -> tuple[int, int]:
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) == 1:
        both *= 2
    if len(both) != 2 or isinstance(value, (str, bool, float)):
        raise LigerArgumentError(
            f"multi_token_attention: {name} must be an integer or a pair of them, but is {value!r}"
        )
    return both  # type: ignore[return-value]


def _require_fp32_if_sparse(scores: Tensor, sparse: Any) -> None:
    if sparse and scores.dtype is not torch.float32:
        raise RuntimeError("Liger sparse multi-token attention currently only supports fp32 input scores")


def check_options(operator: str, **pairs: tuple[int, ...]) -> None:
    """Of the convolution, each with the least that it can be."""
    for name, values in pairs.items():
        least = 0 if name == "padding" else 1
        if min(values) < least:
            raise LigerArgumentError(f"{operator}: {name} is {values}, but must be {least} or more")


def _check(scores: Tensor, weight: Tensor, bias: Tensor | None, groups: int, sparse: Any, **pairs: Any) -> None:
    """What the library refuses, for where it is not asked."""
    operator = "multi_token_attention"
    if scores.dim() != 4 or scores.shape[2] != scores.shape[3]:
        raise LigerArgumentError(f"{operator}: scores has shape {tuple(scores.shape)}, but must have [B, C, L, L]")
    channels, size = scores.shape[1:3]
    for name, tensor in (("scores.shape[1]", channels), ("weight.shape[0]", weight.shape[0] if weight.dim() else 1)):
        if tensor < 1:
            raise LigerArgumentError(f"{operator}: {name} is {tensor}, but must be 1 or more")
    if groups < 1 or channels % groups or weight.dim() != 4 or weight.shape[0] % groups:
        raise LigerArgumentError(f"{operator}: scores has {channels} channels and weight shape {tuple(weight.shape)}, which "
                                 f"do not fall into groups of number {groups}")  # fmt: skip
    require_shape(operator, "weight", weight, (weight.shape[0], channels // groups, *weight.shape[2:]))
    require_shape(operator, "bias", bias, weight.shape[:1])
    check_options(operator, **{"weight.shape[2:]": tuple(weight.shape[2:])}, **pairs)
    for kernel, stride, padding, dilation in zip(
        weight.shape[2:], pairs["stride"], pairs["padding"], pairs["dilation"]
    ):
        found = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if size > 0 and found != size:
            raise LigerArgumentError(f"{operator}: a kernel of {kernel}, stride {stride}, padding {padding} and dilation "
                                     f"{dilation} make {found} of {size}, but the result must be as large as scores")  # fmt: skip
    require_float(operator, scores=scores, weight=weight, bias=bias)
    _require_fp32_if_sparse(scores, sparse)


class LigerMultiTokenAttentionFunction(LigerFunction):
    """`apply(scores, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, sparse=False)` -> [B, out, L, L] in the dtype of
    scores.

    scores [B, in, L, L], weight [out, in / groups, kH, kW] and bias [out], each float32, float16 or bfloat16; sparse: scores
    float32 only, else RuntimeError. P is 0 beyond the diagonal, is rounded to the dtype of scores, and is made again in backward;
    the convolution, which must keep L x L, is of f32 sums. Its gradient dP is rounded to the dtype of scores too, before the
    derivative of the softmax, as it is where torch evaluates the same in that dtype.
    """

    operator = multi_token_attention
    gradients = ("scores", "weight", "bias")

    @staticmethod
    def arguments(scores, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, sparse=False):
        _require_fp32_if_sparse(scores, sparse)
        if scores.dim() != 4 or weight.dim() != 4:
            _check(scores, weight, bias, groups, sparse)
        pairs = (*pair("stride", stride), *pair("padding", padding), *pair("dilation", dilation))
        return (scores, weight, bias, *pairs, groups, int(bool(sparse)))

    @classmethod
    def require(cls, scores, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, sparse=False):
        multi_token_attention.require(*cls.arguments(scores, weight, bias, stride, padding, dilation, groups, sparse))

    @staticmethod
    def torch_forward(scores, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, sparse=False):
        if scores.shape[2] == 0:  # torch has no convolution of it
            every = sum(t.sum() for t in (scores, weight, bias) if t is not None)
            return every.to(scores.dtype).expand(scores.shape[0], weight.shape[0], 0, 0)
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
        wide = scores.float().masked_fill(future, -torch.inf)
        nothing = (wide == -torch.inf).all(-1, keepdim=True)
        wide = wide.masked_fill(nothing, 0.0)
        p = _sorted_formula(wide) if sparse else torch.softmax(wide, -1)
        p = p.masked_fill(nothing | future, 0.0).to(scores.dtype).float()
        options = (pair("stride", stride), pair("padding", padding), pair("dilation", dilation), groups)
        y = F.conv2d(p, weight.float(), None if bias is None else bias.float(), *options)
        return y.masked_fill(future, 0.0).to(scores.dtype)
