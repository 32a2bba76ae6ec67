"""Log-probabilities of tokens under a linear head, without the full logits."""

from __future__ import annotations

from torch import nn

from liger_kernel.ops import LigerLinearLogProbFunction, LigerVocabParallelLinearLogProbFunction
from liger_kernel.ops.linear_logprob import check_options
from liger_kernel.ops.vocab_parallel_logprob import is_split


class LigerLinearLogProb(nn.Module):
    """log p of `targets`, p = softmax(softcap(scale·(hidden·weightᵀ + bias))/temperature), and what else `outputs` names of
    each token's distribution: "entropy", "lse", "log_sum_sq_probs", "mean_logits", "is_top1".

    forward(hidden [..., H], weight [V, H], targets [...], bias=None [V], *, selected_token_ids=None [K], valid_rows=None,
    process_group=None, vocab_start_index=None): float32 of targets' shape, 0 where the target is ignore_index; a tuple if there
    is more than the log-probability, with the log-probabilities of selected_token_ids, [..., K], last. See
    `LigerLinearLogProbFunction`. Where a process group splits the vocabulary, weight and bias are this process's rows of the
    head, from the id vocab_start_index on: see `LigerVocabParallelLinearLogProbFunction`.
    """

    def __init__(self, temperature=1.0, softcap=None, scale=1.0, ignore_index=-100, outputs=()):
        super().__init__()
        check_options(temperature, softcap, scale, None, outputs)
        self.temperature, self.softcap, self.scale = temperature, softcap, scale
        self.ignore_index, self.outputs = ignore_index, tuple(outputs)

    def forward(
        self, hidden, weight, targets, bias=None, *, selected_token_ids=None, valid_rows=None, process_group=None,
        vocab_start_index=None,
    ):  # fmt: skip
        return liger_linear_logprob(
            hidden, weight, targets, bias, temperature=self.temperature, softcap=self.softcap, scale=self.scale,
            ignore_index=self.ignore_index, selected_token_ids=selected_token_ids, valid_rows=valid_rows,
            outputs=self.outputs, process_group=process_group, vocab_start_index=vocab_start_index,
        )  # fmt: skip

    def extra_repr(self):
        return (f"temperature={self.temperature}, softcap={self.softcap}, scale={self.scale}, "
                f"ignore_index={self.ignore_index}, outputs={self.outputs}")  # fmt: skip


def liger_linear_logprob(
    hidden, weight, targets, bias=None, *, temperature=1.0, softcap=None, scale=1.0, ignore_index=-100,
    selected_token_ids=None, valid_rows=None, outputs=(), process_group=None, vocab_start_index=None,
):  # fmt: skip
    """See `LigerLinearLogProb`."""
    options = selected_token_ids, temperature, softcap, scale, ignore_index, valid_rows, outputs
    if is_split(process_group):
        return LigerVocabParallelLinearLogProbFunction.apply(
            hidden, weight, targets, process_group, vocab_start_index, bias, *options
        )
    return LigerLinearLogProbFunction.apply(hidden, weight, targets, bias, *options)
