"""The output projection and its divergence from a teacher's most probable ids in one, as a module."""

from __future__ import annotations

import torch

from liger_kernel.ops import LigerTopKKLFunction
from liger_kernel.ops.topk_kl import check_options


class LigerTopKKLLoss(torch.nn.Module):
    """KL(teacher ‖ softmax((`hidden` [N, H] · `weight`ᵀ [V, H] + `bias` [V])/temperature)) from the teacher's most probable ids,
    `topk_ids` [N, k], and their log-probabilities at the same temperature, `topk_logprobs` [N, k], chunk by chunk.

    What is left of the teacher's probability, 1 - Σ exp(topk_logprobs), stands against the student's probability of all other ids:
    the loss is never negative, and 0 where both agree. An id of -1 is an empty place of a list. Rows where `ignore_mask` [N] is True
    do not count. `reduction`: "batchmean" (over rows that count), "mean" (over their N·V elements) or "sum". The loss is fp32. See
    `LigerTopKKLFunction` for what is refused and what becomes NaN.
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "batchmean") -> None:
        super().__init__()
        check_options(reduction, temperature)
        self.temperature, self.reduction = temperature, reduction

    def forward(self, hidden, weight, topk_ids, topk_logprobs, bias=None, *, ignore_mask=None):
        options = (ignore_mask, self.reduction, self.temperature)
        return LigerTopKKLFunction.apply(hidden, weight, topk_ids, topk_logprobs, bias, *options)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction}"


def liger_topk_kl(
    hidden,
    weight,
    topk_ids,
    topk_logprobs,
    bias=None,
    *,
    temperature: float = 1.0,
    ignore_mask=None,
    reduction: str = "batchmean",
):
    """KL(teacher's most probable ids and the rest ‖ softmax of a head): see `LigerTopKKLLoss`."""
    options = (ignore_mask, reduction, temperature)
    return LigerTopKKLFunction.apply(hidden, weight, topk_ids, topk_logprobs, bias, *options)
