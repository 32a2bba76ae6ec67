"""The preference losses of the C library against the torch formulas of the same losses, and the example that trains with them."""

import math

import c_program
import pytest
import torch

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.chunked_loss._token_loss import sequence_log_probs
from liger_kernel.chunked_loss.cpo_loss import LigerFusedLinearCPOFunction
from liger_kernel.chunked_loss.dpo_loss import LOSSES, LigerFusedLinearDPOFunction
from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOFunction
from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction
from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOFunction

TYPES = [*LOSSES, "cpo", "simpo", "orpo", "kto"]  # in the order of liger_preference_type
SEQUENCES, TOKENS, BETA, GAMMA, SMOOTHING, TAU = 8, 12, 0.3, 0.5, 0.2, 0.05


def formula(name, log_probs, target, reference, desirable, kl, average):
    """Loss without nll, log-probabilities and rewards of the sequences, by torch."""
    answers = sequence_log_probs(log_probs, target, -100, average)
    halves = *answers.view(2, -1), target
    if name == "kto":
        loss, *_ = LigerFusedLinearKTOFunction.preference_loss_fn(answers, desirable, target, reference, BETA, kl)
        return loss, answers, BETA * (answers - reference)
    if name == "cpo":
        loss, *rewards = LigerFusedLinearCPOFunction.preference_loss_fn(*halves, BETA, SMOOTHING)
    elif name == "simpo":
        loss, *rewards = LigerFusedLinearSimPOFunction.preference_loss_fn(*halves, BETA, GAMMA, SMOOTHING)
    elif name == "orpo":
        loss, *rewards, _, _ = LigerFusedLinearORPOFunction.preference_loss_fn(*halves, BETA)
    else:
        options = BETA, name, SMOOTHING, TAU
        loss, *rewards = LigerFusedLinearDPOFunction.preference_loss_fn(*halves, *reference.view(2, -1), *options)
    return loss, answers, torch.cat(rewards)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("name", TYPES)
def test_the_torch_formula(device, name, alpha, average):
    average = average or name in ("simpo", "orpo")
    target = torch.randint(0, 9, (SEQUENCES, TOKENS), device=device)
    lengths = torch.tensor([12, 3, 0, 7, 1, 12, 5, 9], device=device)
    target[torch.arange(TOKENS, device=device) >= lengths[:, None]] = -100
    counts = target != -100
    log_probs = -torch.rand(SEQUENCES, TOKENS, device=device).where(counts, 0)
    reference, kl = -3 * torch.rand(SEQUENCES, device=device), torch.tensor(0.4, device=device)
    desirable = torch.arange(SEQUENCES, device=device) % 3 > 0
    nll_counts = counts[: SEQUENCES // 2]

    leaf = log_probs.double().requires_grad_()
    loss, answers, rewards = formula(name, leaf, target, reference.double(), desirable, kl.double(), average)
    nll = -leaf[: SEQUENCES // 2].where(nll_counts, 0).sum() / nll_counts.sum()
    if name == "kto":
        nll = torch.zeros_like(nll)
    total = loss + alpha * nll
    expected = torch.autograd.grad(total, leaf)[0].where(counts, 0)  # the head's backward leaves the others out

    found = [torch.full((), 7.0, device=device) for _ in range(2)] + [torch.empty_like(reference) for _ in range(2)]
    d = torch.full_like(log_probs, 7)
    _native.preference_loss(
        log_probs, target, None, reference, desirable, kl, None, *found, d, -100, TYPES.index(name), int(average), alpha,
        BETA, GAMMA, SMOOTHING, TAU, Wish.SCRATCH,
    )  # fmt: skip
    for got, right in zip((*found, d), (total, nll, answers, rewards, expected)):
        # a sum of 12 tokens, a difference of such, an exponential and a few products: 32 roundings, of what is about 1
        torch.testing.assert_close(got.double(), right.detach(), rtol=32 * 2.0**-24, atol=16 * 2.0**-24)


@pytest.mark.parametrize(("name", "chosen", "slope"), [("hinge", math.nan, math.nan), ("discopop", -1000.0, -math.inf)])
def test_slopes_that_are_no_numbers(device, name, chosen, slope):
    """NaN is not the slope of a margin, and what float32 does not hold is infinite, with its sign. Of the other pair: a number."""
    log_probs = torch.tensor([[chosen], [-1.0], [-1.0], [-2.0]], device=device)
    target = torch.zeros(4, 1, dtype=torch.int64, device=device)
    d = torch.empty_like(log_probs)
    _native.preference_loss(
        log_probs, target, None, None, None, None, None, None, None, None, None, d, -100, TYPES.index(name), 0, 0.0, 0.5, 0.0,
        0.0, 2.0, Wish.SCRATCH,
    )  # fmt: skip
    assert torch.equal(d[[0, 2]].flatten().nan_to_num(7), torch.tensor([slope, -slope], device=device).nan_to_num(7))
    assert d[[1, 3]].isfinite().all()


def test_the_c_example(tmp_path):
    """A head, its reference and answers of unequal length in C, whose gradients are those of finite differences."""
    said = c_program.output(c_program.ROOT / "examples" / "dpo.c", tmp_path / "dpo")
    assert said.count("agrees with finite differences") == 3
