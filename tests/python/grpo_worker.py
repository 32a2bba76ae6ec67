"""One of the processes of test_normaliser_of_two_processes: `grpo_worker.py RANK WORLD STORE_FILE`.

Every process has some sequences of one batch, with other numbers of tokens. What data parallelism makes of their gradients,
the mean, has to be the gradient that one process finds for the whole batch.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

SEQUENCES, TOKENS, HIDDEN, VOCAB = 4, 5, 8, 23


def batch():
    torch.manual_seed(0)
    x, weight = torch.randn(SEQUENCES, TOKENS, HIDDEN), 0.3 * torch.randn(VOCAB, HIDDEN)
    ids, advantages = torch.randint(0, VOCAB, (SEQUENCES, TOKENS)), torch.randn(SEQUENCES)
    mask = torch.arange(TOKENS) < torch.tensor([5, 1, 0, 2])[:, None]
    return x, weight, ids, mask, advantages


def gradients(kind, rows, items=None):
    x, weight, ids, mask, advantages = batch()
    weight.requires_grad_()
    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type=kind)
    loss, _ = module(x[rows], weight, ids[rows], mask[rows], advantages[rows], num_items_in_batch=items)
    loss.backward()
    return loss.detach(), weight.grad


def main():
    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    tokens = int(batch()[3].sum())
    whole = {kind: gradients(kind, slice(None)) for kind in ("dapo", "cispo", "vespo")}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    rows = slice(rank * SEQUENCES // world, (rank + 1) * SEQUENCES // world)
    normalizer = LigerFusedLinearPPOBase._compute_dapo_normalizer(batch()[3][rows])
    assert normalizer == tokens / world, normalizer
    assert LigerFusedLinearPPOBase._compute_dapo_normalizer(batch()[3][:0], 1) == 1
    for kind, expected in whole.items():
        for items in (None, tokens, torch.tensor(tokens)):
            for mine, right in zip(gradients(kind, rows, items), expected):
                dist.all_reduce(mine)
                torch.testing.assert_close(mine / world, right, rtol=2e-5, atol=1e-6, msg=lambda t, k=kind: f"{k}: {t}")
    dist.destroy_process_group()
    print("right")


if __name__ == "__main__":
    main()
