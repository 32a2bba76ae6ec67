"""Losses of a policy on the log-probabilities of the tokens that it was trained on: GRPO and what came after it.

p, o and q [B, T] are log-probabilities under the policy, the policy that sampled, and the reference; m the mask, A [B] the
advantages, r the ratio of the trainer's and the sampler's probabilities where these differ, sg = stop gradient. The weight of
importance is w = exp(p - o) for each token, or for each sequence exp of the mean of p - o over its tokens (GSPO, arXiv
2507.18071). Formulas and reductions are of:

    grpo     DeepSeekMath, arXiv 2402.03300     -min(w·A, clip(w)·A), a mean over sequences of means over tokens
    bnpo     TRL                                the mean over all tokens of this process's batch
    dr_grpo  Dr. GRPO, arXiv 2503.20783         no length in the divisor but the longest one allowed
    dapo     DAPO, arXiv 2503.14476             bounds of their own above and below; the mean over all tokens of all processes
    luspo    LUSPO, arXiv 2602.05261            each sequence times its length
    cispo    MiniMax-M1, arXiv 2506.13585       -sg(min(w, bound))·A·p: a clipped token keeps its gradient
    sapo     SAPO, arXiv 2511.20347             a sigmoid in the place of the clip, with a temperature for each sign of A
    vespo    VESPO, arXiv 2602.10693            -sg(φ(w))·A·p with φ(w) = w^k·exp(λ·(1 - w)), w of the whole sequence

All of it is float32 and differentiable torch, on any device, and waits for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from liger_kernel.ops._formula import at_least_one, unrecorded
from liger_kernel.ops._operator import LigerArgumentError

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
PER_TOKEN_ONLY = ("cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")

_LEAST, _MOST = math.log(1e-8), 20.0  # of a logarithm of VESPO's weights

# ---- pieces of the formulas --------------------------------------------------------------------------------------------


def k3_loss_fn(log_p: Tensor, log_q: Tensor) -> Tensor:
    """An estimate of KL(q || p) for each sample of q that is unbiased and never negative: p/q - log(p/q) - 1."""
    log_ratio = log_p - log_q
    return torch.expm1(log_ratio) - log_ratio  # close to 0, where p/q - 1 would have no digits left


def sapo_loss_fn(importance_ratio: Tensor, temperature: float) -> Tensor:
    """4/τ·σ(τ·(w - 1)): of slope 1 at w = 1, and flat far from it."""
    if temperature <= 0:
        raise ValueError(f"the temperature of SAPO must be larger than 0, but is {temperature}")
    return torch.sigmoid(temperature * (importance_ratio - 1)) * (4.0 / temperature)


def clip_coef_fn(
    coef: Tensor, epsilon_low: float, epsilon_high: float, loss_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(the clipped weights, which of them lie below the lower bound, which above the upper). CISPO has one bound, epsilon_high
    itself, and no gradient through the weight."""
    require_loss_type(loss_type)
    if loss_type == "cispo":
        return coef.detach().clamp(max=epsilon_high), torch.zeros_like(coef, dtype=torch.bool), coef > epsilon_high
    low, high = 1 - epsilon_low, 1 + epsilon_high
    return coef.clamp(low, high), coef < low, coef > high


def get_gamma_weights(
    advantages: Tensor, log_ratio_per_token: Tensor, mask: Tensor, importance_sampling_ratio: Tensor | None = None,
    k_pos: float = 2.0, lambda_pos: float = 3.0, k_neg: float = 3.0, lambda_neg: float = 2.0,
) -> Tensor:  # fmt: skip
    """φ [B, 1] of VESPO, without a gradient. k and λ depend on the sign of the advantage."""
    log_ratio = log_ratio_per_token.detach().float()
    u = torch.where(mask != 0, log_ratio.clamp(-_MOST, _MOST), 0).sum(-1, keepdim=True)
    if importance_sampling_ratio is not None:
        ratio = column(importance_sampling_ratio.detach().float())
        u = u + ratio.log().clamp(_LEAST, _MOST).sum(-1, keepdim=True)
    u = u.clamp(_LEAST, _MOST)
    is_positive = column(advantages) >= 0
    k = torch.full_like(u, k_neg).masked_fill(is_positive, k_pos)
    rate = torch.full_like(u, lambda_neg).masked_fill(is_positive, lambda_pos).clamp(min=1e-4)
    return (rate + k * u - rate * u.exp()).exp().nan_to_num(0.0, 0.0, 0.0)


def column(values: Tensor) -> Tensor:
    """[B] as [B, 1]; what has two dimensions stays."""
    return values.unsqueeze(-1) if values.dim() == 1 else values


# ---- the terms of a batch ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyLoss:
    """Which loss it is, and its numbers. `delta` bounds w from above before the comparison with the clipped weight."""

    loss_type: str = "dapo"
    level: str = "token"
    beta: float = 0.04
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)  # of advantages above 0, of the others
    corrects_kl: bool = False
    vespo_numbers: tuple[float, float, float, float] = (2.0, 3.0, 3.0, 2.0)  # k and λ of A >= 0, k and λ of A < 0
    vespo_weights: Tensor | None = None  # φ [B, 1], where the caller has it
    skips_masked: bool = False  # for LUSPO too

    def is_per_token(self, ratio: Tensor | None) -> bool:
        """Has a sequence a term for each token, or is one number all that it has?"""
        is_wide = ratio is not None and ratio.dim() == 2 and ratio.shape[1] != 1
        return self.level == "token" or self.beta != 0 or is_wide

    def reads_masked(self, ratio: Tensor | None) -> bool:
        """LUSPO adds all positions up, masked ones too, where there is a term for each."""
        return self.loss_type == "luspo" and not self.skips_masked and self.is_per_token(ratio)

    def terms(
        self, log_probs: Tensor, mask: Tensor, advantages: Tensor, old: Tensor | None = None,
        reference: Tensor | None = None, ratio: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """(the loss [B, T] or [B, 1], the KL term [B, T] where beta is not 0, whether w is clipped [B, T] or [B, 1])."""
        mask = mask != 0
        everywhere = self.reads_masked(ratio)

        def read(values: Tensor) -> Tensor:  # a NaN at a masked position is not even multiplied by 0
            return values.float() if everywhere else torch.where(mask, values.float(), 0)

        p, a = read(log_probs), column(advantages.float())
        log_ratio = p - (p.detach() if old is None else read(old))
        log_weight = log_ratio if self.level == "token" else _means(torch.where(mask, log_ratio, 0), mask)
        weight = log_weight.exp()
        loss, is_clipped = self._objective(p, a, log_ratio, weight, mask, ratio)
        if ratio is not None and self.loss_type != "vespo":
            loss = loss * (read(ratio) if ratio.shape == mask.shape else column(ratio.float()))
        if self.beta == 0:
            return loss, None, is_clipped
        q = p.detach() if reference is None else read(reference)
        if not self.corrects_kl:
            kl = k3_loss_fn(q, p)
        elif self.level == "token":
            kl = _corrected_kl(q - p, log_weight, torch.ones_like(mask))
        else:
            kl = _corrected_kl(q - p, log_weight, mask & (mask.sum(-1, keepdim=True) == 1))
        return loss + self.beta * kl, kl, is_clipped

    def _objective(
        self, p: Tensor, a: Tensor, log_ratio: Tensor, weight: Tensor, mask: Tensor, ratio: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        never = torch.zeros_like(weight, dtype=torch.bool)
        if self.loss_type == "sapo":
            above, below = (sapo_loss_fn(weight, temperature) for temperature in self.sapo_temperatures)
            return -a * torch.where(a > 0, above, below), never
        if self.loss_type == "vespo":
            phi = self.vespo_weights
            if phi is None:
                phi = get_gamma_weights(a, log_ratio, mask, ratio, *self.vespo_numbers)
            return -phi * a * p, never
        clipped, is_low, is_high = clip_coef_fn(weight, self.epsilon_low, self.epsilon_high, self.loss_type)
        if self.loss_type == "cispo":
            return -clipped * a * p, is_high & (a > 0)
        bounded = weight if self.delta is None else weight.clamp(max=self.delta)
        return -torch.min(bounded * a, clipped * a), (is_low & (a < 0)) | (is_high & (a > 0))


def _corrected_kl(x: Tensor, log_weight: Tensor, alone: Tensor) -> Tensor:
    """w·(exp(x) - x - 1) of x = q - p. Where the weight is of one token `alone`, w·exp(x) = exp(q - o) has no gradient: that of
    a product would be the difference of two numbers of its size, and of the far larger one nothing else is left in float32."""
    weight, far = log_weight.exp(), x.abs() > 1
    apart = torch.where(far, x, 0)  # each branch is finite where the other is taken
    exponent = log_weight + apart
    exponent = torch.where(alone, exponent.detach(), exponent)
    near = torch.where(far, 0, x)
    return torch.where(far, exponent.exp() - weight * (1 + apart), (torch.expm1(near) - near) * weight)


def _means(values: Tensor, mask: Tensor) -> Tensor:
    """[B, 1]: of each sequence the mean over its tokens, of values that are 0 where there is none."""
    return values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


# ---- reductions --------------------------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens of the batch; 0 where it has none."""
    mask = mask != 0
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def batch_normalizer(mask: Tensor, num_items: float | Tensor | None = None) -> Tensor:
    """Tokens of the global batch for each process, at least 1: num_items, or what the masks of all processes count."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if num_items is None:
        items = (mask != 0).sum().float()
        if world > 1:
            dist.all_reduce(items)
    elif isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise LigerArgumentError(
                f"num_items_in_batch has shape {tuple(num_items.shape)}, but must have one element"
            )
        items = num_items.detach().reshape(()).to(mask.device, torch.float32, non_blocking=True)
    else:  # filled in on the device: a copy would wait for it
        items = torch.full((), float(num_items), device=mask.device)
    return (items / world).clamp(min=1)


def reduced(
    terms: Tensor, mask: Tensor, loss_type: str, max_completion_length: int | None = None,
    num_items: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The loss of the batch from the terms of its tokens, [B, T], or of its sequences, [B, 1]."""
    require_loss_type(loss_type)
    mask, sequences = mask != 0, at_least_one(mask.shape[0])
    lengths = mask.sum(-1, keepdim=True)
    if loss_type == "luspo":
        return (terms * lengths).sum() / at_least_one(terms.numel())
    counted = torch.where(mask, terms, 0)
    if loss_type in ("grpo", "sapo"):
        return (counted / lengths.clamp(min=1)).sum() / sequences
    if loss_type == "bnpo":
        return counted.sum() / lengths.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        assert max_completion_length is not None, "dr_grpo needs max_completion_length"
        return counted.sum() / (sequences * max_completion_length)
    return counted.sum() / batch_normalizer(mask, num_items)


# ---- what is refused ---------------------------------------------------------------------------------------------------


def require_loss_type(loss_type: str) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}, but must be one of {', '.join(LOSS_TYPES)}")


def require_level(level: str, loss_type: str) -> None:
    require_loss_type(loss_type)
    if level not in LEVELS:
        raise ValueError(f"importance_sampling_level is {level!r}, but must be 'token' or 'sequence'")
    if level == "sequence" and loss_type in PER_TOKEN_ONLY:
        raise ValueError(f"Sequence-level importance sampling is not supported with loss_type {loss_type!r}")


@unrecorded
def require_ratio(ratio: Tensor | None, batch: int, length: int) -> None:
    """One number a sequence, [B] or [B, 1], or one a token, [B, T]."""
    if ratio is None:
        return
    shape = tuple(ratio.shape)
    assert shape in ((batch,), (batch, 1), (batch, length)), (
        f"vllm_is_ratio has shape {shape}, but must have ({batch},), ({batch}, 1) or ({batch}, {length})"
    )
