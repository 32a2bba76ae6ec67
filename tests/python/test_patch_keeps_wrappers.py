"""What somebody has put around, or in place of, the code that a patch stands for counts, whoever wrote the wrapper."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import assert_same_step, both_ways, only, warnings_of  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import LigerLayerNorm, monkey_patch, patching, revert_liger_kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")
apply = monkey_patch.apply_liger_kernel_to_llama


def build():
    return tiny_models.build("llama")


def step(model):
    return tiny_llama.run(model, **tiny_models.batch())


def stock_step(change):
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        return step(build())


def assert_differs(step, other):
    (output, gradients), (expected, expected_gradients) = step, other
    same = torch.allclose(output.loss, expected.loss, rtol=1e-3) and gradients.keys() == expected_gradients.keys()
    assert not same, "the change changes nothing"


# ---- applying by class again -----------------------------------------------------------------------------------------


def doubled(owner, name, around=lambda function: lambda wrapper: wrapper):
    def change(patch):
        own = getattr(owner, name)
        patch.setattr(owner, name, around(own)(lambda *args, **kwargs: 2 * own(*args, **kwargs)))

    return change


AGAIN = {
    "norm": doubled(modeling_llama.LlamaRMSNorm, "forward"),
    "mlp": doubled(modeling_llama.LlamaMLP, "forward"),
    "rsqrt": doubled(torch, "rsqrt"),
    "helper": doubled(modeling_llama, "rotate_half"),
}


@pytest.mark.parametrize("name", AGAIN)
@pytest.mark.parametrize("again", ["function", "auto class"])
def test_applying_by_class_again_keeps_what_has_been_changed_since(name, again, caplog):
    expected = stock_step(AGAIN[name])
    assert_differs(expected, step(build()))
    apply()
    with pytest.MonkeyPatch.context() as patch:
        AGAIN[name](patch)
        if again == "function":
            apply()
        else:
            monkey_patch._apply_liger_kernel("llama")
        assert_same_step(step(build()), expected, 1e-4)
        assert warnings_of(caplog)
        revert_liger_kernel()


def test_a_second_family_keeps_torchs_layer_norm_a_stand_in(caplog):
    gemma3, other = monkey_patch.apply_liger_kernel_to_gemma3, monkey_patch.apply_liger_kernel_to_paligemma
    x = torch.randn(3, 4)
    with pytest.MonkeyPatch.context() as patch:
        gemma3(layer_norm=True)
        doubled(nn.LayerNorm, "forward")(patch)
        expected = nn.LayerNorm(4, eps=0.5)(x)
        other(layer_norm=True)
        found = nn.LayerNorm(4, eps=0.5)
        assert not isinstance(found, LigerLayerNorm) and torch.equal(found(x), expected)
        revert_liger_kernel()


# ---- decorators ------------------------------------------------------------------------------------------------------


def decorated(owner, name, decorator):
    return lambda patch: patch.setattr(owner, name, decorator(getattr(owner, name)))


DECORATED = {
    "no_grad(mlp)": decorated(modeling_llama.LlamaMLP, "forward", torch.no_grad()),
    "no_grad(norm)": decorated(modeling_llama.LlamaRMSNorm, "forward", torch.no_grad()),
    "no_grad(rotation)": decorated(modeling_llama, "apply_rotary_pos_emb", torch.no_grad()),
    "no_grad(silu)": decorated(nn.functional, "silu", torch.no_grad()),
    "autocast(mlp)": decorated(modeling_llama.LlamaMLP, "forward", torch.autocast("cpu", torch.bfloat16)),
    "autocast(model)": decorated(modeling_llama.LlamaForCausalLM, "forward", torch.autocast("cpu", torch.bfloat16)),
}


@both_ways
@pytest.mark.parametrize("name", DECORATED)
def test_decorators_of_torch_count_where_the_text_has_none(name, way, caplog):
    expected = stock_step(DECORATED[name])
    untouched = step(build())
    assert (
        expected[0].loss != untouched[0].loss
        or expected[1].keys() != untouched[1].keys()
        or any(not torch.equal(expected[1][key], untouched[1][key]) for key in expected[1])
    )
    with pytest.MonkeyPatch.context() as patch:
        DECORATED[name](patch)
        # in bf16 a norm of ours rounds otherwise
        flags = only(fused_linear_cross_entropy=True) if "model" in name else {}
        if way == "class":
            apply(**flags)
        model = build()
        if way == "instance":
            apply(model=model, **flags)
        assert_same_step(step(model), expected, 1e-4)
        assert warnings_of(caplog)
        revert_liger_kernel()


def test_another_context_than_that_of_the_text_counts(caplog, monkeypatch):
    rotary = modeling_llama.LlamaRotaryEmbedding
    monkeypatch.setattr(rotary, "forward", torch.enable_grad()(rotary.forward.__wrapped__))
    own = modeling_llama.apply_rotary_pos_emb
    apply()
    assert modeling_llama.apply_rotary_pos_emb is own and "Rotary" in "".join(warnings_of(caplog))


# ---- objects ---------------------------------------------------------------------------------------------------------


def scripted_half(patch):
    def half(x):
        return 0.5 * x

    patch.setattr(modeling_llama, "rotate_half", torch.jit.script(half))


def a_module_as_silu(patch):
    patch.setattr(nn.functional, "silu", nn.GELU())


@both_ways
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("change", [scripted_half, a_module_as_silu])
def test_an_object_of_torchs_is_no_function_of_torchs(change, order, way, caplog):
    expected = stock_step(change)
    assert_differs(expected, step(build()))
    with pytest.MonkeyPatch.context() as patch:
        if order == "before":
            change(patch)
        if way == "class":
            apply()
        model = build()
        if way == "instance":
            apply(model=model)
        if order == "after":
            change(patch)
        assert_same_step(step(model), expected, 1e-4)
        revert_liger_kernel()


# ---- wrappers that call themselves as what they wrap -----------------------------------------------------------------


def twice(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        output = function(*args, **kwargs)
        output["loss"] = 2 * output["loss"]
        return output

    return wrapper


def test_ours_is_known_by_what_it_is():
    @functools.wraps(monkey_patch.apply_liger_kernel_to_llama)
    def function():
        pass

    @functools.cache
    def cached():
        pass

    functools.update_wrapper(cached, monkey_patch.apply_liger_kernel_to_llama)
    assert patching.is_ours(monkey_patch.apply_liger_kernel_to_llama) and patching.is_ours(LigerLayerNorm)
    assert patching.is_ours(LigerLayerNorm.forward) and patching.is_ours(LigerLayerNorm(4).forward)
    assert not patching.is_ours(function) and not patching.is_ours(cached)
    assert not patching.is_ours(torch.no_grad()(LigerLayerNorm.forward))


def test_a_wrapper_around_our_forward_of_an_instance_survives():
    expected = step(build())[0].loss
    model = build()
    apply(model=model)
    model.forward = twice(model.forward)
    assert abs(step(model)[0].loss - 2 * expected) < 1e-4
    apply(model=model)
    assert abs(step(model)[0].loss - 2 * expected) < 1e-4
    revert_liger_kernel(model)
    assert abs(step(model)[0].loss - 2 * expected) < 1e-4


def test_a_wrapper_around_our_forward_of_a_class_survives(monkeypatch):
    expected = step(build())[0].loss
    apply()
    cls = modeling_llama.LlamaForCausalLM
    own, stock = cls.forward, patching.original(cls, "forward")
    cls.forward = twice(own)
    try:
        assert abs(step(build())[0].loss - 2 * expected) < 1e-4
        apply()
        assert abs(step(build())[0].loss - 2 * expected) < 1e-4
        revert_liger_kernel()
        assert abs(step(build())[0].loss - 2 * expected) < 1e-4
    finally:
        cls.forward = stock


def test_a_wrapper_around_our_rotation_survives():
    def halved(function):
        @functools.wraps(function)
        def wrapper(q, k, *args, **kwargs):
            return function(0.1 * q, k, *args, **kwargs)

        return wrapper

    stock = modeling_llama.apply_rotary_pos_emb
    expected = stock_step(lambda patch: patch.setattr(modeling_llama, "apply_rotary_pos_emb", halved(stock)))
    assert_differs(expected, step(build()))
    apply()
    modeling_llama.apply_rotary_pos_emb = halved(modeling_llama.apply_rotary_pos_emb)
    try:
        for do in (lambda: None, apply, revert_liger_kernel):
            do()
            assert_same_step(step(build()), expected, 1e-4)
    finally:
        modeling_llama.apply_rotary_pos_emb = stock


# ---- what is said of stock code --------------------------------------------------------------------------------------


def test_a_flag_that_nobody_gave_says_nothing_where_the_release_has_no_such_class(caplog):
    modeling = pytest.importorskip("transformers.models.smolvlm.modeling_smolvlm")
    if hasattr(modeling, "SmolVLMRMSNorm"):
        pytest.skip("this transformers has the class")
    monkey_patch.apply_liger_kernel_to_smolvlm()
    assert warnings_of(caplog) == []
    revert_liger_kernel()
    monkey_patch.apply_liger_kernel_to_smolvlm(rms_norm=True)
    assert ["rms_norm=True replaced nothing" in text for text in warnings_of(caplog)] == [True]


def test_a_forward_written_around_that_of_a_patched_instance_calls_it(monkeypatch):
    expected = stock_step(doubled(modeling_llama.LlamaRMSNorm, "forward"))
    model = build()
    apply(model=model)
    patched = type(model.model.norm)
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 2 * patched.forward(self, x))
    assert_same_step(step(model), expected, 1e-4)


def test_an_activation_in_the_dictionary_of_an_mlp_counts():
    expected = build()
    expected.model.layers[0].mlp.__dict__["act_fn"] = torch.relu
    expected = step(expected)
    model = build()
    apply(model=model)
    model.model.layers[0].mlp.__dict__["act_fn"] = torch.relu
    assert_same_step(step(model), expected, 1e-4)
