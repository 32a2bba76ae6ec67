"""Autograd Functions and their `x_forward` / `x_backward` helpers, one module per operator."""

from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction, cross_entropy_backward, cross_entropy_forward
from liger_kernel.ops.fused_add_rms_norm import (
    LigerFusedAddRMSNormFunction,
    fused_add_rms_norm_backward,
    fused_add_rms_norm_forward,
)
from liger_kernel.ops.fused_linear_cross_entropy import (
    LigerFusedLinearCrossEntropyFunction,
    fused_linear_cross_entropy_backward,
    fused_linear_cross_entropy_forward,
)
from liger_kernel.ops.rms_norm import LigerRMSNormFunction, rms_norm_backward, rms_norm_forward
from liger_kernel.ops.rope import LigerRopeFunction, rope_backward, rope_forward
from liger_kernel.ops.swiglu import (
    LigerFusedGateUpSiLUMulFunction,
    LigerSiLUMulFunction,
    swiglu_backward,
    swiglu_forward,
    swiglu_fused_gate_up_backward,
    swiglu_fused_gate_up_forward,
)

__all__ = [
    "LigerCrossEntropyFunction",
    "LigerFusedAddRMSNormFunction",
    "LigerFusedGateUpSiLUMulFunction",
    "LigerFusedLinearCrossEntropyFunction",
    "LigerRMSNormFunction",
    "LigerRopeFunction",
    "LigerSiLUMulFunction",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "fused_add_rms_norm_backward",
    "fused_add_rms_norm_forward",
    "fused_linear_cross_entropy_backward",
    "fused_linear_cross_entropy_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rope_backward",
    "rope_forward",
    "swiglu_backward",
    "swiglu_forward",
    "swiglu_fused_gate_up_backward",
    "swiglu_fused_gate_up_forward",
]
