"""Distillation by the cosine of the angle between two models' logits."""

from __future__ import annotations

import torch

from liger_kernel.chunked_loss._distillation_form import DistillationFunction, DistillationModule

_LEAST = 1e-12  # what a length is at least


class LigerFusedLinearCosineSimilarityFunction(DistillationFunction):
    """beta·(1 - cos), cos = s·t/(max(|s|, 1e-12)·max(|t|, 1e-12)) of logits s and t; of a row of zeros cos and gradient are 0."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None, beta=1.0):
        student, teacher = student_logits.float(), teacher_logits.float()
        length = torch.linalg.vector_norm(student, dim=-1)
        lengths = length.clamp(min=_LEAST) * torch.linalg.vector_norm(teacher, dim=-1).clamp(min=_LEAST)
        cosine = ((student * teacher).sum(-1) / lengths).where(length != 0, 0)
        per_token = beta * (1 - cosine)
        return per_token.sum() if target is None else per_token.where(target != ignore_index, 0).sum()


class LigerFusedLinearCosineSimilarityLoss(DistillationModule):
    """As `LigerFusedLinearJSDLoss`, with the distance of `LigerFusedLinearCosineSimilarityFunction`."""

    function = LigerFusedLinearCosineSimilarityFunction
