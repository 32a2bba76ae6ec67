"""Twenty AdamW steps of a real LlamaForCausalLM, patched and not: the losses must be those of the stock model."""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import is_fused  # noqa: E402

from liger_kernel.transformers import apply_liger_kernel_to_llama  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

STEPS = 20


def train(device, dtype, patch, autocast=None, **changes):
    """The losses of STEPS steps. The data repeats after four steps, so that there is something to learn."""
    if patch == "class":
        apply_liger_kernel_to_llama()
    # A small initialisation: the comparison is about rounding, which a saturated softmax would amplify.
    model = tiny_llama.build(device, dtype, initializer_range=0.06, **changes)
    if patch == "instance":
        apply_liger_kernel_to_llama(model=model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        ids, labels = tiny_llama.batch(device, rows=4, length=17, seed=100 + step % 4)
        with torch.autocast(device.type, dtype=autocast or dtype, enabled=autocast is not None):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach().float())
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("patch", ["class", "instance"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bf16 keeps 8 bits: a loss of 4 has steps of 2**-6 in its logits, and twenty updates carry them along
    [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)],
    ids=["fp32", "bf16"],
)
def test_losses_equal_the_stock_model(device, unpatched, patch, dtype, tolerance):
    expected = train(device, dtype, patch=None)
    actual = train(device, dtype, patch=patch)
    assert expected[-1] < expected[0] - 0.5, "the stock model does not learn: the comparison would be empty"
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_gradient_checkpointing_and_tied_head(device, unpatched):
    expected = train(device, torch.float32, patch=None, tie_word_embeddings=True)
    apply_liger_kernel_to_llama()
    model = tiny_llama.build(device, initializer_range=0.06, tie_word_embeddings=True)
    model.gradient_checkpointing_enable()
    ids, labels = tiny_llama.batch(device, rows=4, length=17, seed=100)
    torch.testing.assert_close(model(input_ids=ids, labels=labels).loss.cpu(), expected[0], rtol=0, atol=1e-4)
    actual = train(device, torch.float32, patch="class", tie_word_embeddings=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_autocast_training(device, unpatched):
    expected = train(device, torch.float32, patch=None, autocast=torch.bfloat16)
    actual = train(device, torch.float32, patch="instance", autocast=torch.bfloat16)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-2)


def test_two_runs_give_the_same_bits(device, unpatched):
    first = train(device, torch.float32, patch="instance")
    assert torch.equal(train(device, torch.float32, patch="instance"), first)


def trainer_losses(device, folder, use_liger):
    """Three logged training losses and the evaluation loss of Hugging Face's Trainer, and the model."""
    from transformers import Trainer, TrainingArguments

    model = tiny_llama.build(device)
    data = [
        {"input_ids": ids, "labels": labels}
        for seed in range(8)
        for ids, labels in zip(*tiny_llama.batch(rows=1, length=11, seed=seed), strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,  # the loss is divided by the number of targets of both batches
        use_liger_kernel=use_liger,
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        prediction_loss_only=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=7,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [*losses, trainer.evaluate()["eval_loss"]], model


def test_trainer(device, unpatched, tmp_path):
    """The Trainer patches the instance when it starts to train, and evaluates without logits."""
    pytest.importorskip("accelerate", reason="needs accelerate")
    if not importlib.import_module("transformers.utils").is_liger_kernel_available():
        pytest.skip("this transformers asks the distribution's metadata, which a checkout does not have")
    expected, _ = trainer_losses(device, tmp_path, use_liger=False)
    actual, model = trainer_losses(device, tmp_path, use_liger=True)
    assert len(expected) == 4 and is_fused(model)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)
