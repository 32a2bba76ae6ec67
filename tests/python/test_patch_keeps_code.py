"""What somebody has changed in the code of Hugging Face or torch that a patch stands for counts, before the patch and after."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import assert_same_step, both_ways, warnings_of  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.models.gemma import modeling_gemma  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import monkey_patch, revert_liger_kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")
each_order = pytest.mark.parametrize("order", ["before", "built", "after"])


def build(family):
    return tiny_models.build(family)


def step(model):
    return tiny_llama.run(model, **tiny_models.batch())


def applied(family, way, order, change):
    """A patched model; `change` is made before the patch, or after it, before the model is built (of classes) or runs."""
    function = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    if order == "before":
        change()
    if way == "class":
        function()
        if order == "built":
            change()
        model = build(family)
    else:
        model = build(family)
        if order == "built":
            change()
        function(model=model)
    if order == "after":
        change()
    return model


def assert_counts(family, way, order, change, caplog, named, moves=True):
    """The patched model trains as the stock model does with the same change, and one warning names it."""
    untouched = step(build(family))[0].loss
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        expected = step(build(family))
    if moves:
        assert abs(expected[0].loss - untouched) > 1e-3, "the change changes nothing"
    with pytest.MonkeyPatch.context() as patch:
        model = applied(family, way, order, lambda: change(patch))
        assert_same_step(step(model), expected, 1e-4)
        said = [text for text in warnings_of(caplog) if named in text] if named else []
        assert bool(said) == bool(named) and len(set(said)) == len(said), warnings_of(caplog)
        step(model)
        assert len([text for text in warnings_of(caplog) if named in text] if named else []) == len(said)
        revert_liger_kernel()


# ---- what a forward calls --------------------------------------------------------------------------------------------


def another_norm_helper(patch):
    own = modeling_gemma.GemmaRMSNorm._norm
    patch.setattr(modeling_gemma.GemmaRMSNorm, "_norm", lambda self, x: 2 * own(self, x))


def another_silu(patch):
    patch.setattr(nn.functional, "silu", lambda x, inplace=False: x.relu())


def a_builtin_as_silu(patch):
    patch.setattr(nn.functional, "silu", lambda x, inplace=False: x.relu())
    patch.setattr(nn.functional, "silu", torch.tanh)


def another_gelu(patch):
    patch.setattr(nn.functional, "gelu", lambda x, approximate="none": x.relu())


def another_half(patch):
    own = modeling_llama.rotate_half
    patch.setattr(modeling_llama, "rotate_half", lambda x: 0.5 * own(x))


def another_rsqrt(patch):
    own = torch.rsqrt
    patch.setattr(torch, "rsqrt", lambda x: 2 * own(x))


def another_norm_forward(patch):
    own = modeling_llama.LlamaRMSNorm.forward
    patch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 2 * own(self, x))


def a_forward_of_another_family(patch):
    patch.setattr(modeling_llama.LlamaRMSNorm, "variance_epsilon", 1e-6, raising=False)
    patch.setattr(modeling_llama.LlamaRMSNorm, "eps", 1e-6, raising=False)
    patch.setattr(modeling_llama.LlamaRMSNorm, "_norm", modeling_gemma.GemmaRMSNorm._norm, raising=False)
    patch.setattr(modeling_llama.LlamaRMSNorm, "forward", modeling_gemma.GemmaRMSNorm.forward)


def another_mlp_forward(patch):
    own = modeling_llama.LlamaMLP.forward
    patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: 2 * own(self, x))


def another_model_forward(patch):
    own = modeling_llama.LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        output = inspect.unwrap(own)(self, *args, **kwargs)
        output.loss = 2 * output.loss
        return output

    patch.setattr(modeling_llama.LlamaForCausalLM, "forward", forward)


def another_init(patch):
    own = modeling_llama.LlamaRMSNorm.__init__

    def init(self, hidden_size, eps=1e-6):
        own(self, hidden_size, 0.5)

    patch.setattr(modeling_llama.LlamaRMSNorm, "__init__", init)


def another_init_of_the_mlp(patch):
    own = modeling_llama.LlamaMLP.__init__

    def init(self, config):
        own(self, config)
        self.act_fn = nn.ReLU()

    patch.setattr(modeling_llama.LlamaMLP, "__init__", init)


def another_call(patch):
    own = nn.Module.__call__
    patch.setattr(modeling_llama.LlamaRMSNorm, "__call__", lambda self, x: 2 * own(self, x))


def another_call_of_the_mlp(patch):
    own = nn.Module.__call__
    patch.setattr(modeling_llama.LlamaMLP, "__call__", lambda self, x: 2 * own(self, x))


def another_call_impl(patch):
    own = nn.Module._call_impl

    def call(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        return 2 * output if "SiLU" in type(self).__name__ or type(self) is nn.Linear else output

    patch.setattr(nn.Module, "_call_impl", call)


def another_call_of_modules(patch):
    own = nn.Module.__call__

    def call(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        return 2 * output if "SiLU" in type(self).__name__ or type(self) is nn.Linear else output

    patch.setattr(nn.Module, "__call__", call)


def another_call_of_the_activation(patch):
    own = nn.Module.__call__
    patch.setattr(type(ACT2FN["silu"]), "__call__", lambda self, x: 2 * own(self, x), raising=False)


def another_call_impl_of_the_activation(patch):
    own = nn.Module._call_impl
    patch.setattr(type(ACT2FN["silu"]), "_call_impl", lambda self, x: 2 * own(self, x), raising=False)


def with_other_halves(tables):
    cos, sin = tables
    half = cos.shape[-1] // 2
    return torch.cat((cos[..., :half], 0.5 * cos[..., half:]), -1), sin


def another_rotary_forward(patch):
    own = modeling_llama.LlamaRotaryEmbedding.forward
    other = lambda *args, **kwargs: with_other_halves(own(*args, **kwargs))  # noqa: E731
    patch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", other)


def rotary_class():
    class Rotary(modeling_llama.LlamaRotaryEmbedding):
        def forward(self, *args, **kwargs):
            return with_other_halves(super().forward(*args, **kwargs))

    return Rotary


def another_rotary_class(patch):
    patch.setattr(modeling_llama, "LlamaRotaryEmbedding", rotary_class())


def another_output(patch):
    class Output(modeling_llama.CausalLMOutputWithPast):
        def __post_init__(self):
            if self.loss is not None:
                self.loss = 2 * self.loss
            super().__post_init__()

    patch.setattr(modeling_llama, "CausalLMOutputWithPast", Output)


def another_cross_entropy(patch):
    own = nn.functional.cross_entropy
    patch.setattr(nn.functional, "cross_entropy", lambda *args, **kwargs: 2 * own(*args, **kwargs))


def another_pad(patch):
    own = nn.functional.pad
    patch.setattr(nn.functional, "pad", lambda x, *args, **kwargs: own(x, *args, **kwargs).clamp(max=50))


# (family, change, word of the warning; None where nothing has to be left alone, because what was changed runs)
CHANGES = [
    ("gemma", another_norm_helper, "_norm"),
    ("llama", another_silu, "silu"),
    ("llama", a_builtin_as_silu, "silu"),
    ("llama", another_half, "rotate_half"),
    ("llama", another_rsqrt, "rsqrt"),
    ("llama", another_norm_forward, "LlamaRMSNorm"),
    ("llama", a_forward_of_another_family, "LlamaRMSNorm"),
    ("llama", another_mlp_forward, "LlamaMLP"),
    ("llama", another_call, None),
    ("llama", another_call_of_the_mlp, None),
    ("llama", another_call_impl, "_call_impl"),
    ("llama", another_call_of_modules, "__call__"),
    ("llama", another_call_of_the_activation, "__call__"),
    ("llama", another_call_impl_of_the_activation, "_call_impl"),
    ("llama", another_rotary_forward, "Rotary"),
    ("llama", another_output, "CausalLMOutputWithPast"),
    ("llama", another_cross_entropy, "cross_entropy"),
    ("llama", another_pad, "pad"),
]


@both_ways
@each_order
@pytest.mark.parametrize(("family", "change", "named"), CHANGES)
def test_what_a_stock_forward_calls_counts(family, change, named, order, way, caplog):
    assert_counts(family, way, order, change, caplog, named)


@both_ways
@pytest.mark.parametrize("order", ["before", "built"])
@pytest.mark.parametrize(("change", "named"), [(another_init, None), (another_init_of_the_mlp, "ReLU")])
def test_another_init_counts(change, named, order, way, caplog):
    if way == "instance":
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            expected, model = step(build("llama")), build("llama")
        monkey_patch.apply_liger_kernel_to_llama(model=model)
        assert_same_step(step(model), expected, 1e-4)
    else:
        assert_counts("llama", way, order, change, caplog, named)


@both_ways
@pytest.mark.parametrize("order", ["before", "built"])
def test_gelu_counts_for_models_that_are_built_later(order, way, caplog):
    """Hugging Face's activation holds the function that stood there when it was made."""
    if way == "class":
        assert_counts("gemma", way, order, another_gelu, caplog, "GELU")
        return
    with pytest.MonkeyPatch.context() as patch:
        another_gelu(patch)
        expected, model = step(build("gemma")), build("gemma")
    monkey_patch.apply_liger_kernel_to_gemma(model=model)
    assert_same_step(step(model), expected, 1e-4)
    assert any("GELU" in text for text in warnings_of(caplog))


@pytest.mark.parametrize("order", ["before", "built"])
def test_another_rotary_class_counts(order, caplog):
    assert_counts("llama", "class", order, another_rotary_class, caplog, "Rotary")


def test_a_models_forward_counts_when_it_is_replaced_after_a_patch_of_an_instance(caplog):
    assert_counts("llama", "instance", "after", another_model_forward, caplog, "LlamaForCausalLM")


def test_a_forward_of_a_base_class_counts(caplog):
    class Base(nn.Module):
        pass

    def change(patch):
        patch.setattr(nn.Module, "forward", nn.Module.forward)
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 2 * x)

    assert_counts("llama", "instance", "after", change, caplog, "LlamaRMSNorm")


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
