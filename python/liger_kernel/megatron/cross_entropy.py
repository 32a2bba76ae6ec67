"""Cross entropy over a vocabulary that is split over a tensor-parallel group, as Megatron-Core smooths labels."""

from __future__ import annotations

from liger_kernel.transformers.vocab_parallel_cross_entropy import LigerVocabParallelCrossEntropy


class LigerMegatronCrossEntropy(LigerVocabParallelCrossEntropy):
    """The loss of each token, fp32 [sequence, batch], of `vocab_parallel_logits` [sequence, batch, V / processes].

    As `LigerVocabParallelCrossEntropy`, with Megatron's label smoothing as default: label_smoothing · K/(K - 1) over the K
    ids of this process's slice.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "none",
        label_smoothing_formula: str = "megatron",
        label_smoothing_mode: str = "partition",
    ) -> None:
        super().__init__(ignore_index, label_smoothing, reduction, label_smoothing_formula, label_smoothing_mode)
