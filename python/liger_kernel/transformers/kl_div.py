"""The Kullback-Leibler divergence, as a module."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.ops import LigerKLDivLossFunction
from liger_kernel.ops._formula import of_tensors


class LigerKLDIVLoss(nn.KLDivLoss):
    """`torch.nn.KLDivLoss` with `eps`, below which the logarithm of a target is not taken; other arguments as there.

    forward(y_pred [BT, V] log-probabilities, y_true [BT, V] probabilities, or log-probabilities with `log_target`) in float32.
    What a target has exactly 0 of counts as 0, whatever is predicted there. Only y_pred has a gradient, which is formed in
    forward. Differs from torch's in `reduction="batchmean"` only where there are no rows: 0 instead of NaN.
    """

    def __init__(self, eps: float = 1e-10, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.eps = eps

    def forward(self, y_pred, y_true):
        return LigerKLDivLossFunction.apply(y_pred, y_true, self.reduction, self.log_target, self.eps)


@of_tensors
def liger_kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool = True,
    reduce: bool = True,
    reduction: str = "mean",
    log_target: bool = False,
    eps: float = 1e-10,
):
    """See `LigerKLDIVLoss`. `size_average` and `reduce` are accepted and ignored."""
    return LigerKLDivLossFunction.apply(input, target, reduction, log_target, eps)
