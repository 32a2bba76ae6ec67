"""What somebody has changed in the code of Hugging Face or torch that a patch stands for counts, before the patch and after."""

from __future__ import annotations

import inspect
import textwrap
import time
import types
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_models  # noqa: E402
from changed_code import (  # noqa: E402
    a_builtin_as_silu,
    a_forward_of_another_family,
    a_method_as_function,
    an_object_as_function,
    another_call,
    another_call_impl,
    another_call_impl_of_the_activation,
    another_call_of_modules,
    another_call_of_the_activation,
    another_call_of_the_mlp,
    another_cross_entropy,
    another_gelu,
    another_half,
    another_init,
    another_init_of_the_mlp,
    another_mlp_forward,
    another_model_forward,
    another_namespace,
    another_norm_forward,
    another_norm_helper,
    another_output,
    another_pad,
    another_rotary_class,
    another_rotary_forward,
    another_rsqrt,
    another_silu,
    another_text,
    another_torch,
    applied,
    assert_counts,
    build,
    step,
)
from llama_patching import assert_same_step, both_ways, warnings_of  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import monkey_patch, revert_liger_kernel, stock_code  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")
OWN_FORWARD = inspect.unwrap(modeling_llama.LlamaForCausalLM.forward)
each_order = pytest.mark.parametrize("order", ["before", "built", "after"])


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
    ("llama", another_torch, "torch"),
    ("llama", another_text, "LlamaRMSNorm"),
    ("llama", a_method_as_function, "rotate_half"),
    ("llama", an_object_as_function, "rotate_half"),
    ("llama", another_namespace, "loss_utils.nn"),
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


# ---- compiling -------------------------------------------------------------------------------------------------------


def compiled(model):
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=False)


def compiled_step(model):
    output, gradients = step(model)
    return output, {name.removeprefix("_orig_mod."): gradient for name, gradient in gradients.items()}


@both_ways
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_watching_breaks_no_graph_and_recompiles_nothing(family, way):
    function = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    if way == "class":
        function()
    model = build(family)
    if way == "instance":
        function(model=model)
    inputs = tiny_models.batch()
    torch.compiler.reset()
    explained = torch._dynamo.explain(lambda: model(**inputs, use_cache=False).loss)()
    assert explained.graph_break_count == 0, explained.break_reasons
    runs = compiled(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = compiled_step(runs)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for _ in range(3):
            assert_same_step(compiled_step(runs), first)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert_same_step(first, step(model), 1e-4)


@both_ways
@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("llama", another_norm_forward, "LlamaRMSNorm"),
        ("llama", another_half, "rotate_half"),
        ("llama", another_silu, "silu"),
        ("gemma", another_norm_helper, "_norm"),
    ],
)
def test_what_has_changed_before_it_is_compiled_counts(family, change, named, way, caplog):
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        expected = step(build(family))
    with pytest.MonkeyPatch.context() as patch:
        model = applied(family, way, "after", lambda: change(patch))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same_step(compiled_step(compiled(model)), expected, 1e-4)
        assert any(named in text for text in warnings_of(caplog)), warnings_of(caplog)


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_patching_a_family_takes_no_time_that_is_noticed(family):
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    seconds = []
    for _ in range(3):  # the quickest: others use the machine too
        revert_liger_kernel()
        start = time.perf_counter()
        apply()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


# ---- instructions ----------------------------------------------------------------------------------------------------


def test_names_behind_the_first_255_are_read():
    many = "; ".join(f"x.a{i}" for i in range(300))
    namespace = {"torch": torch, "__name__": __name__}
    exec(f"def forward(self, x):\n    if x is None: {many}\n    return torch.rsqrt(self.helper(x))", namespace)
    cls = type("Long", (nn.Module,), {"forward": namespace["forward"], "helper": lambda self, x: x})
    code = stock_code.Code(cls, accepted=True)
    assert "helper" in code.helpers and code.replaced() is None
    with pytest.MonkeyPatch.context() as patch:
        another_rsqrt(patch)
        assert code.replaced() == "torch.rsqrt"


def test_an_instruction_that_stores_and_loads_is_read():
    def instruction(name, value):
        return types.SimpleNamespace(opname=name, argval=value)

    code = [instruction("STORE_FAST_LOAD_FAST", ("y", "self")), instruction("LOAD_ATTR", "helper")]
    assert list(stock_code._paths_of([*code, instruction("RETURN_VALUE", None)], "self")) == [(True, ("helper",))]


@both_ways
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_text_that_is_put_inside_decorators_counts(order, way, caplog):
    def change(patch):
        other = textwrap.dedent(inspect.getsource(OWN_FORWARD)).replace("self.lm_head(", "2 * self.lm_head(")
        namespace = dict(vars(modeling_llama))
        exec(compile(other[other.index("def forward") :], __file__, "exec", 0x1000000), namespace)
        patch.setattr(OWN_FORWARD, "__code__", namespace["forward"].__code__)

    assert_counts("llama", way, order, change, caplog, "LlamaForCausalLM")


# ---- modes of torch --------------------------------------------------------------------------------------------------


class Halving(TorchFunctionMode):
    """Another value of one of torch's functions, within a context."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result / 2 if func is self.function else result


@both_ways
@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(
    "function",
    [nn.functional.silu, nn.functional.gelu, torch.rsqrt, nn.functional.cross_entropy, nn.functional.linear, torch.cat],
)
def test_a_mode_sees_what_the_stock_model_calls(function, family, way, caplog):
    with Halving(function):
        expected = step(build(family))
    model = applied(family, way, "", None)
    with Halving(function):
        found = step(model)
    assert_same_step(found, expected, 1e-4)
    assert any("Halving" in text for text in warnings_of(caplog)), warnings_of(caplog)
    assert step(model)[0].logits is None


@both_ways
def test_the_mode_of_a_device_is_no_obstacle(way, caplog):
    model = applied("llama", way, "", None)
    with torch.device("cpu"):
        assert step(model)[0].logits is None
    assert warnings_of(caplog) == []


class Halved(torch.Tensor):
    """Of a class that has its own values for some of torch's functions."""

    functions = frozenset(
        {
            nn.functional.silu,
            nn.functional.gelu,
            torch.rsqrt,
            nn.functional.cross_entropy,
            nn.functional.linear,
            torch.cat,
        }
    )

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result / 2 if func in cls.functions else result


@both_ways
@pytest.mark.parametrize("family", ["llama", "gemma", "phi3"])
def test_a_class_of_tensors_sees_what_the_stock_model_calls(family, way, caplog):
    def loss_of(model):
        ids, labels = tiny_models.batch().values()
        embedded = model.get_input_embeddings()(ids).detach().as_subclass(Halved)
        return model(inputs_embeds=embedded, labels=labels).loss.as_subclass(torch.Tensor)

    stock = build(family)
    model = applied(family, way, "", None)
    x = torch.randn(2, 3, 32).as_subclass(Halved)
    for theirs, ours in ((stock.model.norm, model.model.norm), (stock.model.layers[0].mlp, model.model.layers[0].mlp)):
        assert type(ours(x)) is Halved
        torch.testing.assert_close(ours(x).as_subclass(torch.Tensor), theirs(x).as_subclass(torch.Tensor))
    torch.testing.assert_close(loss_of(model), loss_of(stock), rtol=1e-4, atol=1e-4)
    assert any("Halved" in text for text in warnings_of(caplog)), warnings_of(caplog)
    assert step(model)[0].logits is None


class Named(torch.Tensor):
    """With torch's values for all of its functions."""


@both_ways
def test_a_class_of_tensors_without_functions_of_its_own_is_no_obstacle(way, caplog):
    model = applied("llama", way, "", None)
    ids, labels = tiny_models.batch().values()
    embedded = model.get_input_embeddings()(ids).detach().as_subclass(Named)
    assert model(inputs_embeds=embedded, labels=labels).logits is None
    assert warnings_of(caplog) == []
