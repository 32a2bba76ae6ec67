"""Simple preference optimisation: Meng et al. 2024, arXiv 2405.14734."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.chunked_loss._pair_losses import mean_over_pairs, smoothed_sigmoid
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase


class LigerFusedLinearSimPOFunction(LigerFusedLinearPreferenceBase):
    """alpha·nll + mean of -log σ(beta·(log p_chosen - log p_rejected) - gamma), smoothed, on log-probabilities that are means
    over the tokens: no reference, and a target margin."""

    @staticmethod
    def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1, gamma=0.5, label_smoothing=0.0):
        losses = smoothed_sigmoid(beta * (chosen_logps - rejected_logps) - gamma, label_smoothing)
        return mean_over_pairs(losses, full_target), beta * chosen_logps, beta * rejected_logps

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ignore_index=-100,
        beta=0.1,
        alpha=1.0,
        label_smoothing=0.0,
        compute_nll_loss=False,
        compiled=True,
        gamma=0.5,
        chunk_size=1,
    ):
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, chunk_size=chunk_size,
            ignore_index=ignore_index, alpha=alpha, beta=beta, compute_nll_loss=compute_nll_loss, compiled=compiled,
            average_log_prob=True, gamma=gamma, label_smoothing=label_smoothing,
        )  # fmt: skip


class LigerFusedLinearSimPOLoss(nn.Module):
    """forward(lin_weight, _input, target, bias=None): as `LigerFusedLinearCPOLoss`."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        gamma: float = 0.5,
        chunk_size: int = 1,
    ):
        super().__init__()
        self.ignore_index, self.beta, self.alpha, self.label_smoothing = ignore_index, beta, alpha, label_smoothing
        self.compute_nll_loss, self.compiled = compute_nll_loss, compiled
        self.gamma, self.chunk_size = gamma, chunk_size

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None):
        return LigerFusedLinearSimPOFunction.apply(
            _input, lin_weight, target, bias, self.ignore_index, self.beta, self.alpha, self.label_smoothing,
            self.compute_nll_loss, self.compiled, self.gamma, self.chunk_size,
        )  # fmt: skip
