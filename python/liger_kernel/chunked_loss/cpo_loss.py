"""Contrastive preference optimisation: Xu et al. 2024, arXiv 2401.08417."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.chunked_loss._pair_losses import mean_over_pairs, smoothed_sigmoid
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase


class LigerFusedLinearCPOFunction(LigerFusedLinearPreferenceBase):
    """alpha·nll + mean of -log σ(beta·(log p_chosen - log p_rejected)), smoothed: DPO without a reference, and with the
    likelihood of the chosen answers."""

    @staticmethod
    def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1, label_smoothing=0.0):
        losses = smoothed_sigmoid(beta * (chosen_logps - rejected_logps), label_smoothing)
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
        compute_nll_loss=True,
        compiled=True,
        average_log_prob=False,
        chunk_size=1,
    ):
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, chunk_size=chunk_size,
            ignore_index=ignore_index, alpha=alpha, beta=beta, compute_nll_loss=compute_nll_loss, compiled=compiled,
            average_log_prob=average_log_prob, label_smoothing=label_smoothing,
        )  # fmt: skip


class LigerFusedLinearCPOLoss(nn.Module):
    """forward(lin_weight [V, H], _input [2n, T, H], target [2n, T], bias=None [V]) -> (loss, (chosen log-probabilities [n],
    rejected ones [n], mean chosen logit, mean rejected logit, nll, chosen rewards [n], rejected rewards [n])): n chosen
    sequences, then their n rejected ones. Only the loss has gradients."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
    ):
        super().__init__()
        self.ignore_index, self.beta, self.alpha, self.label_smoothing = ignore_index, beta, alpha, label_smoothing
        self.compute_nll_loss, self.compiled = compute_nll_loss, compiled
        self.average_log_prob, self.chunk_size = average_log_prob, chunk_size

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None):
        return LigerFusedLinearCPOFunction.apply(
            _input, lin_weight, target, bias, self.ignore_index, self.beta, self.alpha, self.label_smoothing,
            self.compute_nll_loss, self.compiled, self.average_log_prob, self.chunk_size,
        )  # fmt: skip
