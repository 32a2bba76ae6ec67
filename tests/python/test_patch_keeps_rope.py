"""Rotary modules of others: frequencies that are trained, and tables whose halves differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import apply, assert_close, assert_same_step, both_ways, warnings_of  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

import liger_kernel.transformers as lk  # noqa: E402
from liger_kernel.transformers.qwen2vl_mrope import liger_multimodal_rotary_pos_emb  # noqa: E402
from liger_kernel.transformers.rope import (  # noqa: E402
    liger_rotary_pos_emb_gpt_oss,
    liger_rotary_pos_emb_vision,
    rotary_pos_emb_of_images,
)

pytestmark = pytest.mark.usefixtures("unpatched")


class Rotary(nn.Module):
    def __init__(self, trained, second):
        super().__init__()
        self.frequencies, self.second = nn.Parameter(torch.tensor([1.0, 0.5, 0.25, 0.1]), trained), second

    def forward(self, x, position_ids):
        angles = position_ids[..., None].float() * self.frequencies
        angles = torch.cat((angles, self.second * angles), -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def steps(way, trained, second):
    def build():
        model = tiny_llama.build()
        model.model.rotary_emb = Rotary(trained, second)
        return model

    ids, labels = tiny_llama.batch()
    expected = tiny_llama.run(build(), input_ids=ids, labels=labels)
    model = apply(build, way)
    return tiny_llama.run(model, input_ids=ids, labels=labels), expected


@both_ways
@pytest.mark.parametrize("second", [1.0, 1.5])
def test_trained_frequencies_get_their_gradient(way, second):
    step, expected = steps(way, True, second)
    assert_same_step(step, expected, 1e-4)
    assert step[1]["model.rotary_emb.frequencies"].abs().max() > 0


def test_another_rotary_module_keeps_the_stock_rotation(caplog):
    own = modeling_llama.apply_rotary_pos_emb
    step, expected = steps("instance", False, 1.5)
    assert_same_step(step, expected, 1e-4)
    assert step[0].logits is None  # the rest is patched
    assert modeling_llama.apply_rotary_pos_emb is own
    assert len(warnings_of(caplog)) == 1 and "Rotary" in warnings_of(caplog)[0]


def test_a_replaced_forward_of_the_rotary_module_keeps_the_stock_rotation(caplog):
    model = tiny_llama.build()
    own = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda *args: own(*args)
    lk.apply_liger_kernel_to_llama(model=model)
    assert modeling_llama.apply_rotary_pos_emb is not lk.liger_rotary_pos_emb
    assert len(warnings_of(caplog)) == 1 and "rotary" in warnings_of(caplog)[0]


def rotated(x, cos, sin):
    """In plain torch; one column for each element, or, if there are fewer, for each pair."""
    if cos.shape[-1] < x.shape[-1]:
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def of_text(q, k, cos, sin):
    return rotated(q, cos[:, None], sin[:, None]), rotated(k, cos[:, None], sin[:, None])


def of_vision(q, k, cos, sin):
    return rotated(q, cos[:, None], sin[:, None]), rotated(k, cos[:, None], sin[:, None])


def of_images(q, k, cos, sin):
    return rotated(q, cos, sin), rotated(k, cos, sin)


def of_sections(q, k, cos, sin):
    cos, sin = (
        torch.cat([t[i % 3] for i, t in enumerate(x.split([1, 2, 1] * 2, -1))], -1)[:, None] for x in (cos, sin)
    )
    return rotated(q, cos, sin), rotated(k, cos, sin)


HEADS = ((2, 4, 5, 8), (2, 2, 5, 8))


@pytest.mark.parametrize(
    ("ours", "theirs", "shapes", "table"),
    [
        pytest.param(lk.liger_rotary_pos_emb, of_text, HEADS, (2, 5, 8), id="text"),
        pytest.param(lk.liger_rotary_pos_emb, of_text, HEADS, (1, 5, 8), id="one batch"),
        pytest.param(liger_rotary_pos_emb_gpt_oss, of_text, HEADS, (2, 5, 4), id="half width"),
        pytest.param(liger_rotary_pos_emb_vision, of_vision, ((5, 4, 8), (5, 2, 8)), (5, 8), id="vision"),
        pytest.param(rotary_pos_emb_of_images, of_images, HEADS, (5, 8), id="images"),
        pytest.param(
            lambda *given: liger_multimodal_rotary_pos_emb(*given, [1, 2, 1]),
            of_sections,
            HEADS,
            (3, 2, 5, 8),
            id="sections",
        ),
    ],
)
def test_tables_that_need_a_gradient_get_it(ours, theirs, shapes, table):
    """Each column its own: the halves of these tables differ."""
    torch.manual_seed(0)
    given = [torch.randn(shape, requires_grad=True) for shape in (*shapes, table, table)]
    expected, results = theirs(*given), ours(*given)
    upstream = [torch.randn_like(x) for x in expected]
    for result, other in zip(results, expected, strict=True):
        assert_close(result, other)
    for gradient, other in zip(
        torch.autograd.grad(results, given, upstream), torch.autograd.grad(expected, given, upstream), strict=True
    ):
        assert_close(gradient, other)


# ---- tables that are changed on their way, and calls that ours does not take -----------------------------------------


def weighted(tables):
    cos, sin = tables
    return cos * torch.linspace(0.5, 1, cos.shape[-1], dtype=cos.dtype), sin


def by_hook_of_layers(model):
    def hook(module, args, kwargs):
        return args, {**kwargs, "position_embeddings": weighted(kwargs["position_embeddings"])}

    for layer in model.model.layers:
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def in_place(model):
    def hook(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        with torch.no_grad():
            cos.copy_(weighted((cos, sin))[0])

    model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)


@pytest.fixture
def global_hook():
    handles = []
    yield lambda model: handles.append(
        nn.modules.module.register_module_forward_hook(
            lambda module, args, output: weighted(output) if "Rotary" in type(module).__name__ else None
        )
    )
    for handle in handles:
        handle.remove()


@both_ways
@pytest.mark.parametrize("way_of_change", ["layers", "in place", "global"])
def test_tables_that_are_changed_after_they_were_made_count(way_of_change, way, caplog, global_hook):
    change = {"layers": by_hook_of_layers, "in place": in_place, "global": global_hook}[way_of_change]
    ids, labels = tiny_llama.batch()
    untouched = tiny_llama.run(tiny_llama.build(), input_ids=ids, labels=labels)[0].loss
    stock, model = tiny_llama.build(), apply(tiny_llama.build, way)
    lk.revert_liger_kernel()
    change(stock)
    expected = tiny_llama.run(stock, input_ids=ids, labels=labels)
    assert abs(expected[0].loss - untouched) > 1e-4
    if way == "class":
        model = apply(tiny_llama.build, way)
    else:
        lk.apply_liger_kernel_to_llama(model=model)
    if way_of_change != "global":
        change(model)
    assert_same_step(tiny_llama.run(model, input_ids=ids, labels=labels), expected, 1e-4)
    said = [text for text in warnings_of(caplog) if "table" in text]
    assert len(said) == 1, warnings_of(caplog)


def test_tables_as_they_were_made_are_not_compared(monkeypatch):
    from liger_kernel.transformers import stock_rotation

    ids, labels = tiny_llama.batch()
    model = apply(tiny_llama.build, "class")
    monkeypatch.setattr(stock_rotation, "_has_equal_halves", lambda table: pytest.fail("compared"))
    tiny_llama.run(model, input_ids=ids, labels=labels)
    with torch.inference_mode():
        model(input_ids=ids)


def test_the_recording_of_tables_is_taken_off():
    own = modeling_llama.LlamaRotaryEmbedding.forward
    lk.apply_liger_kernel_to_llama()
    lk.revert_liger_kernel()
    assert modeling_llama.LlamaRotaryEmbedding.forward is own


CALLS = {
    "sequence before heads": (((2, 5, 4, 8), (2, 5, 2, 8), (2, 5, 8)), dict(unsqueeze_dim=2)),
    "no batch": (((4, 5, 8), (2, 5, 8), (5, 8)), dict(unsqueeze_dim=0)),
    "tables with heads": (((2, 4, 5, 8), (2, 2, 5, 8), (2, 5, 8)), dict(unsqueeze_dim=-3)),
    "other length of k": (((2, 4, 1, 8), (2, 2, 5, 8), (2, 5, 8)), {}),
    "one position": (((2, 4, 5, 8), (2, 2, 5, 8), (2, 1, 8)), {}),
    "heads in place of positions": (((2, 5, 5, 8), (2, 5, 5, 8), (2, 5, 8)), dict(unsqueeze_dim=2)),
    "one head": (((2, 4, 5, 8), (2, 4, 5, 8), (1, 1, 8)), {}),
    "five dimensions": (((2, 1, 4, 5, 8), (2, 1, 2, 5, 8), (2, 5, 8)), dict(unsqueeze_dim=1)),
    "fp32 tables": (((2, 4, 5, 8), (2, 2, 5, 8), (2, 5, 8)), dict(dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_ours_does_not_take_is_the_familys_own(name):
    shapes, options = CALLS[name]
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    q, k = (torch.randn(shape).to(dtype) for shape in shapes[:2])
    angles = torch.rand(*shapes[2][:-1], 4)
    cos, sin = (torch.cat((x, x), -1) for x in (angles.cos(), angles.sin()))

    def called():
        try:
            return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, **options)
        except RuntimeError as error:
            return str(error)

    expected = called()
    lk.apply_liger_kernel_to_llama()
    found = called()
    assert type(found) is type(expected)
    if not isinstance(found, str):
        for x, other in zip(found, expected, strict=True):
            assert x.dtype is other.dtype
            assert_close(x, other)


def test_a_rotary_module_is_not_told_as_patched(capsys):
    done = lk.apply_liger_kernel(tiny_llama.build())
    assert "model.norm" in done and "model.rotary_emb" not in done
