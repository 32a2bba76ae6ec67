"""The losses of a policy of the C library against the torch formulas of the same losses, and the example that trains with them."""

import math

import c_program
import pytest
import torch
from policy_formulas import BATCH, CISPO, HIGH, KINDS, LOW, TOKENS

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.ops import _policy_loss


@pytest.mark.parametrize("ratio_shape", [None, (BATCH, TOKENS), (BATCH, 1)])
@pytest.mark.parametrize(("kind", "level"), KINDS)
def test_the_operator_of_the_library(device, kind, level, ratio_shape):
    """liger_policy_loss is the formula in torch: the loss, both metrics and the gradient."""
    p = (torch.randn(BATCH, TOKENS, device=device) - 2).requires_grad_()
    old, reference = (p.detach() + 0.3 * torch.randn(BATCH, TOKENS, device=device) for _ in range(2))
    mask, advantages = torch.rand(BATCH, TOKENS, device=device) < 0.7, torch.randn(BATCH, device=device)
    mask[1] = False
    ratio = None if ratio_shape is None else torch.rand(ratio_shape, device=device) + 0.5
    high, items = CISPO if kind == "cispo" else HIGH, torch.tensor(20.0, device=device)
    upstream = torch.tensor(-3.0, device=device)
    beta, corrects = 0.0 if ratio is None else 0.1, ratio_shape == (BATCH, TOKENS)
    formula = _policy_loss.PolicyLoss(kind, level, beta, LOW, high, 1.1, corrects_kl=corrects)
    terms, kl, is_clipped = formula.terms(p, mask, advantages, old, reference, ratio)
    loss = _policy_loss.reduced(terms, mask, kind, TOKENS, items)
    metrics = [
        _policy_loss.masked_mean(m, mask) for m in (torch.zeros_like(p) if kl is None else kl, is_clipped.float())
    ]
    expected = loss, *metrics, *torch.autograd.grad(loss, p, upstream)

    found = [torch.full_like(result, math.nan) for result in expected]
    numbers = _policy_loss.LOSS_TYPES.index(kind), _policy_loss.LEVELS.index(level), corrects
    _native.policy_loss(
        p.detach(), mask, advantages, old, reference, ratio, items, upstream, *found, TOKENS, *numbers, beta, LOW, high, 1.1,
        *formula.sapo_temperatures, *formula.vespo_numbers, Wish.SCRATCH,
    )  # fmt: skip
    for ours, right in zip(found, expected):
        # each of the two rounds some 16 times, of what is about 1
        torch.testing.assert_close(ours, right, rtol=32 * 2.0**-24, atol=32 * 2.0**-24)


def test_a_reference_that_is_far_from_a_sequence(device):
    """exp(q - p) is no float32 number, its product with the sequence's weight is: in the loss and in the gradient."""
    p, q = torch.tensor([[-150.0, -2.0]]), torch.tensor([[-50.0, -2.0]])
    old, mask = p + torch.tensor([[100.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    wide = p.double().requires_grad_()
    x = q.double() - wide
    weight = (wide - old.double()).mean().exp()
    right = (weight * (x.exp() - x - 1)).mean()
    (slope,) = torch.autograd.grad(right, wide)
    loss, d = torch.empty((), device=device), torch.empty(1, 2, device=device)
    formula = _policy_loss.PolicyLoss("bnpo", "sequence", 1.0, corrects_kl=True)
    on_device = [t.to(device) for t in (p, mask, torch.zeros(1), old, q)]
    _native.policy_loss(
        *on_device, None, None, None, loss, None, None, d, 2, _policy_loss.LOSS_TYPES.index("bnpo"), 1, 1, 1.0, 0.2, 0.2, 0.0,
        *formula.sapo_temperatures, *formula.vespo_numbers, Wish.SCRATCH,
    )  # fmt: skip
    allowed = 8 * 150 * 2.0**-24  # of an exponent of numbers up to 150
    assert abs(loss.item() / right.item() - 1) <= allowed
    assert ((d.cpu().double() - slope).abs() <= allowed * slope.abs().max()).all()


def test_the_c_example(tmp_path):
    """A step of GRPO in C, whose gradients are those of finite differences."""
    said = c_program.output(c_program.ROOT / "examples" / "grpo.c", tmp_path / "grpo")
    assert said.count("agrees with finite differences") == 2
