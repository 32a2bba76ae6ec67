"""What computes the loss is what the stock model would call: replaced losses, their arguments, and the module that projects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import apply, assert_same_step, both_ways, warnings_of  # noqa: E402
from transformers.loss import loss_utils  # noqa: E402

from liger_kernel.transformers import _apply_liger_kernel_to_instance  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")


def step(model, **options):
    ids, labels = tiny_llama.batch()
    return tiny_llama.run(model, input_ids=ids, labels=labels, **options)


def assert_step_as_stock(build, way, **options):
    """The output of the patched model's step, which is the stock model's."""
    expected = step(build(), **options)
    actual = step(apply(build, way), **options)
    assert_same_step(actual, expected, 1e-4)
    return actual[0]


def plain_loss(logits, labels, vocab_size, **options):
    return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1), **options)


# ---- what a loss is given --------------------------------------------------------------------------------------------


def weighted(logits, labels, vocab_size, weight=1.0, **kwargs):
    return weight * plain_loss(logits, labels, vocab_size)


def reduced(logits, labels, vocab_size, reduction="mean", **kwargs):
    return plain_loss(logits, labels, vocab_size, reduction=reduction)


def capped(logits, labels, vocab_size, softcap=1.0, **kwargs):
    return plain_loss(softcap * torch.tanh(logits / softcap), labels, vocab_size)


def with_operands(logits, labels, vocab_size, input=1.0, target=1.0, **kwargs):
    return input * target * plain_loss(logits, labels, vocab_size)


def that_must_be_told(logits, labels, vocab_size, *, scale, **kwargs):
    return (2.0 if scale is None else scale) * plain_loss(logits, labels, vocab_size)


@both_ways
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (weighted, {"weight": 3.0}),
        (reduced, {"reduction": "sum"}),
        (capped, {"softcap": 2.0}),
        (with_operands, {"input": 2.0, "target": 3.0}),
        (that_must_be_told, {"scale": None}),
    ],
)
def test_another_loss_gets_every_keyword(loss, options, way):
    def build():
        model = tiny_llama.build(attn_implementation="eager")  # other attention refuses `softcap`
        model.loss_function = loss
        return model

    assert_step_as_stock(build, way, **options)


def test_the_base_model_gets_every_keyword_then():
    seen = []

    def build():
        model = tiny_llama.build(attn_implementation="eager")
        model.loss_function = weighted
        model.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
        return model

    options = dict(weight=1.0, reduction="mean", softcap=2.0)
    step(build(), **options)
    step(apply(build, "instance"), **options)
    assert all(options.keys() <= keywords for keywords in seen) and len(seen) == 2


@both_ways
@pytest.mark.parametrize("options", [{"return_dict": True}, {"past_key_values": None}, {"past_key_values": "new"}])
def test_a_loss_is_not_given_what_the_stock_forward_keeps(options, way):
    def build():
        model = tiny_llama.build()
        model.loss_function = lambda logits, labels, vocab_size: plain_loss(logits, labels, vocab_size)
        return model

    def one_step(model):
        given = {n: transformers.DynamicCache(config=model.config) if v == "new" else v for n, v in options.items()}
        return step(model, **given)

    expected = one_step(build())
    assert_same_step(one_step(apply(build, way)), expected, 1e-4)


class Padded(transformers.LlamaForCausalLM):
    """Its head has columns for tokens that there are not."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size + 3, bias=False)
        self.loss_function = lambda logits, labels, vocab_size, **kwargs: plain_loss(
            logits[..., :vocab_size], labels, vocab_size
        )


@both_ways
def test_the_vocabulary_size_is_the_configs(way):
    def build():
        torch.manual_seed(0)
        return Padded(tiny_llama.config())

    assert_step_as_stock(build, way)


@pytest.mark.parametrize(
    "family",
    ["llama", "mixtral", "gemma2", "gemma3_text", "gemma4_text", "qwen3_moe", "qwen3_next", "gpt_oss", "llava"],
)
@pytest.mark.parametrize("of", ["config", "model"])
def test_the_vocabulary_size_is_that_of_the_familys_forward(family, of):
    """The config's, which others set to that of their tokenizer, or the one that the model has kept."""
    sizes = []

    def loss(logits, labels, vocab_size, **kwargs):
        sizes.append(vocab_size)
        return logits.float().square().mean()

    for patched in (False, True):
        model = tiny_models.build(family)
        if model is None:
            pytest.skip(f"transformers {transformers.__version__} has no {family}")
        model.loss_function = loss
        (model.config.get_text_config() if of == "config" else model).vocab_size = 101
        if patched:
            _apply_liger_kernel_to_instance(model)
        model(**tiny_models.inputs_of(family))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma2", "qwen3_moe"])
def test_a_loss_is_called_in_the_way_of_the_family(family):
    calls = []

    def loss(*args, **kwargs):
        calls.append((len(args), sorted(kwargs), args[2] if len(args) > 2 else kwargs["vocab_size"]))
        return (args[0] if args else kwargs["logits"]).float().square().mean()

    ids, labels = tiny_llama.batch()
    for patched in (False, True):
        model = tiny_models.build(family).train()
        model.loss_function = loss
        if patched:
            _apply_liger_kernel_to_instance(model)
        model(input_ids=ids, labels=labels, num_items_in_batch=3)
    assert calls[0] == calls[1]
    assert (calls[0][0] == 3) is (family != "llama")


# ---- what Hugging Face's loss calls ----------------------------------------------------------------------------------


def ten_times(source, target, num_items_in_batch=None, ignore_index=-100, **kwargs):
    return 10 * nn.functional.cross_entropy(source, target, ignore_index=ignore_index)


@both_ways
def test_a_replaced_part_of_the_loss_is_called(way, caplog, monkeypatch):
    monkeypatch.setattr(loss_utils, "fixed_cross_entropy", ten_times)
    assert assert_step_as_stock(tiny_llama.build, way).loss > 30
    assert any("fixed_cross_entropy" in text for text in warnings_of(caplog))


@both_ways
def test_a_wrapped_cross_entropy_is_called(way, caplog, monkeypatch):
    own = nn.functional.cross_entropy
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda *args, **kwargs: 5 * own(*args, **kwargs))
    assert assert_step_as_stock(tiny_llama.build, way).loss > 15
    assert any("cross_entropy" in text for text in warnings_of(caplog))


# ---- which module projects -------------------------------------------------------------------------------------------


class NoOutputEmbeddings(transformers.LlamaForCausalLM):
    def get_output_embeddings(self):
        return None


class OtherOutputEmbeddings(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.other = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.other


@both_ways
@pytest.mark.parametrize("model_class", [NoOutputEmbeddings, OtherOutputEmbeddings])
def test_the_head_is_the_one_that_the_forward_calls(model_class, way, caplog):
    def build():
        torch.manual_seed(0)
        return model_class(tiny_llama.config()).train()

    assert assert_step_as_stock(build, way).logits is None
    assert warnings_of(caplog) == []
