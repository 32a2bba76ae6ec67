"""Classes that patches concern are used as classes still: pickled, derived from, compared, scripted and walked by tools."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import importlib
import pickle
import weakref

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import assert_same_step, both_ways  # noqa: E402
from transformers.models.gemma import modeling_gemma  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402
from transformers.models.qwen2_vl import modeling_qwen2_vl  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerLayerNorm,
    LigerRMSNorm,
    LigerSwiGLUMLP,
    monkey_patch,
    revert_liger_kernel,
)

pytestmark = pytest.mark.usefixtures("unpatched")

CLASSES = {
    "norm": (lambda: modeling_llama.LlamaRMSNorm, "llama"),
    "MLP": (lambda: modeling_llama.LlamaMLP, "llama"),
    "layer norm": (lambda: nn.LayerNorm, "gemma3"),
}


def apply(family, model=None):
    getattr(monkey_patch, f"apply_liger_kernel_to_{family}")(**({} if model is None else {"model": model}))


# ---- a class as a value ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_the_same_object_before_and_after(kind):
    get, family = CLASSES[kind]
    own = get()
    derived = own.__subclasses__()  # those of earlier tests may live on
    pickled = pickle.dumps((own, functools.partial(own, 8)))
    apply(family)
    assert get() is own and copy.copy(own) is own
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        cls, part = pickle.loads(pickle.dumps((own, functools.partial(own, 8)), protocol))
        assert cls is own and part.func is own
    assert pickle.loads(pickled)[0] is own
    assert [cls for cls in own.__subclasses__() if cls not in derived] == []


def test_a_model_that_was_built_before_a_class_patch_is_pickled():
    model = tiny_llama.build()
    apply("llama")
    inputs = tiny_models.batch()
    twin = pickle.loads(pickle.dumps(model))
    assert_same_step(tiny_llama.run(twin, **inputs), tiny_llama.run(model, **inputs))
    assert type(twin.model.norm) is modeling_llama.LlamaRMSNorm and isinstance(model.model.norm, type(twin.model.norm))


@pytest.mark.parametrize("defined", ["before", "after"])
def test_super_finds_a_patched_class(defined):
    def define():
        class Skipping(nn.LayerNorm):
            def __init__(self, size):
                super(nn.LayerNorm, self).__init__()
                nn.LayerNorm.__init__(self, size)

            def forward(self, x):
                return 2 * super(nn.LayerNorm, self).__getattribute__("own")(x)

            def own(self, x):
                return nn.LayerNorm.forward(self, x)

        return Skipping

    x = torch.randn(3, 8)
    expected = define()(8)(x)
    cls = define() if defined == "before" else None
    apply("gemma3")
    made = (cls or define())(8)
    assert torch.equal(made(x), expected)
    assert isinstance(made, nn.LayerNorm) and not isinstance(made, LigerLayerNorm)
    assert nn.LayerNorm in type(made).__mro__


@pytest.mark.parametrize("kind", CLASSES)
def test_instances_and_subclasses_are_told_in_both_directions(kind):
    get, family = CLASSES[kind]
    own = get()

    def make():
        return get()(tiny_llama.build().config if kind == "MLP" else 8)

    class Derived(own):
        pass

    before = make()
    apply(family)
    ours = {"norm": LigerRMSNorm, "layer norm": LigerLayerNorm}.get(kind)
    after = make()
    assert isinstance(before, get()) and isinstance(after, get()) and type(before) is get()
    assert issubclass(Derived, get()) and issubclass(type(after), get()) and not issubclass(nn.Linear, get())
    assert Derived in get().__subclasses__()
    if ours is not None:
        assert issubclass(get(), ours) and isinstance(after, ours)
        assert not isinstance(before, ours) and not issubclass(Derived, ours)
    revert_liger_kernel()
    assert ours is None or not issubclass(get(), ours)
    assert type(make()) is own


def test_a_name_that_a_modelling_module_has_from_elsewhere_is_patched_there_alone():
    assert modeling_qwen2_vl.LayerNorm is nn.LayerNorm
    apply("qwen2_vl")
    assert type(nn.LayerNorm(8)) is nn.LayerNorm and not issubclass(nn.LayerNorm, LigerLayerNorm)
    tower = tiny_models.build("qwen2_vl").model.visual
    assert isinstance(tower.blocks[0].norm1, LigerLayerNorm)
    with every_init_wrapped():
        tower = tiny_models.build("qwen2_vl").model.visual
    assert isinstance(tower.blocks[0].norm1, LigerLayerNorm)
    revert_liger_kernel()
    assert type(tiny_models.build("qwen2_vl").model.visual.blocks[0].norm1) is nn.LayerNorm


@pytest.mark.parametrize("reverted", [False, True])
@pytest.mark.parametrize("name", ["LlamaRMSNorm", "LlamaMLP", "LlamaForCausalLM", "LlamaRotaryEmbedding"])
def test_a_class_of_a_reloaded_module_can_be_freed(name, reverted, monkeypatch):
    for key, value in list(vars(modeling_llama).items()):
        monkeypatch.setitem(vars(modeling_llama), key, value)  # put back after the test
    importlib.reload(modeling_llama)
    old = weakref.ref(getattr(modeling_llama, name))
    apply("llama")
    tiny = modeling_llama.LlamaForCausalLM(tiny_llama.config())
    tiny(**tiny_models.batch())
    del tiny
    if reverted:
        revert_liger_kernel()
    importlib.reload(modeling_llama)
    apply("llama")
    gc.collect()
    assert old() is None


def test_activations_of_ever_new_classes_can_be_freed():
    seen = weakref.WeakSet()
    for _ in range(300):
        mlp = modeling_llama.LlamaMLP(tiny_llama.config())
        monkey_patch._patch_swiglu_module(mlp, LigerSwiGLUMLP)
        mlp.act_fn.__class__ = type("SiLU", (type(mlp.act_fn),), {})
        mlp.__dict__["_liger_activation"] = ("act_fn", type(mlp.act_fn))
        seen.add(type(mlp.act_fn))
        mlp(torch.ones(1, 32))
    del mlp
    gc.collect()
    assert len(seen) < 300


# ---- the class of a patched module -----------------------------------------------------------------------------------


@both_ways
def test_the_class_of_a_patched_module_is_pickled(way):
    """As policies that name the classes of layers are."""
    if way == "class":
        apply("llama")
    model = tiny_llama.build()
    apply("llama", model)
    layer = model.model.layers[0]
    classes = {type(each) for each in (model, layer.mlp, layer.input_layernorm)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(functools.partial(isinstance, classes), protocol)).args[0] == classes
    assert copy.deepcopy(classes) == classes
    revert_liger_kernel(model)
    assert type(layer.mlp) is modeling_llama.LlamaMLP


@both_ways
@pytest.mark.parametrize("derived", [False, True])
def test_a_module_is_built_by_the_class_of_a_patched_one(derived, way):
    """As programs do that widen or narrow a layer."""
    if way == "class":
        apply("gemma")
    model = tiny_models.build("gemma")
    x, norm, mlp = torch.randn(3, 32), model.model.norm, model.model.layers[0].mlp
    expected = modeling_gemma.GemmaRMSNorm.forward(norm, x), modeling_gemma.GemmaMLP.forward(mlp, x)
    if way == "instance":
        apply("gemma", model)

    def build_again(module, *args, **options):
        cls = type(module)
        if derived:

            class cls(cls):  # noqa: N801
                pass

        again = cls(*args, **options)
        again.load_state_dict(module.state_dict())
        return again

    torch.testing.assert_close(build_again(norm, 32, eps=norm.eps)(x), expected[0])
    torch.testing.assert_close(build_again(mlp, model.config)(x), expected[1])
    if not derived:
        assert isinstance(build_again(norm, 32), LigerRMSNorm) == (way == "class")
    twice = copy.deepcopy(model.config)
    twice.hidden_act = twice.hidden_activation = "relu"
    again = build_again(mlp, twice)
    torch.testing.assert_close(again(x), modeling_gemma.GemmaMLP.forward(again, x))


def test_a_model_is_built_by_the_class_of_a_patched_one():
    model = tiny_llama.build()
    apply("llama", model)
    twin = type(model)(model.config).train()
    twin.load_state_dict(model.state_dict())
    inputs = tiny_models.batch()
    assert type(twin) is modeling_llama.LlamaForCausalLM and twin(**inputs).logits is not None
    assert_same_step(tiny_llama.run(twin, **inputs), tiny_llama.run(model, **inputs))


@both_ways
def test_a_patched_module_is_scripted_as_stock(way):
    x = torch.randn(3, 8)
    expected = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    if way == "class":
        apply("gemma3")
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    model.load_state_dict(expected.state_dict())
    if way == "instance":
        monkey_patch._patch_layer_norm_module(model[0])
    assert isinstance(model[0], LigerLayerNorm)
    torch.testing.assert_close(torch.jit.script(model)(x), expected(x))
    torch.testing.assert_close(torch.jit.script(nn.LayerNorm(8))(x), nn.LayerNorm(8)(x))
    model[0].weight.data.mul_(2)
    expected[0].weight.data.mul_(2)
    torch.testing.assert_close(model(x), expected(x))


# ---- tools that go through all classes -------------------------------------------------------------------------------


def every_class():
    found, waiting = {}, [nn.Module]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            if cls not in found:
                found[cls] = None
                waiting.append(cls)
    return list(found)


@contextlib.contextmanager
def every_init_wrapped(order=lambda classes: classes, calls=None):
    """What deepspeed.zero.Init does: every `__init__`, also of classes that are made meanwhile, and back."""
    own = nn.Module.__init_subclass__

    def around(init):
        @functools.wraps(init)
        def wrapper(module, *args, **kwargs):
            outermost = "_entered" not in module.__dict__
            module.__dict__["_entered"] = True
            init(module, *args, **kwargs)
            if outermost:
                del module.__dict__["_entered"]
                if calls is not None:
                    calls.append(type(module).__name__)

        wrapper.is_theirs = True
        return wrapper

    def wrap(cls, **kwargs):
        cls._old_init = cls.__init__
        cls.__init__ = around(cls.__init__)

    for cls in order(every_class()):
        wrap(cls)
    nn.Module.__init_subclass__ = classmethod(wrap)
    try:
        yield
    finally:
        for cls in order(every_class()):
            cls.__init__ = cls._old_init
        nn.Module.__init_subclass__ = own


def concerned():
    """The classes that patches concern, and those that they have made. Those that inherit an `__init__` the tool itself may
    leave with their base's."""
    roots = [modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP, modeling_llama.LlamaForCausalLM, nn.LayerNorm]
    return [*roots, *(cls for root in roots for cls in root.__subclasses__() if "_liger_patch" in vars(cls))]


def assert_unwrapped():
    left = [cls for cls in concerned() if hasattr(cls.__init__, "is_theirs")]
    assert left == [], left


@both_ways
@pytest.mark.parametrize("order", [list, lambda classes: classes[::-1], lambda classes: sorted(classes, key=id)])
def test_a_tool_that_wraps_every_init_takes_all_of_it_off(order, way):
    inits = {cls: cls.__init__ for cls in concerned()}
    stock = tiny_llama.build()
    if way == "class":
        apply("llama")
        apply("gemma3")
        patched = {cls: vars(cls)["__init__"] for cls in inits}
    first = tiny_llama.build()
    apply("llama", first)
    calls = []
    with every_init_wrapped(order, calls):
        model = tiny_llama.build()
        if way == "instance":
            apply("llama", model)
    assert calls.count("LlamaRMSNorm") == 5 and calls.count("LlamaMLP") == 2
    assert_unwrapped()
    if way == "class":
        assert {cls: vars(cls)["__init__"] for cls in patched} == patched
    inputs = tiny_models.batch()
    model.load_state_dict(stock.state_dict())
    assert isinstance(model.model.norm, LigerRMSNorm)
    assert_same_step(tiny_llama.run(model, **inputs), tiny_llama.run(stock, **inputs), 1e-4)
    again = type(first.model.norm)(32)
    assert "_entered" not in again.__dict__
    revert_liger_kernel()
    assert {cls: cls.__init__ for cls in inits} == inits


@pytest.mark.parametrize("applied", ["inside", "inside and again", "before and inside"])
def test_a_patch_below_a_tools_wrappers_is_reverted(applied):
    inits = {cls: cls.__init__ for cls in concerned()}
    if applied == "before and inside":
        apply("llama")
    with every_init_wrapped():
        apply("llama")
        if applied != "inside":
            apply("llama")
        assert isinstance(tiny_llama.build().model.norm, LigerRMSNorm)
    if applied != "inside":
        revert_liger_kernel()
    assert_unwrapped()
    revert_liger_kernel()
    assert {cls: cls.__init__ for cls in inits} == inits
    assert type(tiny_llama.build().model.norm) is modeling_llama.LlamaRMSNorm


def test_a_patch_that_is_reverted_below_a_tools_wrappers_builds_nothing_more():
    inits = {cls: cls.__init__ for cls in concerned()}
    apply("llama")
    with every_init_wrapped():
        revert_liger_kernel()
        assert type(tiny_llama.build().model.norm) is modeling_llama.LlamaRMSNorm
    assert type(tiny_llama.build().model.norm) is modeling_llama.LlamaRMSNorm
    revert_liger_kernel()
    assert {cls: cls.__init__ for cls in inits} == inits


def test_empty_weights_of_accelerate_leave_nothing():
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    own = nn.Module.register_parameter, nn.Module.register_buffer
    stock = tiny_llama.build()
    for way in ("class", "instance"):
        if way == "class":
            apply("llama")
        with accelerate.init_empty_weights(include_buffers=True):
            model = type(stock)(stock.config)
            if way == "instance":
                apply("llama", model)
        assert (nn.Module.register_parameter, nn.Module.register_buffer) == own
        assert model.model.norm.weight.device.type == "meta" and isinstance(model.model.norm, LigerRMSNorm)
        model.load_state_dict(stock.state_dict(), assign=True)
        model.model.rotary_emb = copy.deepcopy(stock.model.rotary_emb)
        inputs = tiny_models.batch()
        expected = tiny_llama.run(stock, **inputs)
        assert_same_step(tiny_llama.run(model.train(), **inputs), expected, 1e-4)
        revert_liger_kernel()
