"""The distances of distillation losses, called alone: of logits, not on heads."""

import math

import pytest
import torch
import torch.nn.functional as F
from distillation_formulas import FORMULAS, divergence
from reference import SKEW, assert_close, twins, unit

from liger_kernel.chunked_loss import _distillation_form
from liger_kernel.chunked_loss.cosine_similarity_loss import LigerFusedLinearCosineSimilarityFunction as COSINE
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction as JSD


@pytest.mark.parametrize("how", ["ordinary", "far", "equal"])
@pytest.mark.parametrize("beta", [0.03, 0.97, *SKEW])
@pytest.mark.parametrize("transformed", [False, True])
def test_digits_of_a_skew_mixture(device, monkeypatch, beta, how, transformed):
    """Loss and gradient of logits, by hand and by torch, keep the digits that those of the smaller weight's KL have."""
    monkeypatch.setattr(_distillation_form, "is_transformed", lambda: transformed)
    s, t = (4 * torch.randn(5, 131, device=device) for _ in range(2))
    if how != "far":
        s, t = s / 4, (s if how == "equal" else t) / 4
    loss = JSD.distillation_loss_fn(s.requires_grad_(), t, beta=beta)
    (gradient,) = torch.autograd.grad(loss, s)
    wide, target = twins(s, t)
    exact = divergence(wide, target, beta).sum()
    (right,) = torch.autograd.grad(exact, wide)
    log_q, log_p = wide.detach().log_softmax(-1), target.log_softmax(-1)
    each = min(beta, 1 - beta) * (log_p.exp() + log_q.exp()) * (1 + log_p.abs() + log_q.abs())
    size = each + log_q.exp() * each.sum(-1, keepdim=True)
    assert ((gradient.cpu().double() - right).abs() <= 4 * unit(torch.float32) * size).all()
    assert (loss.cpu().double() - exact).abs() <= 4 * unit(torch.float32) * each.sum()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_what_has_no_probability(device, beta):
    """0·log 0 is 0, of both models and of one; a student that rules out what the teacher may say is infinitely far."""
    s = torch.tensor([[0.0, 1.0, -math.inf, -2.0]], device=device)
    t = torch.tensor([[0.5, 1.0, -math.inf, -math.inf]], device=device)
    for student, teacher in ((s, t), (t, s)):
        leaf = student.clone().requires_grad_()
        loss = JSD.distillation_loss_fn(leaf, teacher, beta=beta)
        q, p = student.double().softmax(-1), teacher.double().softmax(-1)
        m = beta * p + (1 - beta) * q
        kl = lambda a, b: (a * (a.log() - b.log())).where(a > 0, 0).sum()  # noqa: E731
        right = kl(p, q) if beta == 0 else kl(q, p) if beta == 1 else beta * kl(p, m) + (1 - beta) * kl(q, m)
        assert loss.item() == pytest.approx(right.item(), rel=1e-5)
        if right.isfinite():
            assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


def test_rows_of_zeros_have_no_angle(device):
    """cos and gradient are 0, of either."""
    s = torch.randn(3, 8, device=device)
    t = torch.randn(3, 8, device=device)
    s[0], t[1] = 0, 0
    leaf = s.clone().requires_grad_()
    loss = COSINE.distillation_loss_fn(leaf, t)
    (gradient,) = torch.autograd.grad(loss, leaf)
    right = 2 + (1 - F.cosine_similarity(s[2], t[2], dim=0))
    assert loss.item() == pytest.approx(right.item(), rel=1e-6)
    assert not gradient[:2].any() and gradient[2].any() and gradient.isfinite().all()


@pytest.mark.parametrize("distance", [JSD, COSINE])
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_whose_gradient_is_asked_for(device, distance, who):
    """Those of the formula in float64, the teacher's as well where somebody asks for them."""
    logits = [torch.randn(5, 33, device=device) for _ in range(2)]
    labels = torch.tensor([1, -100, 2, 3, -100], device=device)
    leaves = [x.clone().requires_grad_(who in (name, "both")) for x, name in zip(logits, ("student", "teacher"))]
    loss = distance.distillation_loss_fn(*leaves, beta=0.3, target=labels, ignore_index=-100)
    wide = twins(*leaves)
    right = FORMULAS[distance](*wide, 0.3).where(labels.cpu() != -100, 0).sum()
    found = torch.autograd.grad(loss, [x for x in leaves if x.requires_grad])
    expected = torch.autograd.grad(right, [x for x in wide if x.requires_grad])
    # logarithms and exponents of 5 at most: some 16 roundings of an element, and of the sum of the loss
    assert_close(loss, right, torch.float32, 16, terms=3 * 33)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, torch.float32, 16, terms=33)
