"""One of the processes of test_sharded_head_in_two_processes: `sharded_head_worker.py RANK WORLD STORE_FILE`.

The output head is a unit of its own, so its weight is whole only while the head is called, in forward and in backward.
Every rank has the same batch, so the sharded model must give the loss and gradients of the unsharded one.
"""

from __future__ import annotations

import sys

import tiny_llama
import torch
import torch.distributed as dist

from liger_kernel.transformers import apply_liger_kernel_to_llama


def close(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5, msg=lambda text: f"{what}: {text}")


def check_fsdp2(expected, expected_gradients, inputs):
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    model = tiny_llama.build()
    fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=True)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    apply_liger_kernel_to_llama(model=model)
    for _ in range(2):
        output, gradients = tiny_llama.run(model, **inputs)
        assert output.logits is None
        close(output.loss.detach(), expected, "loss")
        for name, gradient in gradients.items():
            close(gradient.full_tensor(), expected_gradients[name], name)
    model.eval()
    assert model(input_ids=inputs["input_ids"]).logits.shape[-1] == tiny_llama.VOCAB
    print("fsdp2 ok")


def check_fsdp1(expected, expected_gradients, inputs):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = tiny_llama.build()
    try:
        model.lm_head = FullyShardedDataParallel(model.lm_head, device_id=torch.device("cpu"), use_orig_params=False)
    except RuntimeError as error:
        if torch.version.cuda is None:
            raise
        print(f"fsdp1 skipped: a torch with CUDA does not shard over processors here: {error}")
        return
    apply_liger_kernel_to_llama(model=model)
    for _ in range(2):
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        assert output.logits is None
        close(output.loss.detach(), expected, "loss")
        close(model.model.embed_tokens.weight.grad, expected_gradients["model.embed_tokens.weight"], "embedding")
    half = model.lm_head._flat_param.grad
    whole = expected_gradients["lm_head.weight"].reshape(-1)
    rank, size = dist.get_rank(), half.numel()
    mine = whole[rank * size : (rank + 1) * size]
    close(half[: mine.numel()], mine, "head")
    print("fsdp1 ok")


def main():
    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    ids, labels = tiny_llama.batch()
    inputs = dict(input_ids=ids, labels=labels)
    output, gradients = tiny_llama.run(tiny_llama.build(), **inputs)
    expected = output.loss.detach()
    check_fsdp2(expected, gradients, inputs)
    check_fsdp1(expected, gradients, inputs)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
