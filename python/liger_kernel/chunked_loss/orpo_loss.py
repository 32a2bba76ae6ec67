"""Odds ratio preference optimisation: Hong et al. 2024, arXiv 2403.07691."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from liger_kernel.chunked_loss._pair_losses import mean_over_pairs
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, by whichever of two forms keeps its digits. Finite at 0, where the gradient is 0."""
    below = x.clamp(max=-torch.finfo(x.dtype).tiny)
    far = torch.log1p(-torch.exp(below.clamp(max=-math.log(2))))
    return torch.where(below > -math.log(2), torch.log(-torch.expm1(below)), far)


class LigerFusedLinearORPOFunction(LigerFusedLinearPreferenceBase):
    """nll - beta·mean of log σ(o), where o = log(odds of the chosen / odds of the rejected answer), odds = p/(1 - p), and log p
    is the mean over an answer's tokens. A pair with an answer of no tokens contributes nothing."""

    @staticmethod
    def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1, ignored_label=-100):
        tokens = full_target.ne(ignored_label).any(-1).view(2, chosen_logps.shape[0]).all(0)
        odds = (chosen_logps - rejected_logps) - (log_one_minus_exp(chosen_logps) - log_one_minus_exp(rejected_logps))
        odds = odds.where(tokens, 0)
        ratio = mean_over_pairs(logsigmoid(odds).where(tokens, 0), full_target)
        return -beta * ratio, beta * chosen_logps, beta * rejected_logps, ratio, mean_over_pairs(odds, full_target)

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
        compute_nll_loss=True,
        nll_target=None,
        compiled=True,
        chunk_size=1,
    ):
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, chunk_size=chunk_size,
            ignore_index=ignore_index, beta=beta, compute_nll_loss=compute_nll_loss, nll_target=nll_target,
            compiled=compiled, average_log_prob=True, ignored_label=ignore_index,
        )  # fmt: skip


class LigerFusedLinearORPOLoss(nn.Module):
    """forward(lin_weight [V, H], _input [2n, T, H], target [2n, T], bias=None [V], nll_target=None) -> (loss, (chosen
    log-probabilities [n], rejected ones [n], mean chosen logit, mean rejected logit, nll, chosen rewards [n], rejected rewards
    [n], mean log σ(o), mean o)). nll_target [n or more, T] labels the chosen sequences for nll, prompts too where wanted."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        chunk_size: int = 1,
    ):
        super().__init__()
        self.ignore_index, self.beta, self.compute_nll_loss = ignore_index, beta, compute_nll_loss
        self.compiled, self.chunk_size = compiled, chunk_size

    def forward(
        self,
        lin_weight: Tensor,
        _input: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        nll_target: Tensor | None = None,
    ):
        return LigerFusedLinearORPOFunction.apply(
            _input, lin_weight, target, bias, self.ignore_index, self.beta, self.compute_nll_loss, nll_target,
            self.compiled, self.chunk_size,
        )  # fmt: skip
