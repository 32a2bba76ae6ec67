"""Patching Llama: what is replaced, what is put back, and that the fused-loss forward means what Hugging Face's means."""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import logging
import os
import pathlib
import subprocess
import sys
import types
import weakref
from unittest import mock

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerRMSNorm,
    LigerSwiGLUMLP,
    _apply_liger_kernel,
    _apply_liger_kernel_to_instance,
    apply_liger_kernel_to_llama,
    liger_rotary_pos_emb,
    revert_liger_kernel,
)
from liger_kernel.transformers import functional as liger_functional  # noqa: E402
from liger_kernel.transformers.model import causal_lm, llama, lm_head, loss_utils  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

ALL_OFF = dict(rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=False, swiglu=False)


def only(**flags):
    return {**ALL_OFF, **flags}


def module_state():
    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    return {
        **{name: getattr(modeling_llama, name) for name in names},
        "forward": modeling_llama.LlamaForCausalLM.forward,
        "cross_entropy": torch.nn.functional.cross_entropy,
    }


def instance_state(model):
    return {name: dict(m.__dict__, _parameters=None, _modules=None) for name, m in model.named_modules()}


def assert_close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_gradients(actual, expected, tolerance=2e-5):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=tolerance, atol=tolerance, msg=f"{name} differs")


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("liger")]


# ---- what is replaced ------------------------------------------------------------------------------------------------


def test_class_level_replaces_and_reverts():
    before = module_state()
    apply_liger_kernel_to_llama()
    assert modeling_llama.apply_rotary_pos_emb is liger_rotary_pos_emb
    assert modeling_llama.LlamaRMSNorm is LigerRMSNorm
    assert modeling_llama.LlamaMLP is LigerSwiGLUMLP
    assert modeling_llama.LlamaForCausalLM.forward is llama.lce_forward
    assert torch.nn.functional.cross_entropy is before["cross_entropy"]
    model = tiny_llama.build()
    assert isinstance(model.model.norm, LigerRMSNorm) and isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    revert_liger_kernel()
    assert module_state() == before
    revert_liger_kernel()
    assert module_state() == before


@pytest.mark.parametrize("flag", ["rope", "rms_norm", "swiglu", "fused_linear_cross_entropy", "cross_entropy"])
def test_class_level_flags_touch_only_what_they_name(flag):
    slots = {
        "rope": "apply_rotary_pos_emb",
        "rms_norm": "LlamaRMSNorm",
        "swiglu": "LlamaMLP",
        "fused_linear_cross_entropy": "forward",
        "cross_entropy": "cross_entropy",
    }
    before = module_state()
    apply_liger_kernel_to_llama(**only(**{flag: True}))
    changed = {name for name, value in module_state().items() if value is not before[name]}
    assert changed == {slots[flag]}


def test_none_counts_as_false():
    before = module_state()
    apply_liger_kernel_to_llama(None, None, None, None, None)
    assert module_state() == before


def test_the_two_losses_exclude_each_other():
    before = module_state()
    with pytest.raises(AssertionError, match="cannot both be True"):
        apply_liger_kernel_to_llama(cross_entropy=True, fused_linear_cross_entropy=True)
    assert module_state() == before


def test_instance_level_touches_only_the_instance():
    patched, other = tiny_llama.build(), tiny_llama.build()
    before, other_before = module_state(), instance_state(other)
    apply_liger_kernel_to_llama(model=patched)
    after = module_state()
    assert after.pop("apply_rotary_pos_emb") is liger_rotary_pos_emb  # reached only through this name
    before.pop("apply_rotary_pos_emb")
    assert after == before
    assert instance_state(other) == other_before


def test_instance_methods_have_the_sources_of_ours():
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    source = inspect.getsource
    assert source(model.forward) == source(llama.lce_forward)
    for module in (model.model.norm, *(layer.input_layernorm for layer in model.model.layers)):
        assert source(module.forward) == source(LigerRMSNorm.forward)
        assert source(module.extra_repr) == source(LigerRMSNorm.extra_repr)
    for layer in model.model.layers:
        assert source(layer.post_attention_layernorm.forward) == source(LigerRMSNorm.forward)
        assert source(layer.mlp.forward) == source(LigerSwiGLUMLP.forward)
    shown = repr(model)
    assert "LigerRMSNorm(weight_shape=(32,), eps=1e-06, offset=0.0, in_place=True, row_mode=None)" in shown
    assert "LigerSwiGLUMLP(" in shown


@pytest.mark.parametrize("flag", ["rms_norm", "swiglu", "fused_linear_cross_entropy"])
def test_instance_flags_touch_only_what_they_name(flag):
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model, **only(**{flag: True}))
    bound = {type(m).__name__ for m in model.modules() if "forward" in m.__dict__}
    expected = {"rms_norm": "LlamaRMSNorm", "swiglu": "LlamaMLP", "fused_linear_cross_entropy": "LlamaForCausalLM"}
    assert bound == {expected[flag]}


def test_instance_revert_is_exact_and_idempotent():
    model = tiny_llama.build()
    before = instance_state(model)
    for _ in range(3):
        apply_liger_kernel_to_llama(model=model)
    revert_liger_kernel(model)
    assert instance_state(model) == before
    revert_liger_kernel(model)
    assert instance_state(model) == before


def test_revert_of_an_instance_leaves_the_others():
    one, two = tiny_llama.build(), tiny_llama.build()
    apply_liger_kernel_to_llama(model=one)
    apply_liger_kernel_to_llama(model=two)
    revert_liger_kernel(one)
    assert "forward" not in one.__dict__ and two.forward.__func__ is llama.lce_forward
    assert modeling_llama.apply_rotary_pos_emb is liger_rotary_pos_emb


def test_a_copy_is_patched_and_reverts_by_itself():
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    twin = copy.deepcopy(model)
    assert twin.forward.__self__ is twin and twin.model.norm.forward.__self__ is twin.model.norm
    revert_liger_kernel(twin)
    assert "forward" not in twin.__dict__ and "forward" not in twin.model.norm.__dict__
    assert model.forward.__func__ is llama.lce_forward


def test_a_patched_model_can_be_freed():
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


def test_third_party_replacements_are_left_alone():
    def theirs(*args, **kwargs):
        raise NotImplementedError

    original = modeling_llama.LlamaRMSNorm
    apply_liger_kernel_to_llama()
    modeling_llama.LlamaRMSNorm = theirs
    try:
        revert_liger_kernel()
        assert modeling_llama.LlamaRMSNorm is theirs
    finally:
        modeling_llama.LlamaRMSNorm = original


def test_reload_of_the_modelling_module():
    apply_liger_kernel_to_llama()
    old = modeling_llama.LlamaForCausalLM
    try:
        importlib.reload(modeling_llama)
        fresh = module_state()
        assert fresh["forward"] is not llama.lce_forward
        revert_liger_kernel()  # must not carry the old module's classes into the new one
        assert module_state() == fresh
        assert old.forward is not llama.lce_forward
        apply_liger_kernel_to_llama()
        assert modeling_llama.LlamaForCausalLM.forward is llama.lce_forward
        assert modeling_llama.LlamaRMSNorm is LigerRMSNorm
        revert_liger_kernel()
        assert module_state() == fresh
        importlib.reload(modeling_llama)
        apply_liger_kernel_to_llama()
        again = modeling_llama.LlamaForCausalLM
        importlib.reload(modeling_llama)
        fresh = module_state()
        apply_liger_kernel_to_llama()
        revert_liger_kernel()
        assert module_state() == fresh and modeling_llama.LlamaForCausalLM is not again
    finally:
        revert_liger_kernel()


def test_a_model_built_before_a_reload_is_still_patched():
    model = tiny_llama.build()
    importlib.reload(modeling_llama)
    apply_liger_kernel_to_llama(model=model)
    assert model.forward.__func__ is llama.lce_forward


def test_a_substitute_module_takes_the_class_level_patches():
    before = module_state()
    with mock.patch("transformers.models.llama.modeling_llama") as substitute:
        apply_liger_kernel_to_llama()
        assert substitute.apply_rotary_pos_emb is liger_rotary_pos_emb
        assert substitute.LlamaRMSNorm is LigerRMSNorm and substitute.LlamaMLP is LigerSwiGLUMLP
        assert substitute.LlamaForCausalLM.forward is llama.lce_forward
        model = tiny_llama.build()
        assert inspect.getsource(model.forward) != inspect.getsource(llama.lce_forward)
        _apply_liger_kernel_to_instance(model=model)
        assert inspect.getsource(model.forward) == inspect.getsource(llama.lce_forward)
        assert inspect.getsource(model.model.norm.forward) == inspect.getsource(LigerRMSNorm.forward)
    assert module_state() == before
    revert_liger_kernel()
    assert module_state() == before


def test_loss_registry_is_never_replaced():
    from transformers.loss import loss_utils as hf_loss

    model = tiny_llama.build()
    before = dict(hf_loss.LOSS_MAPPING), hf_loss.ForCausalLMLoss, type(model).loss_function, model.loss_type
    apply_liger_kernel_to_llama(model=model)
    apply_liger_kernel_to_llama()
    assert (dict(hf_loss.LOSS_MAPPING), hf_loss.ForCausalLMLoss, type(model).loss_function, model.loss_type) == before
    assert model.loss_function is hf_loss.ForCausalLMLoss


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_unknown_and_missing_model_types_warn(caplog):
    before = module_state()
    _apply_liger_kernel("no-such-type")
    _apply_liger_kernel("")
    _apply_liger_kernel_to_instance(model=nn.Linear(2, 2))
    plain = nn.Linear(2, 2)
    plain.config = {"model_type": "llama"}
    _apply_liger_kernel_to_instance(model=plain)
    assert len(warnings_of(caplog)) == 4 and "no-such-type" in warnings_of(caplog)[0]
    assert module_state() == before


def test_unsupported_flags_warn_only_if_true(caplog):
    _apply_liger_kernel("llama", geglu=False, layer_norm=None, torch_dtype="auto", **ALL_OFF)
    assert warnings_of(caplog) == []
    _apply_liger_kernel("llama", geglu=True, **ALL_OFF)
    assert len(warnings_of(caplog)) == 1 and "geglu" in warnings_of(caplog)[0]


def test_the_mapping_is_asked_at_call_time(monkeypatch):
    from liger_kernel.transformers import monkey_patch

    replacement = mock.Mock()
    replacement.__signature__ = inspect.signature(lambda rope=True, model=None: None)
    monkeypatch.setitem(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN, "llama", replacement)
    _apply_liger_kernel("llama", rope=False, swiglu=False, device_map="auto")
    replacement.assert_called_once_with(rope=False)
    model = tiny_llama.build()
    _apply_liger_kernel_to_instance(model, rope=True)
    replacement.assert_called_with(model=model, rope=True)


def test_apply_functions_are_those_of_the_mapping():
    from liger_kernel.transformers import monkey_patch

    functions = {f for n, f in vars(monkey_patch).items() if n.startswith("apply_liger_kernel_to_")}
    assert functions == set(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.values())


def test_no_warning_when_all_goes_well(caplog):
    model = tiny_llama.build()
    apply_liger_kernel_to_llama()
    apply_liger_kernel_to_llama(model=model)
    apply_liger_kernel_to_llama(model=model)
    apply_liger_kernel_to_llama(cross_entropy=True, fused_linear_cross_entropy=False)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("cls", ["LlamaModel", "LlamaForSequenceClassification"])
def test_models_without_the_head_keep_their_forward(cls, caplog):
    model = getattr(transformers, cls)(tiny_llama.config())
    apply_liger_kernel_to_llama(model=model)
    assert "forward" not in model.__dict__
    base = model if cls == "LlamaModel" else model.model
    assert base.norm.forward.__func__ is LigerRMSNorm.forward
    assert base.layers[1].mlp.forward.__func__ is LigerSwiGLUMLP.forward
    assert len(warnings_of(caplog)) == 1 and cls in warnings_of(caplog)[0]


def test_another_activation_is_not_patched(caplog):
    model = tiny_llama.build(hidden_act="gelu")
    apply_liger_kernel_to_llama(model=model)
    assert "forward" not in model.model.layers[0].mlp.__dict__
    assert any("gelu" in text for text in warnings_of(caplog))


def test_use_kernels_warns(caplog):
    model = tiny_llama.build()
    with mock.patch.object(type(model), "use_kernels", True, create=True):
        apply_liger_kernel_to_llama(model=model)
    assert any("use_kernels" in text for text in warnings_of(caplog))


def test_a_wrapped_forward_is_not_overwritten(caplog):
    model = tiny_llama.build()
    norm = model.model.norm
    inner = norm.forward
    norm.forward = wrapper = lambda x: inner(x)  # as tensor parallelism does
    apply_liger_kernel_to_llama(model=model)
    assert norm.__dict__["forward"] is wrapper and "offset" not in norm.__dict__
    assert len(warnings_of(caplog)) == 1 and "LlamaRMSNorm" in warnings_of(caplog)[0]
    assert model.model.layers[0].input_layernorm.forward.__func__ is LigerRMSNorm.forward


def test_wrapping_after_us_is_recognised(caplog):
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    ours = model.forward
    model._original_forward = ours  # as accelerate's prepare_model does
    model.forward = types.MethodType(lambda self, *a, **k: ours(*a, **k), model)
    wrapper = model.forward
    apply_liger_kernel_to_llama(model=model)  # the Trainer does so at its second train()
    assert model.forward is wrapper and warnings_of(caplog) == []


def test_accelerate_hooks_keep_working():
    hooks = pytest.importorskip("accelerate.hooks", reason="needs accelerate")

    class Count(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model, (ids, labels) = tiny_llama.build(), tiny_llama.batch()
    expected = model(input_ids=ids, labels=labels).loss
    norm_hook, head_hook, model_hook = Count(), Count(), Count()
    hooks.add_hook_to_module(model.model.norm, norm_hook)
    hooks.add_hook_to_module(model.lm_head, head_hook)
    hooks.add_hook_to_module(model, model_hook)
    apply_liger_kernel_to_llama(model=model)
    assert model.model.norm._old_forward.__func__ is LigerRMSNorm.forward
    output = model(input_ids=ids, labels=labels)
    assert output.logits is None
    assert_close(output.loss, expected)
    assert (norm_hook.calls, head_hook.calls, model_hook.calls) == (1, 1, 1)
    revert_liger_kernel(model)
    assert model.model.norm._old_forward.__func__ is modeling_llama.LlamaRMSNorm.forward
    assert_close(model(input_ids=ids, labels=labels).loss, expected)
    assert (norm_hook.calls, head_hook.calls, model_hook.calls) == (2, 2, 2)


def test_revert_below_a_hook_that_came_later():
    hooks = pytest.importorskip("accelerate.hooks", reason="needs accelerate")
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    hooks.add_hook_to_module(model.model.norm, hooks.ModelHook())
    revert_liger_kernel(model)
    assert model.model.norm._old_forward.__func__ is modeling_llama.LlamaRMSNorm.forward


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


# ---- the cross-entropy function of torch -----------------------------------------------------------------------------


def test_cross_entropy_is_replaced_in_torch_and_reverts(device):
    original = torch.nn.functional.cross_entropy
    model, (ids, labels) = tiny_llama.build(device), tiny_llama.batch(device)
    expected, expected_gradients = tiny_llama.run(model, input_ids=ids, labels=labels)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    assert torch.nn.functional.cross_entropy is not original
    with mock.patch(
        "liger_kernel.transformers.monkey_patch.liger_cross_entropy", wraps=liger_functional.liger_cross_entropy
    ) as ours:
        output, actual_gradients = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert ours.call_count == 1
    assert_close(output.loss, expected.loss)
    assert_same_gradients(actual_gradients, expected_gradients)
    revert_liger_kernel()
    assert torch.nn.functional.cross_entropy is original


def test_cross_entropy_leaves_to_torch_what_it_cannot_do(device):
    def moved(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    logits, target = torch.randn(5, 7), torch.randint(0, 7, (5,))
    cases = [  # (logits, target, options, whether it is ours)
        (logits.double(), target, {}, False),
        (logits, torch.softmax(torch.randn(5, 7), -1), {"label_smoothing": 0.1}, False),
        (torch.randn(2, 7, 3, 4), torch.randint(0, 7, (2, 3, 4)), {"ignore_index": 3}, False),
        (torch.randn(7), torch.tensor(2), {}, False),
        (logits, target, {"size_average": False}, False),
        (logits, target, {"weight": torch.rand(7), "reduction": "none"}, True),
        (logits, target, {"label_smoothing": 0.2, "reduction": "sum"}, True),
    ]
    cases = [(moved(x), moved(t), {n: moved(v) for n, v in options.items()}, ours) for x, t, options, ours in cases]
    expected = [torch.nn.functional.cross_entropy(x, t, **options) for x, t, options, _ in cases]
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    name = "liger_kernel.transformers.monkey_patch.liger_cross_entropy"
    for (x, target, options, ours), value in zip(cases, expected, strict=True):
        with mock.patch(name, wraps=liger_functional.liger_cross_entropy) as operator:
            assert_close(torch.nn.functional.cross_entropy(x, target, **options), value)
            assert operator.called == ours
            if "size_average" not in options:
                assert_close(nn.CrossEntropyLoss(**options)(x, target), value)


# ---- what the fused-loss forward means -------------------------------------------------------------------------------


def pair(device="cpu", **changes):
    """(stock model, patched model) with equal weights; the patch is the fused forward alone, to isolate it."""
    stock, patched = tiny_llama.build(device, **changes), tiny_llama.build(device, **changes)
    apply_liger_kernel_to_llama(model=patched, **only(fused_linear_cross_entropy=True))
    return stock, patched


def test_training_gives_the_loss_and_no_logits(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
    output, actual_gradients = tiny_llama.run(patched, input_ids=ids, labels=labels)
    assert output.logits is None and output.loss.ndim == 0
    assert output.token_accuracy is None and output.predicted_tokens is None
    assert_close(output.loss, expected.loss)
    assert_same_gradients(actual_gradients, expected_gradients)


def test_everything_patched_gives_the_same_gradients(device):
    stock, patched = tiny_llama.build(device), tiny_llama.build(device)
    ids, labels = tiny_llama.batch(device)
    expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
    apply_liger_kernel_to_llama(model=patched)
    output, actual_gradients = tiny_llama.run(patched, input_ids=ids, labels=labels)
    assert_close(output.loss, expected.loss)
    assert_same_gradients(actual_gradients, expected_gradients, 1e-4)


def test_evaluation_gives_logits_and_loss(device):
    stock, patched = (model.eval() for model in pair(device))
    ids, labels = tiny_llama.batch(device)
    with torch.no_grad():
        expected, output = (m(input_ids=ids, labels=labels) for m in (stock, patched))
        assert_close(output.logits, expected.logits)
        assert_close(output.loss, expected.loss)
        skipped = patched(input_ids=ids, labels=labels, skip_logits=True)
        assert skipped.logits is None
        assert_close(skipped.loss, expected.loss)
        alone = patched(input_ids=ids)
        assert alone.loss is None and alone.logits.shape == expected.logits.shape
    assert_close(output.past_key_values[0][0] if isinstance(output.past_key_values, tuple) else 0, 0)


def test_skip_logits_false_in_training(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    expected = stock(input_ids=ids, labels=labels)
    output = patched(input_ids=ids, labels=labels, skip_logits=False)
    assert_close(output.logits, expected.logits)
    assert_close(output.loss, expected.loss)


def test_skip_logits_without_targets(caplog):
    _, patched = pair()
    ids, _ = tiny_llama.batch()
    with pytest.raises(ValueError, match="skip_logits is True, but labels and shift_labels are None"):
        patched(input_ids=ids, skip_logits=True)
    patched.eval()
    for _ in range(2):
        assert patched(input_ids=ids, skip_logits=True).logits is not None
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_shift_labels(device, mode):
    stock, patched = (getattr(m, mode)() for m in pair(device))
    ids, labels = tiny_llama.batch(device)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    expected = stock(input_ids=ids, labels=labels).loss
    for given in (dict(shift_labels=shifted), dict(labels=labels, shift_labels=shifted)):
        output = patched(input_ids=ids, **given)
        assert (output.logits is None) == (mode == "train")
        assert_close(output.loss, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch(device, mode, as_tensor):
    stock, patched = (getattr(m, mode)() for m in pair(device))
    ids, labels = tiny_llama.batch(device)
    items = torch.tensor(31) if as_tensor else 31  # a tensor may be on another device
    expected = stock(input_ids=ids, labels=labels, num_items_in_batch=items).loss
    output = patched(input_ids=ids, labels=labels, num_items_in_batch=items)
    assert output.loss.ndim == 0
    assert_close(output.loss, expected)


def test_ignore_index_reaches_the_loss(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    labels = labels.masked_fill(labels == -100, 5)
    expected = stock(input_ids=ids, labels=labels, ignore_index=5).loss
    assert_close(patched(input_ids=ids, labels=labels, ignore_index=5).loss, expected)


def test_logits_to_keep(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    stock.eval(), patched.eval()
    index = torch.tensor([1, 4, 5], device=device)
    for keep in (0, 1, 4, index):
        assert_close(
            patched(input_ids=ids, logits_to_keep=keep).logits, stock(input_ids=ids, logits_to_keep=keep).logits
        )
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    full = stock(input_ids=ids).logits.float()
    patched.train()
    for keep, targets in ((4, shifted[:, -4:]), (index, shifted[:, index])):
        kept = full[:, -4:] if keep is not index else full[:, index]
        expected = nn.functional.cross_entropy(kept.reshape(-1, tiny_llama.VOCAB), targets.reshape(-1))
        assert_close(patched(input_ids=ids, shift_labels=targets, logits_to_keep=keep).loss, expected)


def test_two_dimensional_logits_to_keep(device):
    modeling_utils = importlib.import_module("transformers.modeling_utils")
    if not hasattr(modeling_utils, "slice_logits_to_keep"):
        pytest.skip(f"transformers {transformers.__version__} has no two-dimensional logits_to_keep")
    stock, patched = (m.eval() for m in pair(device))
    ids, _ = tiny_llama.batch(device)
    positions = torch.tensor([[0, 3], [2, 8]], device=device)
    keep_mask = torch.zeros_like(ids, dtype=torch.bool)
    keep_mask[0, 2] = keep_mask[1, 1] = keep_mask[1, 7] = True
    for keep in (positions, keep_mask):
        expected = stock(input_ids=ids, logits_to_keep=keep).logits
        assert_close(patched(input_ids=ids, logits_to_keep=keep).logits, expected)
    patched.train()
    targets = ids[keep_mask]
    logits = stock(input_ids=ids, logits_to_keep=keep_mask).logits.float()
    expected = nn.functional.cross_entropy(logits, targets)
    assert_close(patched(input_ids=ids, logits_to_keep=keep_mask, shift_labels=targets).loss, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_labels_are_not_sliced(mode):
    _, patched = pair()
    getattr(patched, mode)()
    ids, labels = tiny_llama.batch()
    with pytest.raises(ValueError, match=r"8 positions.*18 targets"):
        patched(input_ids=ids, labels=labels, logits_to_keep=4)


def test_accuracy_and_predictions(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    output = patched(input_ids=ids, labels=labels, return_token_accuracy=True, return_predicted_tokens=True)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    best = stock(input_ids=ids).logits.argmax(-1).reshape(-1)
    valid = shifted != -100
    assert_close(output.token_accuracy, (best == shifted)[valid].float().mean())
    assert torch.equal(output.predicted_tokens.reshape(-1)[valid], best[valid])
    assert not output.token_accuracy.requires_grad
    items = patched(input_ids=ids, labels=labels, return_token_accuracy=True, num_items_in_batch=11)
    assert_close(items.token_accuracy, output.token_accuracy)


def test_token_scaling(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    rows = nn.functional.cross_entropy(
        stock(input_ids=ids).logits.float().reshape(-1, tiny_llama.VOCAB), shifted, reduction="none"
    )
    valid = shifted != -100
    expected = (rows * torch.exp(-rows.detach()))[valid].sum() / valid.sum()
    assert_close(patched(input_ids=ids, labels=labels, use_token_scaling=True).loss, expected)


def test_what_the_forward_sets_itself_is_ignored(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    expected = stock(input_ids=ids, labels=labels).loss
    noise = dict(reduction="none", softcap=1.0, input=1, weight=2, target=3)
    assert_close(patched(input_ids=ids, labels=labels, **noise).loss, expected)
    patched.eval()
    assert_close(patched(input_ids=ids, labels=labels, **noise).loss, expected)


def test_tuples(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    options = dict(input_ids=ids, labels=labels, use_cache=False, output_hidden_states=True)
    expected = stock(**options)
    output = patched(return_dict=False, **options)
    assert isinstance(output, tuple) and output[1] is None
    assert_close(output[0], expected.loss)
    assert len(output[2]) == len(expected.hidden_states)
    assert_close(output[2][-1], expected.hidden_states[-1])
    accuracy = patched(return_dict=False, return_token_accuracy=True, **options)
    assert len(accuracy) == len(output) + 1 and accuracy[-1].ndim == 0
    patched.eval()
    assert patched(input_ids=ids, return_dict=False, use_cache=False)[0].shape[-1] == tiny_llama.VOCAB


def test_generation_is_unchanged(device):
    stock, patched = tiny_llama.build(device).eval(), tiny_llama.build(device).eval()
    ids, _ = tiny_llama.batch(device)
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected = stock.generate(ids, **options)
    apply_liger_kernel_to_llama(model=patched)
    assert torch.equal(patched.generate(ids, **options), expected)


def test_frozen_head_and_head_alone(device):
    ids, labels = tiny_llama.batch(device)
    for trained in (lambda name: name != "lm_head.weight", lambda name: name == "lm_head.weight"):
        stock, patched = pair(device)
        for model in (stock, patched):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained(name))
        expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
        output, actual_gradients = tiny_llama.run(patched, input_ids=ids, labels=labels)
        assert_close(output.loss, expected.loss)
        assert_same_gradients(actual_gradients, expected_gradients)


def test_tied_embeddings(device):
    stock, patched = pair(device, tie_word_embeddings=True)
    ids, labels = tiny_llama.batch(device)
    expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
    output, actual_gradients = tiny_llama.run(patched, input_ids=ids, labels=labels)
    assert_close(output.loss, expected.loss)
    assert_same_gradients(actual_gradients, expected_gradients)


def test_head_bias_is_used(device):
    stock, patched = pair(device)
    for model in (stock, patched):
        model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, tiny_llama.VOCAB, device=device))
    ids, labels = tiny_llama.batch(device)
    expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
    output, actual_gradients = tiny_llama.run(patched, input_ids=ids, labels=labels)
    assert output.logits is None
    assert_close(output.loss, expected.loss)
    assert_same_gradients(actual_gradients, expected_gradients)


def test_pretraining_tp_is_refused():
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    patched.config.pretraining_tp = 2
    with pytest.raises(Exception, match="pretraining_tp"):
        patched(input_ids=ids, labels=labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_fp32_weights(device, dtype):
    stock, patched = tiny_llama.build(device), tiny_llama.build(device)
    ids, labels = tiny_llama.batch(device)
    with torch.autocast(device.type, dtype=dtype):
        expected = stock(input_ids=ids, labels=labels).loss
    expected.backward()
    apply_liger_kernel_to_llama(model=patched)
    with torch.autocast(device.type, dtype=dtype):
        loss = patched(input_ids=ids, labels=labels).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert_close(loss, expected, 3e-2)
    for name, gradient in tiny_llama.gradients(patched).items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name


def test_compiles_without_graph_breaks(device):
    model = tiny_llama.build(device)
    ids, labels = tiny_llama.batch(device)
    apply_liger_kernel_to_llama(model=model)
    expected, expected_gradients = tiny_llama.run(model, input_ids=ids, labels=labels)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output, actual_gradients = tiny_llama.run(compiled, input_ids=ids, labels=labels)
    assert_close(output.loss, expected.loss)
    assert_same_gradients({n.removeprefix("_orig_mod."): g for n, g in actual_gradients.items()}, expected_gradients)


# ---- names that others replace ---------------------------------------------------------------------------------------


def test_replaced_loss_functions_are_used(monkeypatch):
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    seen = []
    own = liger_functional.liger_fused_linear_cross_entropy

    def operator(*args, **kwargs):
        seen.append("operator")
        return own(*args, **kwargs)

    monkeypatch.setattr(liger_functional, "liger_fused_linear_cross_entropy", operator)
    expected = patched(input_ids=ids, labels=labels, accum_dtype=torch.float32, anything=1).loss
    whole = loss_utils.LigerForCausalLMLoss

    def wrapper(hidden_states, *args, **kwargs):
        seen.append("loss")
        return whole(hidden_states.contiguous(), *args, **kwargs)

    monkeypatch.setattr(loss_utils, "LigerForCausalLMLoss", wrapper)
    assert_close(patched(input_ids=ids, labels=labels).loss, expected)
    assert seen == ["operator", "loss", "operator"]


def test_unpack_cross_entropy_result():
    loss, other = torch.zeros(()), torch.ones(())
    unpack = loss_utils.unpack_cross_entropy_result
    assert unpack(loss) == (loss, None, None, None)
    assert unpack((loss,)) == (loss, None, None, None)
    assert unpack((loss, None, other)) == (loss, None, other, None)
    assert unpack(liger_functional.CrossEntropyOutput(loss, predicted_tokens=other)) == (loss, None, None, other)


# ---- heads that are more than a Linear -------------------------------------------------------------------------------


class Gathered:
    """A head whose weight is there only while it is called, and whose backward needs what came out of the call."""

    def __init__(self, head):
        self.full, self.events = head.weight.data, []
        head.weight.data = torch.empty(0, device=self.full.device)
        head.register_forward_pre_hook(self.gather)
        head.register_forward_hook(self.release, always_call=True)

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
    patched.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="not there in full"):
        patched(input_ids=ids, labels=labels)
    assert "forward" not in patched.lm_head.__dict__


def test_mixed_precision_of_the_unit_does_not_round_the_loss():
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    exact = patched(input_ids=ids, labels=labels).loss
    patched.lm_head.register_forward_hook(lambda module, args, output: output.bfloat16())
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
    expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
    output, actual_gradients = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert output.logits is None
    assert_close(output.loss, expected.loss)
    assert any("lm_head.modules_to_save" in name for name in actual_gradients)
    assert_same_gradients(actual_gradients, expected_gradients, 1e-4)
    with stock.disable_adapter(), model.disable_adapter():
        base, ours = (m(input_ids=ids, labels=labels).loss for m in (stock, model))
    assert_close(ours, base)
    assert abs(base - expected.loss) > 1e-3


def test_peft_lora_on_the_head_materialises(caplog):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids, labels = tiny_llama.batch()
    lora = peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    torch.manual_seed(5)
    stock = peft.get_peft_model(tiny_llama.build(), lora)
    model = copy.deepcopy(stock)
    apply_liger_kernel_to_llama(model=model)  # a PeftModel is looked through
    assert model.get_base_model().forward.__func__ is llama.lce_forward
    expected, expected_gradients = tiny_llama.run(stock, input_ids=ids, labels=labels)
    output, actual_gradients = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert output.logits is not None
    assert_close(output.loss, expected.loss)
    assert_same_gradients(actual_gradients, expected_gradients, 1e-4)
    assert len(warnings_of(caplog)) == 1 and "PEFT" in warnings_of(caplog)[0]
    revert_liger_kernel(model)
    assert "forward" not in model.get_base_model().__dict__


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file store")
def test_sharded_head_in_two_processes(tmp_path):
    worker = pathlib.Path(__file__).with_name("sharded_head_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), "2", str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert "fsdp2 ok" in output, output
        assert "fsdp1 ok" in output or (torch.version.cuda and "fsdp1 skipped" in output), output


def test_engine_softcap_and_scale(device):
    """What other families hand to the engine, shown on Llama."""
    _, model = pair(device)
    ids, labels = tiny_llama.batch(device)
    options = dict(
        labels=labels,
        logits_to_keep=0,
        skip_logits=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        kwargs={},
    )
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    raw = model.lm_head(model.model(input_ids=ids)[0]).float()
    capped = 3 * torch.tanh(0.5 * raw / 3)
    expected = nn.functional.cross_entropy(capped.reshape(-1, tiny_llama.VOCAB), shifted) + 7
    for mode in (True, False):
        model.train(mode)
        output = causal_lm.causal_lm_forward(
            model, {"input_ids": ids}, softcap=3.0, logit_scale=0.5, aux_loss=lambda _: torch.tensor(7.0), **options
        )
        assert_close(output.loss, expected)
    assert_close(output.logits, capped)


# ---- AutoModel -------------------------------------------------------------------------------------------------------


def test_auto_model(tmp_path, caplog):
    from liger_kernel.transformers import AutoLigerKernelForCausalLM

    tiny_llama.build().save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, swiglu=False, geglu=False)
    assert isinstance(model.model.norm, LigerRMSNorm)
    assert not isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    revert_liger_kernel()
    model = AutoLigerKernelForCausalLM.from_config(tiny_llama.config(), rms_norm=False)
    assert not isinstance(model.model.norm, LigerRMSNorm)
    assert isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    assert warnings_of(caplog) == []


def test_auto_model_of_an_unsupported_type(caplog):
    from liger_kernel.transformers import AutoLigerKernelForCausalLM

    gpt2 = transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = AutoLigerKernelForCausalLM.from_config(gpt2, rope=True)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert len(warnings_of(caplog)) == 1 and "gpt2" in warnings_of(caplog)[0]
