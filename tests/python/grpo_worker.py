"""One of the processes of test_normaliser_of_two_processes: `grpo_worker.py RANK WORLD STORE_FILE`.

Every process has some sequences of one batch, with other numbers of tokens. What data parallelism makes of their losses and
gradients, the mean, has to be those of the whole batch.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from policy_formulas import BATCH, CISPO, DEFAULTS, HIGH, LOW, Exact, log_probs64, problem
from reference import assert_close, unit
from token_losses import LOGITS, VOCAB

from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase


def batch():
    torch.manual_seed(0)
    return problem("cpu", torch.float32)


def whole(kind):
    """The loss, the gradients of weight and bias, and what rounding errors may move the loss by: float64."""
    x, weight, bias, ids, mask, advantages = batch()
    p, (_, *parameters) = log_probs64(x, weight, bias, ids)
    right = Exact(p, mask, advantages, None, None, None, DEFAULTS | dict(loss_type=kind, beta=0.0))
    slope, *gradients = torch.autograd.grad(right.loss, (p, *parameters))
    of_log_probs = LOGITS * (slope * p).abs().sum().item()
    return (right.loss.detach(), *gradients), unit(torch.float32) * (of_log_probs + (32 + right.tokens) * right.size)


def part(kind, rows, items=None):
    x, weight, bias, ids, mask, advantages = batch()
    high = CISPO if kind == "cispo" else HIGH
    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type=kind, epsilon_low=LOW, epsilon_high=high)
    loss, _ = module(x[rows], weight, ids[rows], mask[rows], advantages[rows], bias, num_items_in_batch=items)
    return loss.detach(), *torch.autograd.grad(loss, (weight, bias))


def main():
    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    mask = batch()[4]
    tokens = int(mask.sum())
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    normalizer = LigerFusedLinearPPOBase._compute_dapo_normalizer(mask[rows])
    assert normalizer == tokens / world, normalizer
    assert LigerFusedLinearPPOBase._compute_dapo_normalizer(mask[:0], 1) == 1
    for kind in ("dapo", "cispo", "vespo"):
        (right, *gradients), allowed = whole(kind)
        for items in (None, tokens, torch.tensor(tokens)):
            loss, *found = part(kind, rows, items)
            for mine in (loss, *found):
                dist.all_reduce(mine)
                mine /= world
            assert abs(loss.item() - right.item()) <= allowed, (kind, items, loss, right, allowed)
            for mine, wanted in zip(found, gradients):
                assert_close(mine.flatten(), wanted.flatten(), torch.float32, 2 * LOGITS, VOCAB)
    dist.destroy_process_group()
    print("right")


if __name__ == "__main__":
    main()
