"""What somebody has changed in the code of Hugging Face or torch that a patch stands for counts, before the patch and after."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import sys
import textwrap
import time
import types
import warnings

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

from liger_kernel.transformers import LigerRMSNorm, monkey_patch, revert_liger_kernel, stock_code  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")
OWN_FORWARD = inspect.unwrap(modeling_llama.LlamaForCausalLM.forward)
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


def another_torch(patch):
    torch_like = types.ModuleType("torch_like")
    vars(torch_like).update(vars(torch), rsqrt=lambda x: 2 * torch.rsqrt(x))
    patch.setattr(modeling_llama, "torch", torch_like)


def another_text(patch):
    patch.setattr(modeling_llama.LlamaRMSNorm.forward, "__code__", (lambda self, x: 2 * x * self.weight).__code__)


def a_method_as_function(patch):
    class Halves:
        def rotate_half(self, x):
            return 0.5 * x

    patch.setattr(modeling_llama, "rotate_half", Halves().rotate_half)


def an_object_as_function(patch):
    class Halves(nn.Module):
        def forward(self, x):
            return 0.5 * x

    patch.setattr(modeling_llama, "rotate_half", Halves())


def another_namespace(patch):
    functional = types.SimpleNamespace(
        **{**vars(nn.functional), "pad": lambda x, *args, **kwargs: nn.functional.pad(x, *args, **kwargs).clamp(max=50)}
    )
    patch.setattr(sys.modules["transformers.loss.loss_utils"], "nn", types.SimpleNamespace(functional=functional))


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
