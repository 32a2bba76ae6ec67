"""The rest of the families' grid, too long for every run: each flag alone, bf16, tuples. `make test-transformers` runs it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

import tiny_models  # noqa: E402
from llama_patching import both_ways  # noqa: E402
from test_families import apply, assert_same, builder, row_of  # noqa: E402

from liger_kernel.transformers.model.fused_forward import asks_for_loss  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")


def step(name, model):
    """The loss, or what stands for it, and the gradients."""
    output = model(**tiny_models.inputs_of(name))
    loss = output.loss if "loss" in output else output.last_hidden_state.square().mean()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


FLAGS = [
    pytest.param(name, flag, id=f"{name}-{flag}")
    for name in sorted(tiny_models.MODELS)
    for flag in row_of(name).flags
    if flag not in row_of(name).alone and flag not in row_of(name).refused
]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
@both_ways
def test_each_flag_alone(name, flag, way):
    build = builder(name)
    expected = step(name, build())
    model = apply(name, way, build, **{other: other == flag for other in row_of(name).flags})
    loss, gradients = step(name, model)
    assert_same(loss, expected[0], "loss", 2e-5)
    assert gradients.keys() == expected[1].keys()
    for parameter, gradient in expected[1].items():
        assert_same(gradients[parameter], gradient, parameter)


@pytest.mark.parametrize("name", sorted(tiny_models.MODELS))
@both_ways
def test_bf16(name, way):
    """Held to fp32 on the same weights: no further from it than the stock model is, but for a step of bf16."""

    def build():
        return builder(name)().bfloat16()

    def run(model, dtype):
        inputs = tiny_models.inputs_of(name)
        model.to(dtype)
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        output = model(**given)
        loss = output.loss if "loss" in output else output.last_hidden_state.float().square().mean()
        return float(loss.detach().float())

    exact, stock = run(build(), torch.float32), run(build(), torch.bfloat16)
    ours = run(apply(name, way, build), torch.bfloat16)
    assert abs(ours - exact) <= 2 * abs(stock - exact) + abs(exact) / 64


@pytest.mark.parametrize("name", sorted(n for n in tiny_models.MODELS if row_of(n).heads))
@both_ways
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_tuples(name, way, labels):
    build = builder(name)
    stock, model = build().eval(), apply(name, way, build).eval()
    inputs = tiny_models.inputs_of(name, labels=labels)
    with torch.no_grad():
        expected, output = (m(**inputs, return_dict=False, use_cache=False) for m in (stock, model))
        assert len(output) == len(expected)
        for index, value in enumerate(expected):
            if isinstance(value, torch.Tensor):
                assert_same(output[index], value, f"{index} of the tuple")
        if labels and asks_for_loss(type(stock).forward):
            skipped = model(**inputs, return_dict=False, use_cache=False, skip_logits=True)
            assert skipped[1] is None
            assert_same(skipped[0], expected[0], "loss", 2e-5)
