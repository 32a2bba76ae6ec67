"""The operators as plain functions: thin calls of the autograd Functions, each found in this module when called.

Default values differ from those of the modules at some places (`in_place`); both are interface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from liger_kernel.ops import (
    LigerCrossEntropyFunction,
    LigerFusedAddRMSNormFunction,
    LigerFusedLinearCrossEntropyFunction,
    LigerRMSNormFunction,
    LigerRopeFunction,
    LigerSiLUMulFunction,
)


@dataclass
class CrossEntropyOutput:
    """The result of a cross entropy when more than the loss was asked for; what was not asked for is None."""

    loss: torch.Tensor
    z_loss: torch.Tensor | None = None
    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None


def loss_or_output(results: tuple, wants_more: bool) -> torch.Tensor | CrossEntropyOutput:
    """What a caller gets of a Function's (loss, z_loss, token_accuracy, predicted_tokens)."""
    return CrossEntropyOutput(*results) if wants_more else results[0]


def liger_cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index: int = -100,
    reduce=None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    lse_square_scale: float = 0.0,
    softcap: float | None = None,
    return_z_loss: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
):
    """Cross entropy of logits `input` [BT, V] with `target` [BT]: see `LigerCrossEntropyLoss`.

    `size_average` and `reduce` are accepted and ignored.
    """
    results = LigerCrossEntropyFunction.apply(
        input,
        target,
        weight,
        ignore_index,
        lse_square_scale,
        label_smoothing,
        reduction,
        softcap,
        return_z_loss,
        return_token_accuracy,
        return_predicted_tokens,
    )
    return loss_or_output(results, return_z_loss or return_token_accuracy or return_predicted_tokens)


def liger_fused_linear_cross_entropy(
    input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
):
    """Cross entropy of `input` [BT, H] · `weight`ᵀ [V, H] (+ `bias`): see `LigerFusedLinearCrossEntropyLoss`."""
    results = LigerFusedLinearCrossEntropyFunction.apply(
        input,
        weight,
        target,
        bias,
        ce_weight,
        ignore_index,
        lse_square_scale,
        label_smoothing,
        reduction,
        softcap,
        return_z_loss,
        accum_dtype,
        use_token_scaling,
        return_token_accuracy,
        return_predicted_tokens,
    )
    return loss_or_output(results, return_z_loss or return_token_accuracy or return_predicted_tokens)


def liger_rms_norm(X, W, eps, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True):
    """RMSNorm of X [..., H] with weight W [H] or None: see `LigerRMSNorm`."""
    return LigerRMSNormFunction.apply(X, W, eps, offset, casting_mode, in_place)


def liger_fused_add_rms_norm(X, R, W, eps, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True):
    """(RMSNorm(X + R), X + R): see `LigerFusedAddRMSNorm`."""
    return LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset, casting_mode, in_place)


def liger_rope(q, k, cos, sin, position_ids=None, unsqueeze_dim: int = 1):
    """Rotary embedding of q [B, Hq, S, D] and k [B, Hk, S, D]: see `liger_rotary_pos_emb`."""
    return LigerRopeFunction.apply(q, k, cos, sin, position_ids, unsqueeze_dim)


def liger_swiglu(a, b):
    """silu(a) ⊙ b for a and b of one shape."""
    return LigerSiLUMulFunction.apply(a, b)
