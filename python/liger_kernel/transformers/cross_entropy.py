"""Cross entropy over logits, as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liger_kernel.ops import LigerCrossEntropyFunction
from liger_kernel.ops._formula import of_tensors
from liger_kernel.transformers.functional import loss_or_output
from liger_kernel.transformers.patching import PatchedAs


class CrossEntropyModule(nn.Module, metaclass=PatchedAs):
    """The options that every cross entropy here has. AssertionError for those that none accepts."""

    def __init__(
        self,
        ignore_index: int,
        lse_square_scale: float,
        label_smoothing: float,
        reduction: str,
        softcap: float | None,
        return_z_loss: bool,
        return_token_accuracy: bool,
        return_predicted_tokens: bool,
    ) -> None:
        super().__init__()
        assert 0.0 <= label_smoothing <= 1.0, f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}"
        assert reduction in ("mean", "sum", "none"), f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
        assert softcap is None or softcap > 0, f"softcap must be positive or None, got {softcap}"
        self.ignore_index = ignore_index
        self.lse_square_scale = lse_square_scale
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.softcap = softcap
        self.return_z_loss = return_z_loss
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def loss_or_output(self, results):
        return loss_or_output(results, self.return_z_loss or self.return_token_accuracy or self.return_predicted_tokens)


class LigerCrossEntropyLoss(CrossEntropyModule):
    """Cross entropy of logits [BT, V] (fp32, fp16, bf16) with targets [BT] (int32, int64).

    Per row, in fp32: logsumexp(x) − x[target], x softcapped if `softcap` is given, with label smoothing, class weights
    `weight` [V] and `lse_square_scale` · logsumexp² added. Rows whose target is `ignore_index` count for nothing.
    `reduction` is "mean" (over the other rows, or their weights), "sum" or "none"; the loss has the dtype of the
    logits, which are never written to. Any `return_*` flag turns the result into a `CrossEntropyOutput`.
    AssertionError for options out of range and, on the CPU, for targets out of bounds.
    """

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> None:
        super().__init__(
            ignore_index,
            lse_square_scale,
            label_smoothing,
            reduction,
            softcap,
            return_z_loss,
            return_token_accuracy,
            return_predicted_tokens,
        )
        self.register_buffer("weight", weight, persistent=False)  # goes where the module goes; no part of a checkpoint

    def forward(self, _input, target):
        results = LigerCrossEntropyFunction.apply(
            _input,
            target,
            self.weight,
            self.ignore_index,
            self.lse_square_scale,
            self.label_smoothing,
            self.reduction,
            self.softcap,
            self.return_z_loss,
            self.return_token_accuracy,
            self.return_predicted_tokens,
        )
        return self.loss_or_output(results)


@of_tensors
def liger_cross_entropy(
    input: Tensor,
    target: Tensor,
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
