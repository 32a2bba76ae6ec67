"""Patching Llama: what is replaced, what is put back, and what is left alone with a warning."""

from __future__ import annotations

import gc
import importlib
import inspect
import types
import weakref
from unittest import mock

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import ALL_OFF, assert_close, is_fused, only, warnings_of  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerRMSNorm,
    LigerSwiGLUMLP,
    _apply_liger_kernel,
    _apply_liger_kernel_to_instance,
    apply_liger_kernel_to_llama,
    liger_rotary_pos_emb,
    patching,  # noqa: E402
    revert_liger_kernel,
)
from liger_kernel.transformers.model import llama  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")


def module_state():
    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    return {
        **{name: getattr(modeling_llama, name) for name in names},
        **{f"{name}.__init__": getattr(modeling_llama, name).__init__ for name in names[1:]},
        "forward": modeling_llama.LlamaForCausalLM.forward,
        "cross_entropy": torch.nn.functional.cross_entropy,
    }


def instance_state(model):
    return {name: (type(m), dict(m.__dict__, _parameters=None, _modules=None)) for name, m in model.named_modules()}


# ---- what is replaced ------------------------------------------------------------------------------------------------


def test_class_level_replaces_and_reverts():
    before = module_state()
    apply_liger_kernel_to_llama()
    assert inspect.unwrap(modeling_llama.apply_rotary_pos_emb) is liger_rotary_pos_emb
    assert issubclass(modeling_llama.LlamaRMSNorm, LigerRMSNorm)
    assert issubclass(modeling_llama.LlamaMLP, LigerSwiGLUMLP)
    assert is_fused(modeling_llama.LlamaForCausalLM)
    assert torch.nn.functional.cross_entropy is before["cross_entropy"]
    model = tiny_llama.build()
    assert isinstance(model.model.norm, LigerRMSNorm) and isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    assert isinstance(model.model.layers[0].mlp, modeling_llama.LlamaMLP)
    revert_liger_kernel()
    assert module_state() == before
    revert_liger_kernel()
    assert module_state() == before


@pytest.mark.parametrize("flag", ["rope", "rms_norm", "swiglu", "fused_linear_cross_entropy", "cross_entropy"])
def test_class_level_flags_touch_only_what_they_name(flag):
    slots = {
        "rope": "apply_rotary_pos_emb",
        "rms_norm": "LlamaRMSNorm.__init__",
        "swiglu": "LlamaMLP.__init__",
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
    assert inspect.unwrap(after.pop("apply_rotary_pos_emb")) is liger_rotary_pos_emb  # reached only through this name
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
    revert_liger_kernel()
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model, **only(**{flag: True}))
    bound = {type(m).__name__ for m in model.modules() if patching.is_ours(m.forward)}
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


@pytest.mark.parametrize("again", [False, True])
def test_a_value_that_the_user_has_set_since_is_not_put_back(again):
    model = tiny_llama.build()
    apply_liger_kernel_to_llama(model=model)
    model.model.norm.variance_epsilon = 1e-3
    if again:
        apply_liger_kernel_to_llama(model=model)
    revert_liger_kernel(model)
    assert model.model.norm.variance_epsilon == 1e-3
    assert "offset" not in model.model.norm.__dict__


def test_revert_of_an_instance_leaves_the_others():
    one, two = tiny_llama.build(), tiny_llama.build()
    apply_liger_kernel_to_llama(model=one)
    apply_liger_kernel_to_llama(model=two)
    revert_liger_kernel(one)
    assert not is_fused(one) and is_fused(two)
    assert inspect.unwrap(modeling_llama.apply_rotary_pos_emb) is liger_rotary_pos_emb


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


@pytest.mark.parametrize("name", ["LlamaRMSNorm.__init__", "LlamaRotaryEmbedding.forward"])
def test_ours_below_what_somebody_takes_away_later_is_undone_then(name):
    owner, name = getattr(modeling_llama, name.partition(".")[0]), name.partition(".")[2]
    own = getattr(owner, name)
    apply_liger_kernel_to_llama()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *args: None)
        revert_liger_kernel()
    assert getattr(owner, name) is not own
    revert_liger_kernel()
    assert getattr(owner, name) is own


@pytest.fixture
def reloadable():
    """The modelling module has its own classes again after the test: pickle, for one, finds classes by their names."""
    own = dict(vars(modeling_llama))
    yield
    vars(modeling_llama).update(own)


def test_reload_of_the_modelling_module(reloadable):
    apply_liger_kernel_to_llama()
    old = modeling_llama.LlamaForCausalLM
    try:
        importlib.reload(modeling_llama)
        fresh = module_state()
        assert not patching.is_ours(fresh["forward"])
        revert_liger_kernel()  # must not carry the old module's classes into the new one
        assert module_state() == fresh
        assert not is_fused(old)
        apply_liger_kernel_to_llama()
        assert is_fused(modeling_llama.LlamaForCausalLM)
        assert issubclass(modeling_llama.LlamaRMSNorm, LigerRMSNorm)
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


def test_a_model_built_before_a_reload_is_still_patched(reloadable):
    model = tiny_llama.build()
    importlib.reload(modeling_llama)
    apply_liger_kernel_to_llama(model=model)
    assert is_fused(model)


def test_a_substitute_module_takes_the_class_level_patches():
    before = module_state()
    with mock.patch("transformers.models.llama.modeling_llama") as substitute:
        apply_liger_kernel_to_llama()
        assert substitute.apply_rotary_pos_emb is liger_rotary_pos_emb
        assert substitute.LlamaRMSNorm is LigerRMSNorm and issubclass(substitute.LlamaMLP, LigerSwiGLUMLP)
        assert is_fused(substitute.LlamaForCausalLM)
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


# ---- wrappers of others ------------------------------------------------------------------------------------------------


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
