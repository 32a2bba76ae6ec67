"""A patched instance is copied, pickled, sent to other processes and replicated like any module: each runs its own weights."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading

import own_process
import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import assert_close, assert_same_step  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerRMSNorm,
    LigerSwiGLUMLP,
    apply_liger_kernel_to_llama,
    revert_liger_kernel,
)

pytestmark = pytest.mark.usefixtures("unpatched")


def patched(**changes):
    model = tiny_llama.build(**changes)
    apply_liger_kernel_to_llama(model=model)
    return model


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle 0": lambda model: pickle.loads(pickle.dumps(model, 0)),
    "pickle 1": lambda model: pickle.loads(pickle.dumps(model, 1)),
    "torch.save": saved_and_loaded,
}


def scale_weights(model):
    """A copy that ran the original's weights would not show it."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.detach() * 0.5)


@pytest.mark.parametrize("way", sorted(COPIES))
def test_a_copy_is_patched_runs_its_own_weights_and_reverts_by_itself(way):
    model, (ids, labels) = patched(), tiny_llama.batch()
    before = tiny_llama.run(model, input_ids=ids, labels=labels)
    twin = COPIES[way](model)
    if way == "copy.copy":  # shares its children: only what is its own can differ
        twin._modules = dict(twin._modules, lm_head=copy.deepcopy(twin.lm_head))
        twin.lm_head.weight.data *= 0.5
    else:
        assert_same_step(tiny_llama.run(twin, input_ids=ids, labels=labels), before)
        scale_weights(twin)
    stock = tiny_llama.build()
    stock.load_state_dict(twin.state_dict())
    assert_close(twin(input_ids=ids, labels=labels).loss, stock(input_ids=ids, labels=labels).loss)
    assert twin(input_ids=ids, labels=labels).logits is None
    if way != "copy.copy":
        assert twin.model.norm.forward.__func__ is LigerRMSNorm.forward
        assert twin.model.layers[0].mlp.forward.__func__ is LigerSwiGLUMLP.forward
    revert_liger_kernel(twin)
    assert twin(input_ids=ids, labels=labels).logits is not None
    assert type(twin) is type(stock)
    assert tiny_llama.run(model, input_ids=ids, labels=labels)[0].logits is None


class MadeOfItsConfig(LlamaForCausalLM):
    """`__new__` wants what `__init__` is given; copies and pickles ask for it."""

    def __new__(cls, config):
        made = super().__new__(cls)
        made.__dict__["made_of"] = config
        return made

    def __getnewargs__(self):
        return (self.made_of,)


class MadeOfNames(MadeOfItsConfig):
    def __new__(cls, *, config):
        return super().__new__(cls, config)

    def __init__(self, *, config):
        super().__init__(config)

    def __getnewargs_ex__(self):
        return (), {"config": self.made_of}


@pytest.mark.parametrize("way", sorted(COPIES))
@pytest.mark.parametrize("cls", [MadeOfItsConfig, MadeOfNames])
def test_a_copy_is_made_of_what_the_class_asks_for(cls, way):
    (ids, labels), config = tiny_llama.batch(), tiny_llama.config()
    torch.manual_seed(0)
    model = cls(config) if cls is MadeOfItsConfig else cls(config=config)
    apply_liger_kernel_to_llama(model=model.train())
    before = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert_same_step(tiny_llama.run(COPIES[way](model), input_ids=ids, labels=labels), before)


def replicate(model, scale):
    """What torch.nn.DataParallel does with each module for a device, with weights of the replica's own."""
    replica = model._replicate_for_data_parallel()
    replica._parameters = {n: None if p is None else p.detach() * scale for n, p in model._parameters.items()}
    replica._modules = {name: replicate(child, scale) for name, child in model._modules.items()}
    return replica


def test_a_replica_runs_its_own_weights():
    model, (ids, labels) = patched(), tiny_llama.batch()
    stock = tiny_llama.build()
    for parameter in stock.parameters():
        parameter.data *= 0.5
    with torch.no_grad():
        replica = replicate(model, 0.5)
        assert_close(replica(input_ids=ids, labels=labels).loss, stock(input_ids=ids, labels=labels).loss)


def test_data_parallel_equals_one_gpu(device):
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    ids, labels = tiny_llama.batch("cuda", rows=4, ignored=-1)  # as many targets in each half
    expected = tiny_llama.run(patched().cuda(), input_ids=ids, labels=labels)
    model = patched().cuda()
    parallel = torch.nn.DataParallel(model)
    model.zero_grad(set_to_none=True)
    output = parallel(input_ids=ids, labels=labels, use_cache=False)
    assert output.logits is None and output.loss.shape == (2,)
    loss = output.loss.mean()
    loss.backward()
    assert_close(loss, expected[0].loss)
    for name, gradient in tiny_llama.gradients(model).items():
        assert_close(gradient, expected[1][name], 1e-4)


def test_spawned_processes_get_the_patched_model(tmp_path):
    """multiprocessing's spawn pickles its arguments with its own pickler."""
    script = tmp_path / "spawned.py"
    script.write_text(
        """
import multiprocessing, sys
import tiny_llama, torch
from liger_kernel.transformers import apply_liger_kernel_to_llama

def child(model, queue):
    ids, labels = tiny_llama.batch()
    output = model(input_ids=ids, labels=labels)
    queue.put((float(output.loss.detach()), output.logits is None))

if __name__ == "__main__":
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    ids, labels = tiny_llama.batch()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(model, queue))
    process.start()
    loss, fused = queue.get(timeout=100)
    process.join()
    assert fused and abs(loss - float(model(input_ids=ids, labels=labels).loss)) < 1e-4
    print("same")
"""
    )
    assert own_process.output(str(script)).strip().endswith("same")


def test_two_threads_get_their_own_losses():
    """A hooked head is called, with its forward redirected for one call: another thread must not see that."""
    model = patched()
    model.lm_head.register_forward_pre_hook(lambda module, args: None)
    batches = [tiny_llama.batch(seed=seed) for seed in range(2)]
    expected = [model(input_ids=ids, labels=labels).loss.detach() for ids, labels in batches]
    logits = model(input_ids=batches[0][0]).logits.detach()
    wrong = []

    def work(number):
        ids, labels = batches[number % 2]
        for _ in range(60):
            with torch.no_grad():
                if number < 2:
                    loss = model(input_ids=ids, labels=labels).loss
                    if loss.shape != () or abs(loss - expected[number]) > 1e-4:
                        wrong.append(loss)
                else:
                    got = model(input_ids=ids).logits
                    if got.shape != logits.shape:
                        wrong.append(got.shape)

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in (0, 1, 2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert "forward" not in model.lm_head.__dict__
