"""A patched module is called with whatever the stock one takes: what the kernel does not take, the stock forward computes."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import assert_same_step, both_ways, warnings_of  # noqa: E402
from reference import assert_close  # noqa: E402

from liger_kernel.transformers import LigerRMSNorm, LigerSwiGLUMLP, monkey_patch, patching  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

LENGTH = 9


def step(model):
    return tiny_llama.run(model, **tiny_models.batch(length=LENGTH))


def norms(model):
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


def every_norm(change):
    def changed(model):
        for norm in norms(model):
            change(norm)

    return changed


def epsilon(make):
    def change(norm):
        name = "eps" if hasattr(norm, "eps") and not hasattr(type(norm), "variance_epsilon") else "variance_epsilon"
        setattr(norm, name, make(0.5))

    return every_norm(change)


def trained_epsilon(model):
    for norm in norms(model):
        name = "eps" if "eps" in norm.__dict__ else "variance_epsilon"
        norm.__dict__.pop(name)
        setattr(norm, name, nn.Parameter(torch.tensor(0.5)))


class Property(float):
    """As a number that a program computes."""


def epsilon_of_a_property(model):
    for norm in norms(model):
        name = "eps" if "eps" in norm.__dict__ else "variance_epsilon"
        norm.__dict__.pop(name)
        norm.small = torch.tensor(0.5)
        norm.__class__ = type(type(norm).__name__, (type(norm),), {name: property(lambda self: self.small)})


def weights(shape):
    def change(norm):
        norm.weight = nn.Parameter(torch.rand(shape, generator=torch.Generator().manual_seed(3)))

    return every_norm(change)


def no_parameter(norm):
    weight = norm.weight.detach()
    del norm.weight
    norm.weight = weight


def number(norm):
    del norm.weight
    norm.weight = 0.5


CHANGES = {
    "epsilon of a tensor": epsilon(torch.tensor),
    "trained epsilon": trained_epsilon,
    "epsilon of one element": epsilon(lambda eps: torch.full((1,), eps)),
    "epsilon of numpy": epsilon(np.float32),
    "epsilon of a derived type": epsilon(Property),
    "negative epsilon": epsilon(lambda eps: -1e-9),
    "weight (1, H)": weights((1, 32)),
    "weight (1,)": weights((1,)),
    "weight ()": weights(()),
    "weight (T, H)": weights((LENGTH, 32)),
    "weight (B, 1, H)": weights((2, 1, 32)),
    "weight of a buffer's kind": every_norm(no_parameter),
    "weight of a number": every_norm(number),
}
TAKEN = ("epsilon of a derived type", "weight of a buffer's kind")


@both_ways
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("change", CHANGES)
def test_norms_of_other_numbers_train_as_stock(change, family, order, way, caplog):
    if (change, family) == ("weight of a number", "gemma"):
        pytest.skip("stock asks for its dtype")
    stock = tiny_models.build(family)
    CHANGES[change](stock)
    expected = step(stock)
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    if way == "class":
        apply()
    model = tiny_models.build(family)
    if order == "before":
        CHANGES[change](model)
    if way == "instance":
        apply(model=model)
    if order == "after":
        CHANGES[change](model)
    for _ in range(2):
        model.zero_grad()
        assert_same_step(step(model), expected, 1e-4)
    found = [text for text in warnings_of(caplog) if "stock-call" in text]
    assert len(found) == (0 if change in TAKEN else len(norms(stock))), warnings_of(caplog)
    if change.startswith("weight") and found:
        assert "weight" in found[0]
    elif found:
        assert "epsilon" in found[0]


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_epsilon_of_a_property_counts(family):
    stock, model = tiny_models.build(family), tiny_models.build(family)
    getattr(monkey_patch, f"apply_liger_kernel_to_{family}")(model=model)
    for each in (stock, model):
        epsilon_of_a_property(each)
    assert_same_step(step(model), step(stock), 1e-4)


@pytest.mark.parametrize("change", ["epsilon of a tensor", "weight (1, H)", "weight (1,)"])
def test_such_norms_are_compiled(change):
    stock, model = tiny_models.build("llama"), tiny_models.build("llama")
    monkey_patch.apply_liger_kernel_to_llama(model=model)
    for each in (stock, model):
        CHANGES[change](each)
    torch._dynamo.reset()
    compiled = torch.compile(model.model.norm, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, LENGTH, 32)
    torch.testing.assert_close(compiled(x), stock.model.norm(x))


@both_ways
def test_a_layer_norm_of_other_numbers_computes_as_stock(way, caplog):
    x = torch.randn(2, 3, 8, requires_grad=True)
    stock = nn.LayerNorm(8)
    if way == "class":
        monkey_patch.apply_liger_kernel_to_gemma3()
    norm = nn.LayerNorm(8)
    if way == "instance":
        monkey_patch._patch_layer_norm_module(norm)
    for eps in (torch.tensor(0.5), np.float32(0.5), -1e-9):
        norm.eps = stock.eps = eps
        torch.testing.assert_close(norm(x), stock(x))
    norm.eps = stock.eps = None
    for each in (stock, norm):
        with pytest.raises(TypeError, match="layer_norm"):
            each(x)
    norm.eps = stock.eps = 1e-5
    for each in (stock, norm):
        with pytest.raises(RuntimeError, match=r"normalized_shape|\[8\]"):
            each(torch.randn(3, 7))


def test_an_epsilon_of_torchs_norm_that_becomes_the_dtypes_is():
    stock, norm = nn.RMSNorm(8, eps=0.5), nn.RMSNorm(8, eps=0.5)
    monkey_patch._patch_rms_norm_module(norm)
    assert isinstance(norm, LigerRMSNorm)
    stock.eps = norm.eps = None
    x = 1e-4 * torch.randn(3, 8)
    torch.testing.assert_close(norm(x), stock(x))


# ---- dtypes that meet ------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("family", ["llama", "gemma", "olmo2", "phi3", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_of_fp32_over_narrow_embeddings_promotes_as_stock(dtype, family, way):
    def build():
        model = tiny_models.build(family)
        model.model.embed_tokens.to(dtype)
        return model

    try:
        expected = step(build())
    except RuntimeError:
        expected = None  # stock does not run either
    if way == "class":
        getattr(monkey_patch, f"apply_liger_kernel_to_{family}")()
    model = build()
    if way == "instance":
        getattr(monkey_patch, f"apply_liger_kernel_to_{family}")(model=model)
    if expected is None:
        with pytest.raises(RuntimeError, match="dtype"):
            step(model)
    else:
        for _output, gradients in (found := step(model), expected):
            del gradients["model.embed_tokens.weight"]  # has few bits
        assert_same_step(found, expected, 1e-3)


class Wide(nn.Module):
    """A projection whose results are of another dtype or shape."""

    def __init__(self, linear, change):
        super().__init__()
        self.linear, self.change = linear, change

    def forward(self, x):
        return self.change(self.linear(x))


@both_ways
@pytest.mark.parametrize("name", ["gate_proj", "up_proj"])
@pytest.mark.parametrize(
    "change",
    [lambda y: y.bfloat16(), lambda y: y[..., :1], lambda y: y[:1], lambda y: y[0, 0]],
    ids=["bf16", "one column", "one sequence", "one token"],
)
def test_gate_and_up_that_differ_are_multiplied_as_stock(change, name, way, caplog):
    def wrap(model):
        for layer in model.model.layers:
            setattr(layer.mlp, name, Wide(getattr(layer.mlp, name), change))
        return model

    expected = step(wrap(tiny_models.build("llama")))
    if way == "class":
        monkey_patch.apply_liger_kernel_to_llama()
    model = tiny_models.build("llama")
    if way == "instance":
        monkey_patch.apply_liger_kernel_to_llama(model=model)
    assert isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    assert_same_step(step(wrap(model)), expected, 1e-4)


# ---- arguments by name -----------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma", "gemma3", "qwen2_5_vl", "falcon_h1", "mixtral"])
def test_the_argument_of_a_module_has_the_name_that_it_has_in_the_stock_forward(family, way):
    stock = tiny_models.build(family)
    if stock is None:
        pytest.skip(f"this transformers has no {family}")
    if way == "class":
        getattr(monkey_patch, f"apply_liger_kernel_to_{family}")()
    model = tiny_models.build(family)
    if way == "instance":
        getattr(monkey_patch, f"apply_liger_kernel_to_{family}")(model=model)
    called = 0
    for (_, theirs), (_, ours) in zip(stock.named_modules(), model.named_modules(), strict=True):
        if not patching.is_patched(ours) or ours is model:
            continue
        (name,) = [*inspect.signature(type(theirs).forward).parameters][1:]
        width = ours.weight.shape[0] if hasattr(ours, "weight") else next(ours.parameters()).shape[1]
        x = torch.randn(2, 3, width)
        exact = copy.deepcopy(theirs).double()(
            x.double()
        )  # but for a norm's statistics: stock has them in float32 always
        widest = max(p.shape[-1] for p in theirs.parameters())
        # a sum of so many terms beside the one that assert_close counts: those, or of an MLP the two before its last product
        assert_close(ours(**{name: x}), exact, torch.float32, 2 * (8 + widest**0.5), widest)
        with pytest.raises(TypeError):
            ours(another=x)
        called += 1
    assert called > 3


def test_a_norm_is_compiled_with_its_argument_by_name():
    norm, x = nn.LayerNorm(8), torch.randn(3, 8)
    expected = norm(x)
    monkey_patch._patch_layer_norm_module(norm)
    torch.testing.assert_close(torch.compile(lambda x: norm(input=x), fullgraph=True, backend="eager")(x), expected)


def test_modules_of_ours_refuse_what_they_say():
    norm = LigerRMSNorm(8)
    norm.weight = nn.Parameter(torch.ones(1, 8))
    with pytest.raises(ValueError, match="dimensions"):
        norm(torch.randn(2, 8))
