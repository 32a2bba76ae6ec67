"""Attention over the residual stream: every token mixes what the blocks before it have put there, by scores of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._memory import NATIVE_DTYPE
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Operator, Rows, Weight, Wish


class _AttnRes(Operator):
    """h is like a block of v; alpha and rstd have a number for each row of all blocks."""

    def likes(self, v: Tensor, *_: Any) -> tuple:
        return v[0], v

    def eager(self, v: Tensor, query: Tensor, norm: Tensor, eps: float, rounded: int) -> Any:
        h = _native.new(v, v.shape[1:], None)
        return h, *self.function(v, query, norm, eps, rounded, h, Wish.PER_ROW, Wish.PER_ROW)


@_AttnRes
def attn_res(v: Rows, query: Weight, norm: Weight, eps: float, rounded: int,
             h: Made = Wish.LIKE, alpha: Made = Wish.PER_ROW[1], rstd: Made = Wish.PER_ROW[1]) -> Any:  # fmt: skip
    """`rounded`: the dtype that norm has or had before it was widened, as the library numbers it."""
    return _native.attn_res_forward(v, query, norm, h, alpha, rstd, eps, rounded)


@attn_res.gradient
def attn_res_gradient(dh: Rows, v: Rows, query: Weight, norm: Weight, alpha: Tensor, rstd: Tensor, rounded: int,
                      dv: Asked = Wish.LIKE[1], dquery: Asked = Wish.LIKE[2], dnorm: Asked = Wish.LIKE[3],
                      scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.attn_res_backward(dh, v, query, norm, alpha, rstd, dv, dquery, dnorm, rounded, scratch)


def _number(norm: Tensor) -> int:
    return NATIVE_DTYPE.get(norm.dtype, 0)


def _stacked(blocks: Tensor | Sequence[Tensor]) -> Tensor:
    """[N, ..., D], of the blocks one by one too."""
    if isinstance(blocks, (list, tuple)) and all(isinstance(block, Tensor) for block in blocks):
        if not blocks or any(block.shape != blocks[0].shape for block in blocks):
            shapes = [tuple(block.shape) for block in blocks]
            raise LigerArgumentError(f"attn_res: blocks must be one or more of one shape, but have {shapes}")
        return torch.stack(tuple(blocks))
    return blocks  # type: ignore[return-value]  # what is no tensor is refused in words elsewhere


@of_tensors
def attn_res_forward(blocks: Tensor | Sequence[Tensor], w_query: Tensor, w_norm: Tensor, eps: float = 1e-6) -> tuple:
    """(h, V as [N, rows, D], alpha [N, rows], rstd [N, rows])."""
    v = _stacked(blocks)
    LigerAttnResFunction.require(v, w_query, w_norm, eps)
    h, alpha, rstd = attn_res(v, w_query, w_norm, eps, _number(w_norm))
    rows = h.shape[:-1].numel()
    return h, v.reshape(v.shape[0], rows, v.shape[-1]), alpha.view(-1, rows), rstd.view(-1, rows)


@of_tensors
def attn_res_backward(dh: Tensor, V_3d: Tensor, w_query: Tensor, w_norm: Tensor, Alpha: Tensor, RSTD: Tensor,
                      eps: float = 1e-6) -> tuple:  # fmt: skip
    """(dV in V_3d's shape, dw_query, dw_norm) from what attn_res_forward returned."""
    flat = dh.reshape(V_3d.shape[1:])
    saved = (V_3d, w_query, w_norm, Alpha.reshape(-1), RSTD.reshape(-1))
    return attn_res_gradient(flat, *saved, _number(w_norm), True, True, True)


class LigerAttnResFunction(LigerFunction):
    """`apply(V_stacked, w_query, w_norm, eps)` -> Σ_n α_n·V_n of the shape and dtype of one block.

    V_stacked [N, ..., D] of any number of blocks, or a list of blocks [..., D], which is stacked first; w_query and w_norm [D].
    α is the softmax over n of ⟨w_query, k_n⟩ with k_n = v_n / √(mean(v_n²) + eps), rounded to w_norm's dtype, times w_norm.
    float32, float16 or bfloat16. Arithmetic in f32, rounded once.
    """

    operator = attn_res
    gradients = ("V_stacked", "w_query", "w_norm")

    @classmethod
    def apply(cls, V_stacked, *args):
        return super().apply(_stacked(V_stacked), *args)

    @staticmethod
    def arguments(V_stacked, w_query, w_norm, eps):
        LigerAttnResFunction.require(V_stacked, w_query, w_norm, eps)
        return V_stacked, w_query, w_norm, eps, _number(w_norm)

    @staticmethod
    def require(V_stacked, w_query, w_norm, eps):
        if V_stacked.dim() < 2 or V_stacked.shape[0] == 0:
            raise LigerArgumentError(
                f"attn_res: V_stacked has shape {tuple(V_stacked.shape)}, but must have one or more blocks of [..., D]"
            )

    @staticmethod
    def torch_forward(V_stacked, w_query, w_norm, eps):
        v = V_stacked.float()
        normal = (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + eps)).to(w_norm.dtype).float()
        alpha = torch.softmax((normal * w_norm.float() * w_query.float()).sum(-1, keepdim=True), 0)
        return (alpha * v).sum(0).to(V_stacked.dtype)
