"""Kahneman-Tversky optimisation: Ethayarajh et al. 2024, arXiv 2402.01306."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from liger_kernel.chunked_loss.fused_linear_unpaired_preference import (
    LigerFusedLinearUnpairedPreferenceBase,
    sums_by_label,
)
from liger_kernel.ops._formula import at_least_one, unrecorded
from liger_kernel.ops._memory import constant
from liger_kernel.ops._operator import LigerArgumentError


class LigerFusedLinearKTOFunction(LigerFusedLinearUnpairedPreferenceBase):
    """Mean of 1 - σ(±beta·(log(p/p_ref) - kl)), + for desirable sequences and - for the others; without a reference p_ref is
    1, without kl it is 0."""

    @staticmethod
    def preference_loss_fn(
        log_prob_chunk, preference_labels_chunk, full_target, ref_log_prob_chunk=None, beta=0.1, kl=None
    ):
        ratios = log_prob_chunk if ref_log_prob_chunk is None else log_prob_chunk - ref_log_prob_chunk
        margins = beta * (ratios if kl is None else ratios - kl)
        losses = torch.sigmoid(torch.where(preference_labels_chunk, -margins, margins))
        rewards = sums_by_label(beta * ratios, preference_labels_chunk)
        return losses.sum() / at_least_one(full_target.shape[0]), *rewards

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        preference_labels,
        bias=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        kl=None,
        ignore_index=-100,
        beta=0.1,
        compiled=True,
        use_ref_model=True,
        average_log_prob=False,
        chunk_size=1,
    ):
        _require_kl(cls.__name__, kl, _input)
        if isinstance(kl, Tensor):
            kl = constant(kl).float()
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, preference_labels=preference_labels, bias=bias,
            chunk_size=chunk_size, ignore_index=ignore_index, compiled=compiled, use_ref_model=use_ref_model,
            ref_input=ref_input, ref_weight=ref_weight, ref_bias=ref_bias, average_log_prob=average_log_prob, beta=beta,
            kl=kl,
        )  # fmt: skip


@unrecorded
def _require_kl(function: str, kl: Any, x: Tensor) -> None:
    if isinstance(kl, Tensor):
        if kl.shape not in ((), (1,)):
            raise LigerArgumentError(f"{function}: kl has shape {tuple(kl.shape)}, but must have () or (1,)")
        if kl.dim() == 1 and isinstance(x, Tensor) and kl.device != x.device:
            raise LigerArgumentError(f"{function}: kl is on {kl.device}, but _input is on {x.device}")
    elif kl is not None and not isinstance(kl, int | float):
        raise TypeError(f"{function}: kl must be a number, a torch.Tensor or None, not {type(kl).__name__}")


class LigerFusedLinearKTOLoss(nn.Module):
    """forward(_input [b, T, H], lin_weight [V, H], target [b, T], bias=None [V], preference_labels=None [b], ref_input=None,
    ref_weight=None, ref_bias=None, kl=None, *, ref_logps=None [b]) -> (loss, (sum of the desirable log-probabilities, of the
    undesirable ones, sum of the desirable logits, of the undesirable ones, sum of the desirable rewards, of the undesirable
    ones)). preference_labels are true for desirable sequences; kl is one number, estimated by the caller.

    The reference is hidden states and a head, or its log-probabilities, which win; it gets no gradient, and is not looked at
    where use_ref_model is False."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compiled: bool = True,
        use_ref_model: bool = False,
        average_log_prob: bool = False,
        chunk_size: int = 1,
    ):
        super().__init__()
        self.ignore_index, self.beta, self.compiled, self.use_ref_model = ignore_index, beta, compiled, use_ref_model
        self.average_log_prob, self.chunk_size = average_log_prob, chunk_size

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        preference_labels: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        kl: Tensor | None = None,
        *,
        ref_logps: Tensor | None = None,
    ):
        return LigerFusedLinearKTOFunction.apply(
            _input, lin_weight, target, preference_labels, bias, ref_input if ref_logps is None else (ref_logps,),
            ref_weight, ref_bias, kl, self.ignore_index, self.beta, self.compiled, self.use_ref_model,
            self.average_log_prob, self.chunk_size,
        )  # fmt: skip
