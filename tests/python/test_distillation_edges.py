"""Losses on two heads: rows that do not count may hold anything, distances may write, and what is refused."""

import math

import pytest
import torch

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase


@pytest.mark.parametrize(
    "loss", [chunked_loss.LigerFusedLinearJSDLoss, chunked_loss.LigerFusedLinearCosineSimilarityLoss]
)
def test_a_teacher_that_is_no_number_where_nothing_counts(device, loss):
    """Compiled and transformed, too."""
    x, weight = torch.randn(4, 8, device=device), torch.randn(11, 8, device=device)
    teacher, head = torch.randn(4, 6, device=device), torch.randn(11, 6, device=device)
    teacher[1], labels = math.nan, torch.tensor([1, -100, 2, 3], device=device)

    def run(x, weight):
        return loss()(x, weight, teacher, head, labels)

    found = []
    for form in (run, torch.compile(run, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        found.append(torch.autograd.grad(form(*leaves), leaves))
    found.append(torch.func.grad(run, (0, 1))(x, weight))
    for gradients in found:
        for one, right in zip(gradients, found[0]):
            # sums of 4 rows and of 11 classes, of what is about 1: some 32 roundings by each form
            torch.testing.assert_close(one, right, rtol=64 * 2.0**-24, atol=64 * 2.0**-24)


def test_a_distance_that_writes_over_its_arguments():
    """Without a gradient it may, and the hard loss is none of its business."""

    class InPlace(LigerFusedLinearDistillationBase):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
            return student_logits.sub_(teacher_logits).square_().sum()

        @classmethod
        def forward(cls, ctx, *args):
            return super().forward(cls, ctx, *args, return_soft_hard_loss=True)

        @staticmethod
        def backward(ctx, *upstreams):
            return LigerFusedLinearDistillationBase.backward(ctx, *upstreams)

    x, weight, labels = torch.randn(4, 8), torch.randn(11, 8), torch.tensor([1, 0, 2, 3])
    _, _, hard = InPlace.apply(x, weight, torch.randn(4, 8), weight, labels, None, None)
    right = torch.nn.functional.cross_entropy(x @ weight.t(), labels)
    torch.testing.assert_close(hard, right, rtol=64 * 2.0**-24, atol=0)


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_a_beta_that_is_no_weight(beta):
    with pytest.raises(ValueError, match="beta is"):
        chunked_loss.LigerFusedLinearJSDLoss(beta=beta)(*(torch.randn(3, 4),) * 4, torch.tensor([0, 1, 2]))
