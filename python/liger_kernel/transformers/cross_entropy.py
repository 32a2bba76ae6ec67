"""Cross entropy over logits, as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerCrossEntropyFunction
from liger_kernel.transformers.functional import CrossEntropyOutput


def check_loss_options(label_smoothing: float, reduction: str, softcap: float | None) -> None:
    """AssertionError for options that no cross entropy here accepts."""
    assert 0.0 <= label_smoothing <= 1.0, f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}"
    assert reduction in ("mean", "sum", "none"), f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
    assert softcap is None or softcap > 0, f"softcap must be positive or None, got {softcap}"


class LigerCrossEntropyLoss(nn.Module):
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
        super().__init__()
        check_loss_options(label_smoothing, reduction, softcap)
        self.weight = weight
        self.ignore_index = ignore_index
        self.lse_square_scale = lse_square_scale
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.softcap = softcap
        self.return_z_loss = return_z_loss
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(self, _input, target):
        loss, z_loss, token_accuracy, predicted_tokens = LigerCrossEntropyFunction.apply(
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
        if not (self.return_z_loss or self.return_token_accuracy or self.return_predicted_tokens):
            return loss
        return CrossEntropyOutput(
            loss=loss, z_loss=z_loss, token_accuracy=token_accuracy, predicted_tokens=predicted_tokens
        )
