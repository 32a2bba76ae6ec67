"""One of the processes of test_sharded_models: `orpo_worker.py RANK WORLD STORE_FILE FOLDER`.

Every rank has the same batch, so the sharded model must give the loss and gradients of the whole one.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from test_orpo_trainer import trainer_of
from tiny_models import build
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # here, so that the process may begin as a fork
from trl.experimental import orpo  # noqa: E402

from liger_kernel.transformers.trainer import LigerORPOTrainer  # noqa: E402


def fsdp1(model):
    policy = ModuleWrapPolicy({type(model.model.layers[0])})
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=cpu, use_orig_params=True)


def fsdp2(model):
    """The head too is a unit of its own, whose weight is whole only while it is called."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=True)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def squares(model):
    """Of all gradients, over all ranks."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    local = [g.to_local() if hasattr(g, "to_local") else g for g in grads]
    return sum((g.square().sum() for g in local), torch.zeros(()))


def main(rank, world, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    whole = build("llama")
    trainer = trainer_of(LigerORPOTrainer, orpo.ORPOConfig, whole, folder)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    right, _ = trainer.concatenated_forward(whole, batch)
    right.backward()
    for shard in (fsdp1, fsdp2):
        model = shard(build("llama"))
        for _ in range(2):
            model.zero_grad()
            loss, others = trainer.concatenated_forward(model, batch)
            loss.backward()
            total = squares(model)
            dist.all_reduce(total)
            torch.testing.assert_close(loss, right)
            torch.testing.assert_close(total, squares(whole), rtol=1e-5, atol=0)
            assert len(others) == 9
        print(f"{shard.__name__} ok")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
