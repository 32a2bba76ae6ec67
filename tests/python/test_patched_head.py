"""Output heads that are more than an nn.Linear: the loss is computed inside their call, or logits are materialised."""

from __future__ import annotations

import copy
import importlib
import pathlib
import sys

import own_process
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import (  # noqa: E402
    assert_close,
    assert_same_step,
    assert_trains_alike,
    is_fused,
    pair,
    warnings_of,
)

from liger_kernel.transformers import (  # noqa: E402
    LigerRMSNorm,
    _apply_liger_kernel_to_instance,
    apply_liger_kernel_to_llama,
    revert_liger_kernel,
)
from liger_kernel.transformers.model import lm_head  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")


def by_fsdp(hook):
    """The hook, as one of a wrapper that is known to hand on what comes out of a head."""

    def known(*args):
        return hook(*args)

    known.__module__ = "torch.distributed.fsdp._fully_shard._fsdp_state"
    return known


class Gathered:
    """A head whose weight is there only while it is called, and whose backward needs what came out of the call."""

    def __init__(self, head):
        self.full, self.events = head.weight.data, []
        head.weight.data = torch.empty(0, device=self.full.device)
        head.register_forward_pre_hook(self.gather)
        head.register_forward_hook(by_fsdp(self.release), always_call=True)

    def gather(self, head, args):
        self.events.append("gather")
        head.weight.data = self.full

    def release(self, head, args, output):
        self.events.append("release")
        head.weight.data = torch.empty(0, device=self.full.device)
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: self.events.append("backward"))


def test_a_hooked_head_is_called(device):
    model = tiny_llama.build(device)
    ids, labels = tiny_llama.batch(device)
    expected = model(input_ids=ids, labels=labels).loss
    apply_liger_kernel_to_llama(model=model)
    model.lm_head.weight.requires_grad_(False)
    gathered = Gathered(model.lm_head)
    output = model(input_ids=ids, labels=labels, return_token_accuracy=True)
    assert output.logits is None and output.token_accuracy is not None
    assert_close(output.loss, expected)
    output.loss.backward()
    assert gathered.events == ["gather", "release", "backward"]
    assert "forward" not in model.lm_head.__dict__


def test_a_weight_that_is_not_there_is_an_error():
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    patched.lm_head.weight.data = torch.empty(0)
    patched.lm_head.register_forward_hook(by_fsdp(lambda *_: None))
    with pytest.raises(RuntimeError, match="not there in full"):
        patched(input_ids=ids, labels=labels)
    assert "forward" not in patched.lm_head.__dict__


def test_mixed_precision_of_the_unit_does_not_round_the_loss():
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    exact = patched(input_ids=ids, labels=labels).loss
    patched.lm_head.register_forward_hook(by_fsdp(lambda module, args, output: output.bfloat16()))
    output, gradients = tiny_llama.run(patched, input_ids=ids, labels=labels)
    assert output.loss.dtype == torch.float32 and torch.equal(output.loss, exact)
    assert gradients["lm_head.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("break_head", "reason"),
    [
        (lambda head: nn.Sequential(head, nn.Identity()), "Sequential"),
        (lambda head: _with_forward(head), "wrapped"),
        (lambda head: _int8(head), "int8"),
        (lambda head: _Doubled(head), "forward of its own"),
    ],
)
def test_other_heads_materialise_logits_and_say_why(break_head, reason, caplog):
    stock, patched = pair()
    ids, labels = tiny_llama.batch()
    for model in (stock, patched):
        model.lm_head = break_head(model.lm_head)
    assert reason in lm_head.obstacle(patched.lm_head)
    if reason == "int8":
        return  # nothing here computes with it
    expected = stock(input_ids=ids, labels=labels)
    for _ in range(2):
        output = patched(input_ids=ids, labels=labels)
        assert_close(output.loss, expected.loss)
        assert_close(output.logits, expected.logits)
    assert len(warnings_of(caplog)) == 1 and reason in warnings_of(caplog)[0]


class _Doubled(nn.Linear):
    def __init__(self, head):
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight

    def forward(self, x):
        return 2 * super().forward(x)


def _with_forward(head):
    own = head.forward
    head.forward = lambda x: own(x).float()
    return head


def _int8(head):
    head.weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.int8), requires_grad=False)
    return head


def test_offloaded_head():
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, (ids, labels) = tiny_llama.build(), tiny_llama.batch()
    expected = model(input_ids=ids, labels=labels).loss
    accelerate.cpu_offload(model.lm_head, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.device.type == "meta"
    apply_liger_kernel_to_llama(model=model)
    output = model(input_ids=ids, labels=labels)
    assert output.logits is None
    assert_close(output.loss, expected)


def test_peft_trained_copy_of_the_head():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids, labels = tiny_llama.batch()
    peft_config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    models = []
    for patched in (False, True):
        model = peft.get_peft_model(tiny_llama.build(), peft_config, adapter_name="mine")
        torch.manual_seed(3)
        with torch.no_grad():
            copied = model.base_model.model.lm_head.modules_to_save["mine"]
            copied.weight.add_(0.1 * torch.randn_like(copied.weight))
        if patched:
            _apply_liger_kernel_to_instance(model=model.get_base_model())
            assert model.base_model.model.model.norm.modules_to_save["mine"].forward.__func__ is LigerRMSNorm.forward
        models.append(model.train())
    stock, model = models
    output, gradients = assert_trains_alike(model, stock, 1e-4)
    assert output.logits is None
    assert any("lm_head.modules_to_save" in name for name in gradients)
    with stock.disable_adapter(), model.disable_adapter():
        base, ours = (m(input_ids=ids, labels=labels).loss for m in (stock, model))
    assert_close(ours, base)
    assert abs(base - output.loss) > 1e-3


def test_peft_lora_on_the_head_materialises(caplog):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids, labels = tiny_llama.batch()
    lora = peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    torch.manual_seed(5)
    stock = peft.get_peft_model(tiny_llama.build(), lora)
    model = copy.deepcopy(stock)
    apply_liger_kernel_to_llama(model=model)  # a PeftModel is looked through
    assert is_fused(model.get_base_model())
    output, _ = assert_trains_alike(model, stock, 1e-4)
    assert output.logits is not None
    assert len(warnings_of(caplog)) == 1 and "PEFT" in warnings_of(caplog)[0]
    revert_liger_kernel(model)
    assert not is_fused(model.get_base_model())


class Counted(nn.Module):
    """A parametrization with a state: each evaluation gives another weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, weight):
        self.count += 1
        return weight * (1 + 0.1 * self.count)


class Dropped(nn.Module):
    def forward(self, weight):
        return nn.functional.dropout(weight, 0.3, self.training)


@pytest.mark.parametrize("parametrization", [Counted, Dropped])
def test_a_parametrized_weight_is_evaluated_once_a_step(parametrization):
    stock, patched = pair()
    ids, labels = tiny_llama.batch()
    steps = []
    for model in (stock, patched):
        parametrize.register_parametrization(model.lm_head, "weight", parametrization())
        torch.manual_seed(4)
        steps.append([tiny_llama.run(model, input_ids=ids, labels=labels) for _ in range(2)])
    for expected, step in zip(*steps, strict=True):
        assert_same_step(step, expected, 1e-4)
    assert step[0].logits is None


def of_linears(hook):
    """The hook, for heads and what they are wrapped in alone."""

    def hooked(module, args, *output):
        inner = lm_head.unwrap_peft(module)
        if isinstance(inner, nn.Linear) and inner.out_features == tiny_llama.VOCAB:
            return hook(module, args, *output)

    return hooked


@pytest.mark.filterwarnings("ignore:.*[Bb]ackward hook")  # torch's, of the hook on modules whose output is no tensor
@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_global_hooks_run_as_with_stock(kind, wrapped):
    if wrapped:
        stock, patched = peft_pair()
    else:
        stock, patched = pair()
    seen = []

    @of_linears
    def hook(module, args, *output):
        seen.append(type(module).__name__)
        return (args[0] * 2,) if kind == "forward_pre_hook" else None

    handle = getattr(nn.modules.module, f"register_module_{kind}")(hook)
    try:
        assert_trains_alike(patched, stock, 1e-4)
    finally:
        handle.remove()
    assert seen and seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def peft_pair():
    """(stock, patched), both with a trained copy of the head."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(peft.get_peft_model(tiny_llama.build(), config).train())
    apply_liger_kernel_to_llama(model=models[1])
    return models


def hooked_before(head):
    head.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def hooked_before_inside(head):
    lm_head.unwrap_peft(head).register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def hooked_behind(head):
    head.register_forward_hook(lambda module, args, output: output / 2)


def with_another_forward(head):
    own = head.forward
    head.forward = lambda x, *args, **kwargs: 2 * own(x, *args, **kwargs)


@pytest.mark.parametrize("change", [hooked_before, hooked_before_inside, hooked_behind, with_another_forward])
def test_what_stands_on_the_wrapper_of_a_trained_copy_runs(change, caplog):
    models = peft_pair()
    for model in models:
        change(model.get_base_model().lm_head)
    output, _ = assert_trains_alike(models[1], models[0], 1e-4)
    fused = change in (hooked_before, hooked_before_inside)
    assert (output.logits is None) is fused
    assert len(warnings_of(caplog)) == (not fused)
    for model in models:
        assert "_Redirection" not in repr(model.get_base_model().lm_head.__dict__)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file store")
def test_sharded_head_in_two_processes(tmp_path):
    if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip(f"FSDP2 of torch {torch.__version__} needs a GPU")
    worker = pathlib.Path(__file__).with_name("sharded_head_worker.py")
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [own_process.start(worker, rank, 2, tmp_path / "store", **environment) for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output + errors
        assert "fsdp2 ok" in output, output
        assert "fsdp1 ok" in output or (torch.version.cuda and "fsdp1 skipped" in output), output
