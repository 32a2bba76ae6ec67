"""Direct preference optimisation: Rafailov et al. 2023, arXiv 2305.18290; and the losses that others have put in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from liger_kernel.chunked_loss._pair_losses import mean_over_pairs
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase


class _Pairs(NamedTuple):
    """beta·log(p/p_ref) of the chosen and the rejected answers, d their difference."""

    chosen: Tensor
    rejected: Tensor
    beta: float
    smoothing: float
    tau: float

    @property
    def d(self) -> Tensor:
        return self.chosen - self.rejected


def _exo(p: _Pairs) -> Tensor:
    """KL(σ(d) ‖ 1 - s) of two outcomes."""
    s, d = p.smoothing, p.d
    right, wrong = logsigmoid(d), logsigmoid(-d)
    return right.exp() * (right - math.log1p(-s)) + wrong.exp() * (wrong - math.log(s))


def _robust(p: _Pairs) -> Tensor:
    s, d = p.smoothing, p.d
    return (s * logsigmoid(-d) - (1 - s) * logsigmoid(d)) / (1 - 2 * s)


def _discopop(p: _Pairs) -> Tensor:
    """(1 - m)·(-log σ(d)) + m·e^(-d), m = σ(d/τ), whose second term is one exponential: e^(-d) alone overflows."""
    d = p.d
    return -logsigmoid(d) * torch.sigmoid(-d / p.tau) + torch.exp(logsigmoid(d / p.tau) - d)


LOSSES: dict[str, Callable[[_Pairs], Tensor]] = {
    "sigmoid": lambda p: -logsigmoid(p.d),  # Rafailov et al. 2023
    "hinge": lambda p: (1 - p.d).relu(),  # Zhao et al. 2023, arXiv 2305.10425; Liu et al. 2023, arXiv 2309.06657
    "exo_pair": _exo,  # Ji et al. 2024, arXiv 2402.00856
    "nca_pair": lambda p: (
        -logsigmoid(p.chosen)  # Chen et al. 2024, arXiv 2402.05369
        - 0.5 * logsigmoid(-p.chosen)
        - 0.5 * logsigmoid(-p.rejected)
    ),
    "robust": _robust,  # Chowdhury et al. 2024, arXiv 2403.00409
    "bco_pair": lambda p: -logsigmoid(p.chosen) - logsigmoid(-p.rejected),  # Jung et al. 2024, arXiv 2404.04656
    "sppo_hard": lambda p: (
        ((p.chosen - 0.5) / p.beta).square()  # Wu et al. 2024, arXiv 2405.00675
        + ((p.rejected + 0.5) / p.beta).square()
    ),
    "apo_zero": lambda p: torch.sigmoid(-p.chosen) + torch.sigmoid(p.rejected),  # D'Oosterlinck et al. 2024,
    "apo_down": lambda p: torch.sigmoid(p.chosen) + torch.sigmoid(-p.d),  # arXiv 2408.06266
    "discopop": _discopop,  # Lu et al. 2024, arXiv 2406.08414
}


def check_loss_type(loss_type: str, label_smoothing: float) -> None:
    if loss_type not in LOSSES:
        raise ValueError(f"Unsupported loss_type {loss_type!r}: it must be one of {', '.join(LOSSES)}")
    if loss_type == "exo_pair" and not 0 < label_smoothing < 1:
        raise ValueError(
            f"label_smoothing must be > 0 for loss_type='exo_pair', and less than 1, but is {label_smoothing}"
        )
    if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0.0, 0.5) for loss_type='robust', but is {label_smoothing}")


class LigerFusedLinearDPOFunction(LigerFusedLinearPreferenceBase):
    """alpha·nll + mean of a loss on log(p/p_ref) of chosen and rejected answers; without a reference p_ref is 1."""

    @staticmethod
    def preference_loss_fn(
        chosen_logps,
        rejected_logps,
        full_target,
        ref_chosen_logps=None,
        ref_rejected_logps=None,
        beta=0.1,
        loss_type="sigmoid",
        label_smoothing=0.0,
        discopop_tau=0.05,
    ):
        if ref_chosen_logps is not None:
            chosen_logps = chosen_logps - ref_chosen_logps
        if ref_rejected_logps is not None:
            rejected_logps = rejected_logps - ref_rejected_logps
        pairs = _Pairs(beta * chosen_logps, beta * rejected_logps, beta, label_smoothing, discopop_tau)
        return mean_over_pairs(LOSSES[loss_type](pairs), full_target), pairs.chosen, pairs.rejected

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        ignore_index=-100,
        beta=0.1,
        compute_nll_loss=False,
        compiled=True,
        use_ref_model=True,
        average_log_prob=False,
        chunk_size=1,
        loss_type="sigmoid",
        label_smoothing=0.0,
        discopop_tau=0.05,
        alpha=1.0,
    ):
        if loss_type == "ipo":
            raise NotImplementedError("loss_type 'ipo' is not available")
        check_loss_type(loss_type, label_smoothing)
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, chunk_size=chunk_size,
            ignore_index=ignore_index, alpha=alpha, beta=beta, compute_nll_loss=compute_nll_loss, compiled=compiled,
            use_ref_model=use_ref_model, ref_input=ref_input, ref_weight=ref_weight, ref_bias=ref_bias,
            average_log_prob=average_log_prob, loss_type=loss_type, label_smoothing=label_smoothing,
            discopop_tau=discopop_tau,
        )  # fmt: skip


class LigerFusedLinearDPOLoss(nn.Module):
    """forward(lin_weight [V, H], _input [2n, T, H], target [2n, T], bias=None [V], ref_input=None, ref_weight=None,
    ref_bias=None, *, ref_chosen_logps=None [n], ref_rejected_logps=None [n]) -> (loss, (chosen log-probabilities [n], rejected
    ones [n], mean chosen logit, mean rejected logit, nll, chosen rewards [n], rejected rewards [n])): n chosen sequences, then
    their n rejected ones.

    The reference is hidden states and a head, or its log-probabilities, which win; it gets no gradient, and is not looked at
    where use_ref_model is False. loss_type is one of `LOSSES`; alpha counts with compute_nll_loss."""

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        compute_nll_loss: bool = False,
        compiled: bool = True,
        use_ref_model: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
    ):
        super().__init__()
        check_loss_type(loss_type, label_smoothing)
        self.ignore_index, self.beta, self.alpha, self.compute_nll_loss = ignore_index, beta, alpha, compute_nll_loss
        self.compiled, self.use_ref_model, self.average_log_prob = compiled, use_ref_model, average_log_prob
        self.chunk_size, self.loss_type, self.label_smoothing = chunk_size, loss_type, label_smoothing
        self.discopop_tau = discopop_tau

    def forward(
        self,
        lin_weight: Tensor,
        _input: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        *,
        ref_chosen_logps: Tensor | None = None,
        ref_rejected_logps: Tensor | None = None,
    ):
        if (ref_chosen_logps is None) != (ref_rejected_logps is None):
            raise ValueError(
                "LigerFusedLinearDPOLoss: ref_chosen_logps and ref_rejected_logps go together, but one is None"
            )
        reference = ref_input if ref_chosen_logps is None else (ref_chosen_logps, ref_rejected_logps)
        return LigerFusedLinearDPOFunction.apply(
            _input, lin_weight, target, bias, reference, ref_weight, ref_bias, self.ignore_index, self.beta,
            self.compute_nll_loss, self.compiled, self.use_ref_model, self.average_log_prob, self.chunk_size,
            self.loss_type, self.label_smoothing, self.discopop_tau, self.alpha,
        )  # fmt: skip
