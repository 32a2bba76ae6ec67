"""LigerORPOTrainer against TRL's own: loss, metrics and gradients of a batch, and training."""

from __future__ import annotations

import importlib.util
import pathlib

import own_process
import pytest
import torch
from tiny_models import build

for package in ("transformers", "trl", "datasets", "pandas"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

ROWS = [
    {"prompt": "w5 w6 w7", "chosen": "w8 w9 w10 w11", "rejected": "w20 w21"},
    {"prompt": "w30", "chosen": "w31 w32", "rejected": "w33 w34 w35 w36 w37"},
]


@pytest.fixture(scope="module")
def classes():
    from trl.experimental import orpo

    from liger_kernel.transformers.trainer import LigerORPOTrainer

    return orpo.ORPOConfig, orpo.ORPOTrainer, LigerORPOTrainer


def trainer_of(kind, config_class, model, folder, **options):
    from datasets import Dataset
    from word_tokenizer import words

    arguments = config_class(
        output_dir=str(folder), max_length=24, per_device_train_batch_size=2, max_steps=3, report_to="none", use_cpu=True,
        save_strategy="no", bf16=False, beta=0.3, remove_unused_columns=False, logging_steps=1, disable_tqdm=True, **options,
    )  # fmt: skip
    return kind(model=model, args=arguments, train_dataset=Dataset.from_list(ROWS), processing_class=words(90))


def of_batch(trainer, train_eval):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, train_eval)
    loss.backward()
    return loss, metrics, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("mixtral", {"output_router_logits": True})])
@pytest.mark.parametrize("train_eval", ["train", "eval"])
def test_the_numbers_of_trls_trainer(classes, tmp_path, family, changes, train_eval):
    config, theirs, ours = classes
    found = []
    for kind in (ours, theirs):
        model = build(family)
        for name, value in changes.items():
            setattr(model.config, name, value)
        found.append(of_batch(trainer_of(kind, config, model, tmp_path), train_eval))
    (loss, metrics, gradients), (right, wanted, others) = found
    assert loss.item() == pytest.approx(right.item(), rel=2e-6)
    assert metrics.keys() == wanted.keys()
    for name, value in metrics.items():
        assert value == pytest.approx(wanted[name], rel=1e-5, abs=2e-6), name
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 1e-5 * others[name].norm() + 1e-8, name


def test_training(classes, tmp_path):
    config, _, ours = classes
    model = build("llama")
    trainer = trainer_of(ours, config, model, tmp_path, learning_rate=1e-2)
    before = of_batch(trainer, "train")[0].item()
    trainer.train()
    assert of_batch(trainer, "train")[0].item() < before
    assert model(input_ids=torch.tensor([[4, 5, 6]])).logits.shape[:2] == (1, 3)


def test_a_replica_takes_part_in_the_reduction(classes, tmp_path):
    """The loss is made in the place of the wrapped model's forward: past it DistributedDataParallel would reduce nothing."""
    from torch import distributed

    config, _, ours = classes
    trainer, reduced = trainer_of(ours, config, build("llama"), tmp_path), []

    def hook(_state, bucket):
        reduced.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        replica = torch.nn.parallel.DistributedDataParallel(trainer.model)
        replica.register_comm_hook(None, hook)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.concatenated_forward(replica, batch)[0].backward()
        del replica
    finally:
        distributed.destroy_process_group()
    assert sum(reduced) == sum(p.numel() for p in trainer.model.parameters())


def test_sharded_models(tmp_path):
    if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard") or torch.version.cuda:
        pytest.skip("needs FSDP2, and a torch without CUDA, in which FSDP1 shards on the CPU")
    worker = pathlib.Path(__file__).with_name("orpo_worker.py")
    processes = [own_process.start(worker, rank, 2, tmp_path / "store", tmp_path) for rank in range(2)]
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output + errors
        assert "fsdp1 ok" in output and "fsdp2 ok" in output


def test_a_head_with_an_adapter_is_refused(classes, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft")
    config, _, ours = classes
    for modules, is_right in ((["q_proj", "v_proj"], True), (["q_proj", "lm_head"], False)):
        model = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=modules))
        trainer = trainer_of(ours, config, model, tmp_path)
        if is_right:
            assert of_batch(trainer, "train")[2].keys()
            continue
        with pytest.raises(ValueError, match="cannot be fused .* a PEFT adapter"):
            of_batch(trainer, "train")
