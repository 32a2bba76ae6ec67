"""SwiGLU as Megatron-Core calls it.

N. Shazeer: GLU Variants Improve Transformer (2020).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction

logger = logging.getLogger(__name__)


class LigerMegatronSwiGLU(nn.Module):
    """silu(gate) · up of an input [tokens, 2F] or [sequence, batch, 2F], the gate in the first F columns; called as Megatron's
    `bias_swiglu_impl` is.

    fp32, fp16 or bf16; f32 arithmetic; silu is rounded to the input's dtype before the product. `in_place` permits the
    gradient to lie in the input's memory where nobody can see it, and changes no result.

    A bias, an input stored in fp8 and one that is offloaded are not computed here: such a call goes to `fallback_impl`, with
    all four arguments, and is logged once for each of these reasons. Without one it is a RuntimeError.
    """

    def __init__(self, fallback_impl: Callable[..., Any] | None = None, in_place: bool = False) -> None:
        super().__init__()
        self.fallback_impl = fallback_impl
        self.in_place = in_place
        self._logged: set[str] = set()

    def forward(self, input, bias=None, fp8_input_store=False, cpu_offload_input=False):
        if bias is not None or fp8_input_store or cpu_offload_input:
            return self._fall_back(input, bias, fp8_input_store, cpu_offload_input)
        if input.dim() not in (2, 3):
            raise ValueError(f"LigerMegatronSwiGLU: input must be 2D or 3D, but has the shape {tuple(input.shape)}")
        if input.shape[-1] % 2:
            raise ValueError(
                f"LigerMegatronSwiGLU: the last dimension of input is {input.shape[-1]}, but gate and up need an even one"
            )
        return LigerFusedGateUpSiLUMulFunction.apply(input, self.in_place)

    def _fall_back(self, input: Any, bias: Any, fp8_input_store: Any, cpu_offload_input: Any) -> Any:
        asked = {
            "bias": bias is not None,
            "fp8_input_store": fp8_input_store,
            "cpu_offload_input": cpu_offload_input,
        }
        reasons = [reason for reason, is_asked in asked.items() if is_asked]
        if self.fallback_impl is None:
            raise RuntimeError(
                f"LigerMegatronSwiGLU has no kernel with {' and '.join(reasons)}: give it Megatron's function as fallback_impl, "
                "or leave Megatron's modules as they are and call apply_liger_kernel_to_megatron(swiglu=True)"
            )
        if not torch.compiler.is_compiling():
            for reason in reasons:
                if reason not in self._logged:
                    self._logged.add(reason)
                    logger.info("SwiGLU with %s has no kernel of ours: falling back", reason)
        return self.fallback_impl(input, bias, fp8_input_store, cpu_offload_input)

    def extra_repr(self):
        return f"in_place={self.in_place}"
