"""Losses on a linear head with inputs of their own: preference losses, a policy's, and distillation's. Their inputs, and their
formulas in torch.

Hidden states [sequences, tokens, H]; of preferences the first half was chosen. One token in twenty is ignored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from inputs import IGNORE, Inputs, Operator, normal, targets
from torch import Tensor

BETA, GAMMA = 0.1, 0.5


# ---- formulas -----------------------------------------------------------------------------------------------------------


def _log_probs(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Of each token that counts; 0 of the others."""
    log_p = F.linear(x, weight).float().log_softmax(-1)
    return torch.where(target != IGNORE, log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0], 0)


def _of_pairs(log_probs: Tensor, target: Tensor, average: bool) -> Tensor:
    """[chosen or rejected, pair]"""
    sums = log_probs.sum(-1)
    return (sums / (target != IGNORE).sum(-1) if average else sums).view(2, -1)


def _chosen_nll(log_probs: Tensor, target: Tensor) -> Tensor:
    pairs = target.shape[0] // 2
    return -log_probs[:pairs].sum() / (target[:pairs] != IGNORE).sum()


def dpo(x: Tensor, weight: Tensor, target: Tensor, ref_x: Tensor, ref_weight: Tensor) -> Tensor:
    chosen, rejected = _of_pairs(_log_probs(x, weight, target), target, average=False)
    with torch.no_grad():
        ref_chosen, ref_rejected = _of_pairs(_log_probs(ref_x, ref_weight, target), target, average=False)
    return -F.logsigmoid(BETA * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


def orpo(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    log_probs = _log_probs(x, weight, target)
    chosen, rejected = _of_pairs(log_probs, target, average=True)
    odds = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    return _chosen_nll(log_probs, target) - BETA * F.logsigmoid(odds).mean()


def simpo(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    chosen, rejected = _of_pairs(_log_probs(x, weight, target), target, average=True)
    return -F.logsigmoid(BETA * (chosen - rejected) - GAMMA).mean()


def cpo(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    log_probs = _log_probs(x, weight, target)
    chosen, rejected = _of_pairs(log_probs, target, average=False)
    return _chosen_nll(log_probs, target) - F.logsigmoid(BETA * (chosen - rejected)).mean()


def grpo(x: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """On policy: the ratio is 1, and its gradient that of log p. The mean over sequences of means over their tokens."""
    log_p = F.linear(x, weight).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    objective = torch.exp(log_p - log_p.detach()) * advantages[:, None]
    return (-(objective * mask).sum(-1) / mask.sum(-1)).mean()


def _distilled(
    x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, target: Tensor, distance
) -> Tensor:
    logits = F.linear(x, weight)
    with torch.no_grad():
        of_teacher = F.linear(teacher_x, teacher_weight).float()
    counts = target != IGNORE
    soft = torch.where(counts, distance(logits.float(), of_teacher), 0).sum() / counts.sum()
    return 0.5 * F.cross_entropy(logits.float(), target, ignore_index=IGNORE) + 0.5 * soft


def distill_jsd(*inputs: Tensor) -> Tensor:
    """Half the cross entropy and half the Jensen-Shannon divergence with equal parts."""

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        s, t = student.log_softmax(-1), teacher.log_softmax(-1)
        mean = torch.logsumexp(torch.stack((s, t)), 0) - math.log(2)
        return 0.5 * (t.exp() * (t - mean) + s.exp() * (s - mean)).sum(-1)

    return _distilled(*inputs, distance)


def distill_cosine(*inputs: Tensor) -> Tensor:
    return _distilled(*inputs, lambda student, teacher: 0.5 * (1 - F.cosine_similarity(student, teacher, dim=-1)))


# ---- inputs -------------------------------------------------------------------------------------------------------------


def _head(shape, dtype, device, seed: int) -> tuple[Tensor, Tensor]:
    sequences, tokens, hidden, vocab = shape
    x = normal((sequences, tokens, hidden), dtype, device, seed)
    return x, normal((vocab, hidden), dtype, device, seed + 1, hidden**-0.5)


def _pairs(shape, dtype, device) -> Inputs:
    target = targets(shape[0] * shape[1], shape[3], device).view(shape[:2])
    return Inputs(list(_head(shape, dtype, device, 1)), [target])


def _pairs_and_reference(shape, dtype, device) -> Inputs:
    made = _pairs(shape, dtype, device)
    x, weight = made.diff  # a reference that is near
    near = [
        x + normal(tuple(x.shape), dtype, device, 11, 0.01),
        weight + normal(tuple(weight.shape), dtype, device, 12, 1e-3),
    ]
    return Inputs(made.diff, [*made.fixed, *near])


def _policy(shape, dtype, device, counted: float = 0.95) -> Inputs:
    sequences, tokens, _, vocab = shape
    generator = torch.Generator(device=device).manual_seed(6)
    ids = torch.randint(vocab, (sequences, tokens), generator=generator, device=device)
    length = torch.randint(int(tokens * (2 * counted - 1)), tokens, (sequences,), generator=generator, device=device)
    mask = (torch.arange(tokens, device=device) < length[:, None]).to(torch.float32)
    return Inputs(list(_head(shape, dtype, device, 1)), [ids, mask, normal((sequences,), torch.float32, device, 7)])


def _half_policy(shape, dtype, device) -> Inputs:
    """A prompt and an answer, as long as each other."""
    made = _policy(shape, dtype, device)
    ids, mask, advantages = made.fixed
    mask = torch.zeros_like(mask)
    mask[:, shape[1] // 2 :] = 1
    return Inputs(made.diff, [ids, mask, advantages])


def _two_models(shape, dtype, device) -> Inputs:
    """A teacher that is twice as wide."""
    tokens, hidden, vocab = shape
    x, weight = normal((tokens, hidden), dtype, device, 1), normal((vocab, hidden), dtype, device, 2, hidden**-0.5)
    wide = 2 * hidden
    teacher = normal((tokens, wide), dtype, device, 3), normal((vocab, wide), dtype, device, 4, wide**-0.5)
    return Inputs([x, weight], [*teacher, targets(tokens, vocab, device)])


# ---- operators ----------------------------------------------------------------------------------------------------------

_POLICY = {"loss_type": "grpo", "use_ref_model": False, "beta": 0.0}
OPERATORS = {
    "dpo": Operator(_pairs_and_reference, dpo, "LigerFusedLinearDPOLoss", "dpo_loss", {"beta": BETA}, products=4),
    "orpo": Operator(_pairs, orpo, "LigerFusedLinearORPOLoss", "orpo_loss", {"beta": BETA}, products=3),
    "simpo": Operator(
        _pairs,
        simpo,
        "LigerFusedLinearSimPOLoss",
        "simpo_loss",
        {"beta": BETA, "gamma": GAMMA, "compute_nll_loss": False},
        products=3,
    ),
    "cpo": Operator(_pairs, cpo, "LigerFusedLinearCPOLoss", "cpo_loss", {"beta": BETA}, products=3),
    "grpo": Operator(_policy, grpo, "LigerFusedLinearGRPOLoss", "grpo_loss", _POLICY, products=3),
    "distill_jsd": Operator(
        _two_models, distill_jsd, "LigerFusedLinearJSDLoss", "jsd_loss", {"compiled": False}, products=5
    ),
    "distill_cosine": Operator(
        _two_models,
        distill_cosine,
        "LigerFusedLinearCosineSimilarityLoss",
        "cosine_similarity_loss",
        {"compiled": False},
        products=5,
    ),
    "grpo_half": Operator(_half_policy, grpo, "LigerFusedLinearGRPOLoss", "grpo_loss", _POLICY, products=3),
}


def of_module(module: torch.nn.Module, op: str, bounded: bool):
    """The module's loss as a function of the inputs. bounded: it takes valid_rows, which is known here."""

    def of_pairs(x, weight, target, *reference):
        return module(weight, x, target, None, *reference)[0]

    def of_policy(x, weight, ids, mask, advantages):
        extra = {"valid_rows": mask.numel() // 2} if bounded and op == "grpo_half" else {}
        return module(x, weight, ids, mask, advantages, **extra)[0]

    if op.startswith("distill"):
        return module
    return of_policy if op.startswith("grpo") else of_pairs
