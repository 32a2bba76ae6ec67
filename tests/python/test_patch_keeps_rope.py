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
