"""A patched instance, a subclass and what patched classes have built keep what somebody has put there."""

from __future__ import annotations

import copy
import functools
import pickle
import types
from typing import ClassVar

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from changed_code import another_norm_forward, another_silu, build, rotary_class, step, with_other_halves  # noqa: E402
from llama_patching import assert_same_step, both_ways, warnings_of  # noqa: E402
from transformers.models.gemma import modeling_gemma  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerRMSNorm,
    apply_liger_kernel_to_llama,
    monkey_patch,
    revert_liger_kernel,
)

pytestmark = pytest.mark.usefixtures("unpatched")


# ---- instances -------------------------------------------------------------------------------------------------------


def own_helper(model):
    norm = model.model.norm
    norm._norm = lambda x: 2 * x


def own_activation_function(model):
    model.model.layers[0].mlp.act_fn.act = torch.relu


def own_call_impl(model):
    activation = model.model.layers[0].mlp.act_fn
    activation._call_impl = lambda x: x.relu()


def own_rotary(model):
    model.model.rotary_emb = rotary_class()(model.config)


def own_rotary_forward(model):
    rotary = model.model.rotary_emb
    own = type(rotary).forward
    rotary.forward = lambda *args, **kwargs: with_other_halves(own(rotary, *args, **kwargs))


def hooked_rotary(model):
    model.model.rotary_emb.register_forward_hook(lambda module, args, output: with_other_halves(output))


def own_norm_forward(model):
    norm = model.model.norm
    norm.forward = lambda x: 2 * x


INSTANCES = [
    ("gemma", own_helper, "_norm"),
    ("gemma", own_activation_function, "GELU"),
    ("llama", own_call_impl, "SiLU"),
    ("llama", own_rotary, "Rotary"),
    ("llama", own_rotary_forward, "Rotary"),
    ("llama", hooked_rotary, "Rotary"),
    ("llama", own_norm_forward, "LlamaRMSNorm"),
]


@both_ways
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(("family", "change", "named"), INSTANCES)
def test_what_somebody_has_put_on_an_instance_counts(family, change, named, order, way, caplog):
    stock = build(family)
    untouched = step(stock)[0].loss
    change(stock)
    expected = step(stock)
    assert abs(expected[0].loss - untouched) > 1e-4, "the change changes nothing"
    function = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    if way == "class":
        function()
        model = build(family)
        change(model)
    else:
        model = build(family)
        if order == "before":
            change(model)
        function(model=model)
        if order == "after":
            change(model)
    assert_same_step(step(model), expected, 1e-4)


# ---- subclasses ------------------------------------------------------------------------------------------------------


def of_gemma():
    class Doubled(modeling_gemma.GemmaRMSNorm):
        def _norm(self, x):
            return 2 * super()._norm(x)

    return Doubled(32)


def by_name():
    class ByName(modeling_gemma.GemmaRMSNorm):
        def __init__(self, dim):
            modeling_gemma.GemmaRMSNorm.__init__(self, dim, eps=0.5)

        def forward(self, x):
            return 2 * modeling_gemma.GemmaRMSNorm.forward(self, x)

    return ByName(32)


@both_ways
@pytest.mark.parametrize("make", [of_gemma, by_name])
def test_a_subclass_of_a_norm_computes_what_it_says(make, way, caplog):
    def made():
        model = build("gemma")
        norm = make()
        norm.load_state_dict(model.model.norm.state_dict())
        model.model.norm = norm
        return model

    expected = step(made())
    if way == "class":
        monkey_patch.apply_liger_kernel_to_gemma()
        model = made()
    else:
        model = made()
        monkey_patch.apply_liger_kernel_to_gemma(model=model)
    assert_same_step(step(model), expected, 1e-4)


def test_a_subclass_of_a_patched_norm_can_be_built_after_the_revert():
    own = modeling_llama.LlamaRMSNorm
    monkey_patch.apply_liger_kernel_to_llama()
    stand_in = modeling_llama.LlamaRMSNorm

    class ByName(stand_in):
        def __init__(self, size):
            stand_in.__init__(self, size, eps=0.5)

    revert_liger_kernel()
    norm = ByName(8)
    assert isinstance(norm, own) and norm.variance_epsilon == 0.5
    x = torch.randn(3, 8)
    assert torch.equal(norm(x), own(8, eps=0.5)(x))


# ---- what patches are made of ----------------------------------------------------------------------------------------


class OfAFamily(transformers.LlamaForCausalLM):
    """It wants to be told something of each class that is derived from it, and knows them all."""

    known: ClassVar[list] = []

    def __init_subclass__(cls, *, tag, **kwargs):
        super().__init_subclass__(**kwargs)
        OfAFamily.known.append((cls, tag))


class Tagged(OfAFamily, tag="tagged"):
    pass


class Sealed(transformers.LlamaForCausalLM):
    """Nothing is set on it once it has been made."""

    def __setattr__(self, name, value):
        if "sealed" in self.__dict__:
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("cls", [Tagged, Sealed])
def test_a_class_with_rules_of_its_own_is_patched_and_reverted(cls):
    ids, labels = tiny_llama.batch()
    expected = tiny_llama.run(tiny_llama.build(), input_ids=ids, labels=labels)
    torch.manual_seed(0)
    model = cls(tiny_llama.config()).train()
    model.__dict__["sealed"] = True
    apply_liger_kernel_to_llama(model=model)
    step = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert step[0].logits is None
    assert_same_step(step, expected)
    revert_liger_kernel(model)
    assert type(model) is cls and OfAFamily.known == [(Tagged, "tagged")]


def test_a_partial_of_a_modelling_class_stays(caplog, monkeypatch):
    for name, options in (("LlamaRMSNorm", {"eps": 0.5}), ("LlamaMLP", {})):
        monkeypatch.setattr(modeling_llama, name, functools.partial(getattr(modeling_llama, name), **options))
    # Hugging Face gives the epsilon by keyword: a partial's own must give way to it, as in stock
    expected = step(build("llama"))
    monkey_patch.apply_liger_kernel_to_llama()
    assert_same_step(step(build("llama")), expected, 1e-4)
    assert isinstance(modeling_llama.LlamaRMSNorm, functools.partial)
    assert len([text for text in warnings_of(caplog) if "partial" in text]) == 2, warnings_of(caplog)


def test_a_substitute_that_lacks_a_name_is_patched_as_far_as_it_goes(caplog, monkeypatch):
    substitute = types.SimpleNamespace(LlamaRMSNorm=modeling_llama.LlamaRMSNorm)
    monkeypatch.setattr(transformers.models.llama, "modeling_llama", substitute)
    for _ in range(2):
        monkey_patch.apply_liger_kernel_to_llama()
    assert substitute.LlamaRMSNorm is not modeling_llama.LlamaRMSNorm
    assert len([text for text in warnings_of(caplog) if "rope" in text]) == 1, warnings_of(caplog)


def test_warnings_of_an_instance_are_said_again_after_it_has_been_reverted(caplog):
    model = build("llama")
    model.model.norm = nn.LayerNorm(32)
    for _ in range(2):
        monkey_patch.apply_liger_kernel_to_llama(model=model)
        monkey_patch.apply_liger_kernel_to_llama(model=model)
        revert_liger_kernel(model)
    assert len([text for text in warnings_of(caplog) if "LayerNorm" in text]) == 2


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_norms_in_double_have_stocks_bits_under_a_class_patch(family):
    expected = build(family).double()
    getattr(monkey_patch, f"apply_liger_kernel_to_{family}")()
    model = build(family).double()
    x = torch.randn(5, 32, dtype=torch.float64)
    assert torch.equal(model.model.norm(x), expected.model.norm(x))
    assert model.model.norm(x).dtype == torch.float64


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_that_patched_classes_have_built_is_copied(copied):
    monkey_patch.apply_liger_kernel_to_llama()
    model = build("llama")
    twin = copied(model)
    inputs = tiny_models.batch()
    assert_same_step(tiny_llama.run(twin, **inputs), tiny_llama.run(model, **inputs))
    pickled = pickle.dumps(model)
    revert_liger_kernel()
    again = pickle.loads(pickled)
    assert_same_step(tiny_llama.run(again, **inputs), tiny_llama.run(model, **inputs))
    assert isinstance(again.model.norm, LigerRMSNorm)
    revert_liger_kernel(again)
    assert type(again.model.norm) is modeling_llama.LlamaRMSNorm


def test_what_is_set_on_a_patched_class_is_set_on_the_stock_one():
    own = modeling_llama.LlamaRMSNorm
    monkey_patch.apply_liger_kernel_to_llama()
    forward, x = own.forward, torch.randn(3, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 2 * forward(self, x))
        assert torch.equal(modeling_llama.LlamaRMSNorm(8)(x), 2 * forward(own(8), x))
        assert own.forward is not forward
    assert own.forward is forward and modeling_llama.LlamaRMSNorm.forward is forward


def test_code_that_is_put_back_is_patched_again(caplog):
    model = build("llama")
    monkey_patch.apply_liger_kernel_to_llama(model=model)
    expected = step(model)
    with pytest.MonkeyPatch.context() as patch:
        another_norm_forward(patch)
        another_silu(patch)
        assert abs(step(model)[0].loss - expected[0].loss) > 1e-3
    found = step(model)
    assert torch.equal(found[0].loss, expected[0].loss) and found[0].logits is None
