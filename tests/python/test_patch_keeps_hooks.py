"""Heads that are no nn.Module of Python's, hooks and wrappers: what others have hung on a model is called as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import (  # noqa: E402
    apply,
    assert_as_stock,
    assert_close,
    assert_same_step,
    both_ways,
    warnings_of,
)

from liger_kernel.transformers import apply_liger_kernel_to_llama, revert_liger_kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")


# ---- heads and modules that are no nn.Module of Python's ---------------------------------------------------------------


def head_is_a_function(model):
    model.weight = model.lm_head.weight
    del model.lm_head
    model.lm_head = lambda hidden: 2 * hidden @ model.weight.T


@both_ways
@pytest.mark.parametrize("after", [False, True])
def test_a_head_that_is_a_function_is_called(after, way, caplog):
    def build():
        model = tiny_llama.build()
        if not after:
            head_is_a_function(model)
        return model

    ids, labels = tiny_llama.batch()
    models = [tiny_llama.build(), apply(build, way)]
    for model in models:
        if "weight" not in model._parameters:
            head_is_a_function(model)
    expected, step = (tiny_llama.run(model, input_ids=ids, labels=labels) for model in models)
    assert_same_step(step, expected, 1e-4)
    assert any("function" in text for text in warnings_of(caplog)), warnings_of(caplog)


def scripted(path):
    def change(model):
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, torch.jit.script(model.get_submodule(path)))

    return change


@both_ways
@pytest.mark.parametrize("path", ["lm_head", "model.norm", "model.layers.0.mlp", "model.layers.0.mlp.gate_proj"])
def test_a_scripted_module_stays(path, way, caplog):
    ids, labels = tiny_llama.batch()
    stock = tiny_llama.build()
    scripted(path)(stock)
    expected = tiny_llama.run(stock, input_ids=ids, labels=labels)

    def build():
        model = tiny_llama.build()
        scripted(path)(model)
        return model

    model = apply(build, way)
    assert_same_step(tiny_llama.run(model, input_ids=ids, labels=labels), expected, 1e-4)
    revert_liger_kernel()
    revert_liger_kernel(model)
    assert_same_step(tiny_llama.run(model, input_ids=ids, labels=labels), expected, 1e-4)


# ---- hooks and wrappers ----------------------------------------------------------------------------------------------


def halve(module, args, output):
    return output / 2


def mask(module, args, output):
    return output.index_fill(-1, torch.tensor([90, 91]), -1e4)


@both_ways
@pytest.mark.parametrize("hook", [halve, mask])
def test_a_hook_of_the_head_sees_logits(hook, way, caplog):
    def build():
        model = tiny_llama.build()
        model.lm_head.register_forward_hook(hook)
        return model

    assert assert_as_stock(build, way, caplog, "hook").logits is not None


@both_ways
@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_of_the_head_sees_logits(kind, way, caplog):
    seen = []

    def build():
        model = tiny_llama.build()
        getattr(model.lm_head, kind)(lambda module, *gradients: seen.append(gradients[-1][0].shape))
        return model

    assert_as_stock(build, way, caplog, "hook")
    assert seen == [(2, 9, tiny_llama.VOCAB)] * 2


@both_ways
def test_a_global_hook_sees_logits(way, caplog):
    seen = []

    def hook(module, args, output):
        if isinstance(module, nn.Linear) and module.out_features == tiny_llama.VOCAB:
            seen.append(output.shape)
            return output / 2

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        assert_as_stock(tiny_llama.build, way, caplog, "hook")
    finally:
        handle.remove()
    assert seen == [(2, 9, tiny_llama.VOCAB)] * 2


@both_ways
def test_a_pre_hook_of_the_head_changes_its_input(way, caplog):
    def build():
        model = tiny_llama.build()
        model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
        return model

    assert assert_as_stock(build, way, caplog).logits is None


def looks_ahead():
    """A hook that calls the module which it stands before."""
    busy = []

    def hook(module, args):
        if busy:
            return None
        busy.append(True)
        logits = module(args[0])
        busy.clear()
        assert logits.shape[-1] == tiny_llama.VOCAB
        return (args[0] * logits.detach().std(),)

    return hook


@both_ways
def test_a_pre_hook_may_call_its_head(way, caplog):
    def build():
        model = tiny_llama.build()
        model.lm_head.register_forward_pre_hook(looks_ahead())
        return model

    assert assert_as_stock(build, way, caplog).logits is None


@both_ways
def test_a_flop_counter_sees_what_the_stock_model_does(way, caplog):
    from torch.utils.flop_counter import FlopCounterMode

    (ids, labels), counts = tiny_llama.batch(), []
    for build in (tiny_llama.build, lambda: apply(tiny_llama.build, way)):
        model = build()
        with FlopCounterMode(display=False) as counter:
            output = model(input_ids=ids, labels=labels)
            output.loss.backward()
        counts.append(counter.get_total_flops())
        assert output.logits is not None
    assert counts[0] == counts[1] > 0
    assert len(warnings_of(caplog)) == 1 and "hook" in warnings_of(caplog)[0]


def prepared(model):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    return accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)


@pytest.mark.parametrize("order", ["before", "after"])
def test_mixed_precision_of_accelerate_is_fused(order, caplog):
    ids, labels = tiny_llama.batch()
    expected, expected_gradients = tiny_llama.run(prepared(tiny_llama.build()), input_ids=ids, labels=labels)
    model = tiny_llama.build()
    model = prepared(model) if order == "before" else model
    before = dict(model.__dict__)
    apply_liger_kernel_to_llama(model=model)
    apply_liger_kernel_to_llama(model=model)
    model = model if order == "before" else prepared(model)
    output, gradients = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert output.logits is None and output.loss.dtype == torch.float32
    assert_close(output.loss, expected.loss, 2e-2)
    for name, gradient in expected_gradients.items():
        assert_close(gradients[name], gradient, 5e-2)
    assert warnings_of(caplog) == []
    revert_liger_kernel(model)
    if order == "before":
        assert {n: v for n, v in model.__dict__.items() if "forward" in n} == {
            n: v for n, v in before.items() if "forward" in n
        }
    assert tiny_llama.run(model, input_ids=ids, labels=labels)[0].logits is not None
    unwrapped = __import__("accelerate").utils.extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert_close(unwrapped(input_ids=ids, labels=labels).loss, tiny_llama.build()(input_ids=ids, labels=labels).loss)


def test_a_compiled_forward_is_named(caplog):
    model = tiny_llama.build()
    model.forward = torch.compile(model.forward, backend="eager")
    apply_liger_kernel_to_llama(model=model)
    assert len(warnings_of(caplog)) == 1 and "torch.compile" in warnings_of(caplog)[0]
    assert "parallelism" not in warnings_of(caplog)[0]


def test_an_unknown_wrapper_is_named(caplog):
    model = tiny_llama.build()
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    apply_liger_kernel_to_llama(model=model)
    assert len(warnings_of(caplog)) == 1 and __name__ in warnings_of(caplog)[0]
