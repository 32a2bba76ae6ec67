"""The generalized Jensen-Shannon divergence, as a module."""

from __future__ import annotations

from torch import Tensor, nn

from liger_kernel.ops._formula import of_tensors
from liger_kernel.ops.jsd import LigerJSDFunction


class LigerJSD(nn.Module):
    """JSD(beta) of a student's log-probabilities log_q [BT, V] and a teacher's log_p [BT, V]: a scalar of the student's dtype.

    With P = e^log_p, Q = e^log_q and M = beta · P + (1 − beta) · Q it is beta · KL(P‖M) + (1 − beta) · KL(Q‖M), the mean over
    rows; `beta=0` is KL(P‖Q), `beta=1` is KL(Q‖P). With `shift_labels` [BT] rows whose label is `ignore_index` count for nothing.
    Only log_q has a gradient, which is formed in forward.
    """

    def __init__(self, beta: float = 0.5, ignore_index: int = -100):
        super().__init__()
        self.beta = beta
        self.ignore_index = ignore_index

    def forward(self, log_q, log_p, shift_labels=None):
        return LigerJSDFunction.apply(log_q, log_p, shift_labels, self.beta, self.ignore_index)

    def extra_repr(self):
        return f"beta={self.beta}, ignore_index={self.ignore_index}"


@of_tensors
def liger_jsd(input: Tensor, target: Tensor, shift_labels=None, beta: float = 0.5, ignore_index: int = -100):
    """See `LigerJSD`."""
    return LigerJSDFunction.apply(input, target, shift_labels, beta, ignore_index)


__all__ = ["LigerJSD", "LigerJSDFunction", "liger_jsd"]
