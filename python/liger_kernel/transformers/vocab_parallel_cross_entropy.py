"""Cross entropy of logits whose vocabulary is split over processes, as a module."""

from __future__ import annotations

from torch import nn

from liger_kernel.ops import LigerVocabParallelCEFunction
from liger_kernel.ops._operator import LigerArgumentError
from liger_kernel.ops.vocab_parallel_cross_entropy import validate_formula_and_mode


class LigerVocabParallelCrossEntropy(nn.Module):
    """forward(vocab_parallel_logits [S, B, V_r], target [S, B], tp_group=None) -> the loss of each token, float32 [S, B].

    Each process of tp_group holds V_r columns of the logits, in the order of ranks; see `LigerVocabParallelCEFunction` for the
    formula, and for what label_smoothing in [0, 1), its formula ("pytorch", "megatron") and its mode ("global", "partition")
    are. reduction is "none": whoever trains in parallel masks and divides by himself.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "none",
        label_smoothing_formula: str = "pytorch",
        label_smoothing_mode: str = "global",
    ):
        super().__init__()
        if reduction != "none":
            raise LigerArgumentError(f"reduction must be 'none', got {reduction!r}")
        if not 0 <= label_smoothing < 1:
            raise LigerArgumentError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        validate_formula_and_mode(label_smoothing_formula, label_smoothing_mode)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.label_smoothing_formula = label_smoothing_formula
        self.label_smoothing_mode = label_smoothing_mode

    def forward(self, vocab_parallel_logits, target, tp_group=None):
        return LigerVocabParallelCEFunction.apply(
            vocab_parallel_logits, target, tp_group, self.ignore_index, self.label_smoothing, self.label_smoothing_formula,
            self.label_smoothing_mode,
        )  # fmt: skip

    def extra_repr(self):
        return (f"ignore_index={self.ignore_index!r}, label_smoothing={self.label_smoothing!r}, "
                f"reduction={self.reduction!r}, label_smoothing_formula={self.label_smoothing_formula!r}, "
                f"label_smoothing_mode={self.label_smoothing_mode!r}")  # fmt: skip
