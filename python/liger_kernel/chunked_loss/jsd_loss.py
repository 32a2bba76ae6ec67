"""Distillation by the Jensen-Shannon divergence: Lin 1991, "Divergence measures based on the Shannon entropy"; between two
models' distributions, with the two Kullback-Leibler divergences as its ends: Agarwal et al. 2024, arXiv 2306.13649."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from liger_kernel.chunked_loss._distillation_form import (
    DistillationFunction,
    DistillationModule,
    is_by_hand,
    kept_gradient,
    summed,
)
from liger_kernel.ops._jensen_shannon import LOWEST, above_mixture, values
from liger_kernel.ops._operator import LigerArgumentError


class LigerFusedLinearJSDFunction(DistillationFunction):
    """With student's and teacher's probabilities Q and P: beta = 0 is KL(P || Q), beta = 1 is KL(Q || P), and between them
    beta·KL(P || M) + (1 - beta)·KL(Q || M) with M = beta·P + (1 - beta)·Q."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, beta=0.5, target=None, ignore_index=-100):
        if not 0 <= beta <= 1:
            raise LigerArgumentError(f"beta is {beta}, but must be in [0, 1]")
        student, teacher = student_logits.float(), teacher_logits.float()
        counts = None if target is None else target != ignore_index
        if 0 < beta < 1 and is_by_hand(student, teacher):
            return _Between.apply(student, teacher, beta, counts)
        student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
        if beta == 0:
            per_token = _divergence(teacher, student)
        elif beta == 1:
            per_token = _divergence(student, teacher)
        else:
            per_token = values(student, teacher, beta).sum(-1)
        return summed(per_token, counts)


class _Between(torch.autograd.Function):
    """The same for beta between 0 and 1 with the gradient by hand, (1 - beta)·Q·(log Q - log M - KL(Q || M)), in less than half
    of autograd's walks over the logits."""

    @staticmethod
    def forward(ctx, student, teacher, beta, counts):
        s, t = (logits.log_softmax(-1).clamp_(min=LOWEST) for logits in (student, teacher))
        above_q, above_p = _above_mixture(s, t, beta)
        p, q = t.exp_(), s.exp_()
        of_teacher = p.mul_(above_p).sum(-1)
        terms = above_q.mul_(q)
        of_student = terms.sum(-1)
        per_token = beta * of_teacher + (1 - beta) * of_student
        if ctx.needs_input_grad[0]:
            gradient = terms.addcmul_(q, of_student.unsqueeze(-1), value=-1).mul_(1 - beta)
            if counts is not None:
                gradient.masked_fill_(~counts.unsqueeze(-1), 0)
            ctx.save_for_backward(gradient)
        return summed(per_token, counts)

    @staticmethod
    def backward(ctx, grad_output):
        return kept_gradient(ctx, grad_output, "LigerFusedLinearJSDFunction")


def _above_mixture(s: Tensor, t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """In fewer walks where both weigh enough: logarithms err by 2^-22 and more, which is to stay below 2^-18 of the smaller weight."""
    if min(beta, 1 - beta) < 2**-4:
        return above_mixture(s, t, beta)
    mean = torch.logaddexp(s + math.log(1 - beta), t + math.log(beta))
    return s - mean, t - mean


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Σ e^p (p - q) of logarithms, to which what has no probability contributes nothing."""
    share = p.exp()
    return (share * (p - q).masked_fill(share == 0, 0)).sum(-1)


class LigerFusedLinearJSDLoss(DistillationModule):
    """forward(student_input [..., H], student_weight [V, H], teacher_input [..., H'], teacher_weight [V', H'], true_labels [...],
    student_bias=None, teacher_bias=None) -> loss, or (loss, soft loss, hard loss) with return_soft_hard_loss: cross entropy
    with true_labels and the divergence of both models at a temperature, each weighted, both means over the labels that are
    not ignore_index. Only the loss has gradients, for the student. V' >= V. See `LigerFusedLinearJSDFunction`."""

    function = LigerFusedLinearJSDFunction
