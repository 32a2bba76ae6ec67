"""Distillation by the cosine of the angle between two models' logits."""

from __future__ import annotations

import torch

from liger_kernel.chunked_loss._distillation_form import (
    DistillationFunction,
    DistillationModule,
    is_by_hand,
    kept_gradient,
    summed,
)

_LEAST = 1e-12  # what a length is at least


class LigerFusedLinearCosineSimilarityFunction(DistillationFunction):
    """beta·(1 - cos), cos = s·t/(max(|s|, 1e-12)·max(|t|, 1e-12)) of logits s and t; of a row of zeros cos and gradient are 0."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None, beta=1.0):
        student, teacher = student_logits.float(), teacher_logits.float()
        counts = None if target is None else target != ignore_index
        if is_by_hand(student, teacher):
            return _Distance.apply(student, teacher, beta, counts)
        return summed(beta * (1 - _cosine(student, teacher)[0]), counts)


def _cosine(student, teacher):
    """Cosines; the student's lengths; and both models' as they divide."""
    length = torch.linalg.vector_norm(student, dim=-1)
    lengths = length.clamp(min=_LEAST), torch.linalg.vector_norm(teacher, dim=-1).clamp(min=_LEAST)
    return ((student * teacher).sum(-1) / (lengths[0] * lengths[1])).where(length != 0, 0), length, lengths


class _Distance(torch.autograd.Function):
    """The same with the gradient by hand, -beta·(t/(|s||t|) - cos·s/|s|²): two walks over the logits instead of autograd's."""

    @staticmethod
    def forward(ctx, student, teacher, beta, counts):
        cosine, length, (of_student, of_teacher) = _cosine(student, teacher)
        if ctx.needs_input_grad[0]:
            has_gradient = length != 0 if counts is None else counts & (length != 0)
            along_teacher = (-beta / of_student / of_teacher).where(has_gradient, 0)
            along_student = (beta * cosine / of_student / of_student).where(has_gradient & (length >= _LEAST), 0)
            gradient = teacher * along_teacher.unsqueeze(-1)
            ctx.save_for_backward(gradient.addcmul_(student, along_student.unsqueeze(-1)))
        return summed(beta * (1 - cosine), counts)

    @staticmethod
    def backward(ctx, grad_output):
        return kept_gradient(ctx, grad_output, "LigerFusedLinearCosineSimilarityFunction")


class LigerFusedLinearCosineSimilarityLoss(DistillationModule):
    """As `LigerFusedLinearJSDLoss`, with the distance of `LigerFusedLinearCosineSimilarityFunction`."""

    function = LigerFusedLinearCosineSimilarityFunction
