"""Every row of the model table: patched by its classes and as an instance, the family trains and answers as it did."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import inspect
import pathlib
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_models  # noqa: E402
from llama_patching import both_ways, warnings_of  # noqa: E402

from liger_kernel.transformers import _exports, model_table, monkey_patch, patching, revert_liger_kernel  # noqa: E402
from liger_kernel.transformers.model.fused_forward import asks_for_loss  # noqa: E402
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = {row.name: row for row in model_table.ROWS}
each_model = pytest.mark.parametrize("name", sorted(tiny_models.MODELS))
STEPS = 3


def row_of(name):
    return ROWS[name.partition(" ")[0]]


def all_flags(row):
    """What turns on every flag that the family has, but cross_entropy, which excludes the fused loss."""
    excluded = {"cross_entropy", *row.alone, *row.refused}
    return {flag: flag not in excluded for flag, default in row.flags.items() if default != (flag not in excluded)}


def apply(name, way, build, **flags):
    """A patched model with the weights of `build()`."""
    row = row_of(name)
    function = getattr(monkey_patch, f"apply_liger_kernel_to_{row.name}")
    flags = flags or all_flags(row)
    state = build().state_dict()
    if way == "class":
        function(**flags)
        model = build()
    else:
        model = build()
        function(model=model, **flags)
    model.load_state_dict(state)
    return model


def builder(name, **changes):
    if tiny_models.build(name, **changes) is None:
        pytest.skip(f"transformers {transformers.__version__} has no {tiny_models.MODELS[name][0]}")
    return lambda: tiny_models.build(name, **changes)


def steps(name, model):
    """Losses and gradients of three steps, with the weights moving."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    for step in range(STEPS):
        output = model(**tiny_models.inputs_of(name, seed=step))
        loss = output.loss if "loss" in output else output.last_hidden_state.square().mean()
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found


def assert_same(actual, expected, what, tolerance=1e-4, besides=0.0):
    # a gradient far smaller than the others is what large terms left of each other
    scale = max(float(expected.detach().abs().max()) if expected.numel() else 0.0, 1e-2)
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance * scale + besides, msg=lambda text: f"{what}: {text}", check_dtype=True
    )


def assert_same_steps(found, expected, of_rounded_weights):
    """Losses and gradients. Steps of some models are less certain than that: a difference may be as large as the one that
    `of_rounded_weights()` has, the stock model's steps from weights that are off by one rounding."""
    for step, ((loss, gradients), (wanted_loss, wanted)) in enumerate(zip(found, expected, strict=True)):
        assert_same(loss, wanted_loss, f"loss of step {step}", 2e-5)
        assert gradients.keys() == wanted.keys()
        for name, gradient in wanted.items():
            try:
                assert_same(gradients[name], gradient, name)
            except AssertionError:
                moved = (of_rounded_weights()[step][1][name] - gradient).abs().max()
                assert_same(gradients[name], gradient, f"{name} of step {step}", besides=float(moved))


def steps_of_rounded_weights(name, model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2.0**-23 * torch.randint(0, 2, parameter.shape))
    return steps(name, model)


def fields(output):
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


# ---- training and evaluation -----------------------------------------------------------------------------------------


@each_model
@both_ways
def test_three_steps_and_evaluation_equal_stock(name, way, caplog):
    build = builder(name)
    stock = build()
    first = copy.deepcopy(stock)
    expected = steps(name, stock)
    stock.eval()
    with torch.no_grad():
        answers = fields(stock(**tiny_models.inputs_of(name, seed=7)))
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # none of Hugging Face's may be caused by us
        model = apply(name, way, build)
        found = steps(name, model)
        assert_same_steps(
            found, expected, functools.cache(lambda: steps_of_rounded_weights(name, copy.deepcopy(first)))
        )
        if row_of(name).heads and asks_for_loss(type(stock).forward):
            assert model(**tiny_models.inputs_of(name)).logits is None
        model.eval()
        with torch.no_grad():
            found = fields(model(**tiny_models.inputs_of(name, seed=7)))
    assert found.keys() == answers.keys()
    for field, value in answers.items():
        assert_same(found[field], value, field)
    assert [text for text in warnings_of(caplog) if "replaced nothing" not in text] == []


@pytest.mark.parametrize("name", sorted(set(tiny_models.MODELS) - {"pixtral"}))
@both_ways
def test_generation_gives_the_same_tokens(name, way):
    build = builder(name)
    inputs = tiny_models.inputs_of(name, labels=False, length=8)
    mask = torch.ones_like(inputs["input_ids"])
    if name not in tiny_models.SEES:
        inputs["input_ids"][0, :3], mask[0, :3] = 0, 0  # left padding
    options = dict(attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    expected = build().eval().generate(**inputs, **options)
    assert torch.equal(apply(name, way, build).eval().generate(**inputs, **options), expected)


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "qwen3_moe", "qwen3_next"])
@both_ways
def test_router_losses_are_filled_as_stock_fills_them(name, way):
    build = builder(name)
    inputs = dict(tiny_models.batch(), output_router_logits=True, use_cache=False)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    without_labels = {key: value for key, value in inputs.items() if key != "labels"}
    stock, model = build(), apply(name, way, build)
    outputs = [m(**inputs) for m in (stock, model)]
    assert outputs[1].logits is None and float(outputs[0].aux_loss.detach()) > 0.5
    for field in ("loss", "aux_loss"):
        assert_same(outputs[1][field], outputs[0][field], field, 2e-5)
    for output in outputs:
        output.loss.backward()
    ours = dict(model.named_parameters())
    for parameter, own in stock.named_parameters():
        assert (own.grad is None) == (ours[parameter].grad is None)
        if own.grad is not None:
            assert_same(ours[parameter].grad, own.grad, parameter)
    assert_same(model(**without_labels).aux_loss, stock(**without_labels).aux_loss, "aux_loss without labels")
    with torch.no_grad():
        for given in (inputs, without_labels):
            expected, output = (m.eval()(**given, return_dict=False) for m in (stock, model))
            assert len(output) == len(expected)
            for index in range(3 if given is inputs else 2):  # loss?, aux_loss, logits
                assert_same(output[index], expected[index], f"{index} of the tuple")
            assert len(output[-1]) == len(expected[-1])  # router logits


# Where a family's forward has a name of its own in liger_kernel.transformers.model.
FORWARDS = {
    "gemma3_text": "gemma3.causal_forward",
    "gemma4_text": "gemma4.causal_forward",
    "gemma3": "gemma3.multimodal_forward",
    "hunyuan_v1_dense": "hunyuan_v1.lce_forward",
    "qwen3_5 sees": "qwen3_5.lce_forward_for_multimodal",
}


@pytest.mark.parametrize("name", sorted(name for name in tiny_models.MODELS if row_of(name).heads))
def test_the_forward_by_its_name_gives_stocks_loss(name):
    build = builder(name)
    file, _, function = FORWARDS.get(name, f"{name}.lce_forward").partition(".")
    forward = getattr(importlib.import_module(f"liger_kernel.transformers.model.{file}"), function)
    stock, model = build(), build()
    inputs = tiny_models.inputs_of(name)
    expected = stock(**inputs)
    output = forward(model, **inputs, return_token_accuracy=True)
    assert output.logits is None and 0 <= output.token_accuracy <= 1
    assert_same(output.loss, expected.loss, "loss", 2e-5)
    model.eval()
    assert_same(forward(model, **inputs).logits, stock.eval()(**inputs).logits, "logits")


# ---- bits ------------------------------------------------------------------------------------------------------------


@each_model
@both_ways
def test_norms_have_stocks_bits_in_bf16(name, way):
    build = builder(name)
    stock, model = build().bfloat16(), apply(name, way, build).bfloat16()
    compared = 0
    generator = torch.Generator().manual_seed(3)
    for path, own in stock.named_modules():
        if "RMSNorm" not in type(own).__name__:
            continue
        ours = model.get_submodule(path)
        if patching.is_ours(ours.forward):
            width = own.weight.shape[0] if getattr(own, "weight", None) is not None else 8
            # Values of few bits: their squares add up without rounding, in whatever order, so the bits are the formula's.
            x = torch.randint(-12, 13, (64, width), generator=generator).bfloat16() / 4
            different = int((ours(x) != own(x)).sum())
            assert different == 0, f"{path}: {different} of {x.numel()} values differ"
            compared += 1
    assert compared >= (3 if way == "instance" or row_of(name).rope else 0)


# ---- what is patched -------------------------------------------------------------------------------------------------


@each_model
def test_an_instance_is_patched_where_the_row_says_and_comes_back(name):
    build = builder(name)
    model = build()
    before = {path: (type(m), dict(m.__dict__)) for path, m in model.named_modules()}
    row = row_of(name)
    getattr(monkey_patch, f"apply_liger_kernel_to_{row.name}")(model=model, **all_flags(row))
    assert sum(patching.is_ours(m.forward) for m in model.modules()) >= 4
    revert_liger_kernel(model)
    assert {path: (type(m), dict(m.__dict__)) for path, m in model.named_modules()} == before


@each_model
def test_classes_come_back(name):
    builder(name)
    row = row_of(name)
    modeling = importlib.import_module(row.module)
    heads = [head for head in row.heads if hasattr(modeling, head)]

    def state():
        classes = {value for value in vars(modeling).values() if isinstance(value, type)} | {torch.nn.LayerNorm}
        forwards = {c: getattr(modeling, c).forward for c in heads}
        return dict(vars(modeling)), forwards, {cls: cls.__init__ for cls in classes}

    before = state()
    getattr(monkey_patch, f"apply_liger_kernel_to_{row.name}")(**all_flags(row))
    assert state() != before
    revert_liger_kernel()
    assert state() == before


# ---- the table itself ------------------------------------------------------------------------------------------------


def test_every_row_has_a_name_a_model_type_and_a_tiny_model():
    assert sorted(_exports.FAMILIES) == sorted(ROWS)
    assert {row_of(name).name for name in tiny_models.MODELS} == set(ROWS)
    for row in model_table.ROWS:
        for model_type in row.types:
            function = MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]
            assert function is getattr(monkey_patch, f"apply_liger_kernel_to_{row.name}")
            more = ["kwargs"] if row.more_flags else []
            assert list(inspect.signature(function).parameters) == [*row.flags, "model", *more]


def test_the_models_page_is_what_the_table_says():
    spec = importlib.util.spec_from_file_location("gen_models_doc", ROOT / "tools" / "gen_models_doc.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page(), "run tools/gen_models_doc.py"


@pytest.mark.parametrize("name", ["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_5_text"])
def test_functions_also_go_by_other_model_types(name):
    lk = importlib.import_module("liger_kernel.transformers")
    assert getattr(lk, f"apply_liger_kernel_to_{name}") is MODEL_TYPE_TO_APPLY_LIGER_FN[name]


def test_gemma2_in_training_asks_for_eager_attention(caplog):
    build = builder("gemma2", attn_logit_softcapping=None)
    model = apply("gemma2", "instance", build)
    model.config._attn_implementation = "sdpa"
    for _ in range(2):
        model(**tiny_models.batch())
    assert len(warnings_of(caplog)) == 1 and "sdpa" in warnings_of(caplog)[0]
