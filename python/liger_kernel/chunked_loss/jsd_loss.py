"""Distillation by the Jensen-Shannon divergence: Lin 1991, "Divergence measures based on the Shannon entropy"; between two
models' distributions, with the two Kullback-Leibler divergences as its ends: Agarwal et al. 2024, arXiv 2306.13649."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from liger_kernel.chunked_loss._distillation_form import DistillationFunction, DistillationModule


class LigerFusedLinearJSDFunction(DistillationFunction):
    """With student's and teacher's probabilities Q and P: beta = 0 is KL(P || Q), beta = 1 is KL(Q || P), and between them
    beta·KL(P || M) + (1 - beta)·KL(Q || M) with M = beta·P + (1 - beta)·Q."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, beta=0.5, target=None, ignore_index=-100):
        student, teacher = (logits.float().log_softmax(-1) for logits in (student_logits, teacher_logits))
        if beta == 0:
            per_token = _divergence(teacher, student)
        elif beta == 1:
            per_token = _divergence(student, teacher)
        else:
            # of two logarithms of 0 the difference would be none; e^-1e30 is 0
            student, teacher = student.clamp(min=-1e30), teacher.clamp(min=-1e30)
            mean = torch.logaddexp(student + math.log(1 - beta), teacher + math.log(beta))
            terms = beta * teacher.exp() * (teacher - mean) + (1 - beta) * student.exp() * (student - mean)
            per_token = terms.sum(-1)
        return per_token.sum() if target is None else per_token.where(target != ignore_index, 0).sum()


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
