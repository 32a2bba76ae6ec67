"""The fused-loss forward means what Hugging Face's means."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import (  # noqa: E402
    assert_close,
    assert_same_step,
    assert_trains_alike,
    pair,
    warnings_of,
)

from liger_kernel.transformers import apply_liger_kernel_to_llama, revert_liger_kernel  # noqa: E402
from liger_kernel.transformers import functional as liger_functional  # noqa: E402
from liger_kernel.transformers.model import causal_lm, lm_head, loss_utils  # noqa: E402
from liger_kernel.transformers.model.fused_forward import (  # noqa: E402
    LANGUAGE_MODEL,
    fused_forward,
    named_forward,
)
from liger_kernel.transformers.rows import Head  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")


# ---- what the fused-loss forward means -------------------------------------------------------------------------------
def shift(labels):
    """Each position's next label."""
    return nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]


def give_bias(model):
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, tiny_llama.VOCAB, device=model.device))


def train_only(trained):
    def prepare(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained(name))

    return prepare


@pytest.mark.parametrize(
    ("changes", "prepare"),
    [
        pytest.param({}, lambda model: None, id="plain"),
        pytest.param({"tie_word_embeddings": True}, lambda model: None, id="tied"),
        pytest.param({}, give_bias, id="bias"),
        pytest.param({}, train_only(lambda name: name != "lm_head.weight"), id="frozen head"),
        pytest.param({}, train_only(lambda name: name == "lm_head.weight"), id="head alone"),
    ],
)
def test_training_gives_the_loss_and_no_logits(device, changes, prepare):
    stock, patched = pair(device, **changes)
    for model in (stock, patched):
        prepare(model)
    output, _ = assert_trains_alike(patched, stock, device=device)
    assert output.logits is None and output.loss.ndim == 0
    assert output.token_accuracy is None and output.predicted_tokens is None


def test_everything_patched_gives_the_same_gradients(device):
    ids, labels = tiny_llama.batch(device)
    expected_step = tiny_llama.run(tiny_llama.build(device), input_ids=ids, labels=labels)
    patched = tiny_llama.build(device)
    apply_liger_kernel_to_llama(model=patched)  # RoPE in the module, so for every model
    assert_same_step(tiny_llama.run(patched, input_ids=ids, labels=labels), expected_step, 1e-4)


def test_evaluation_gives_logits_and_loss(device):
    stock, patched = (model.eval() for model in pair(device))
    ids, labels = tiny_llama.batch(device)
    with torch.no_grad():
        expected, output = (m(input_ids=ids, labels=labels) for m in (stock, patched))
        assert_close(output.logits, expected.logits)
        assert_close(output.loss, expected.loss)
        skipped = patched(input_ids=ids, labels=labels, skip_logits=True)
        assert skipped.logits is None
        assert_close(skipped.loss, expected.loss)
        alone = patched(input_ids=ids)
        assert alone.loss is None and alone.logits.shape == expected.logits.shape


@pytest.mark.filterwarnings("error::FutureWarning")  # none of transformers' may be caused by us
def test_the_cache_goes_by_its_old_and_its_new_name(device):
    stock, patched = (model.eval() for model in pair(device))
    ids, _ = tiny_llama.batch(device)
    with torch.no_grad():
        expected = stock(input_ids=ids).logits[:, 5:]
        for name, other in (("past_key_values", "cache"), ("cache", "past_key_values")):
            first = patched(input_ids=ids[:, :5], use_cache=True)
            cache = first.cache if "cache" in first else first.past_key_values
            output = patched(input_ids=ids[:, 5:], **{name: cache, other: None})
            assert_close(output.logits, expected)
        with pytest.raises(ValueError, match="past_key_values and cache"):
            patched(input_ids=ids[:, 5:], cache=cache, past_key_values=cache)


def test_skip_logits_false_in_training(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    expected = stock(input_ids=ids, labels=labels)
    output = patched(input_ids=ids, labels=labels, skip_logits=False)
    assert_close(output.logits, expected.logits)
    assert_close(output.loss, expected.loss)


def test_skip_logits_without_targets(caplog):
    _, patched = pair()
    ids, _ = tiny_llama.batch()
    with pytest.raises(ValueError, match="skip_logits is True, but labels and shift_labels are None"):
        patched(input_ids=ids, skip_logits=True)
    patched.eval()
    for _ in range(2):
        assert patched(input_ids=ids, skip_logits=True).logits is not None
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_shift_labels(device, mode):
    stock, patched = (getattr(m, mode)() for m in pair(device))
    ids, labels = tiny_llama.batch(device)
    shifted = shift(labels)
    expected = stock(input_ids=ids, labels=labels).loss
    for given in (dict(shift_labels=shifted), dict(labels=labels, shift_labels=shifted)):
        output = patched(input_ids=ids, **given)
        assert (output.logits is None) == (mode == "train")
        assert_close(output.loss, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch(device, mode, as_tensor):
    stock, patched = (getattr(m, mode)() for m in pair(device))
    ids, labels = tiny_llama.batch(device)
    items = torch.tensor(31) if as_tensor else 31  # a tensor may be on another device
    expected = stock(input_ids=ids, labels=labels, num_items_in_batch=items).loss
    output = patched(input_ids=ids, labels=labels, num_items_in_batch=items)
    assert output.loss.ndim == 0
    assert_close(output.loss, expected)


def test_ignore_index_reaches_the_loss(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    labels = labels.masked_fill(labels == -100, 5)
    expected = stock(input_ids=ids, labels=labels, ignore_index=5).loss
    assert_close(patched(input_ids=ids, labels=labels, ignore_index=5).loss, expected)


def test_logits_to_keep(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    stock.eval(), patched.eval()
    index = torch.tensor([1, 4, 5], device=device)
    for keep in (0, 1, 4, index):
        assert_close(
            patched(input_ids=ids, logits_to_keep=keep).logits, stock(input_ids=ids, logits_to_keep=keep).logits
        )
    shifted = shift(labels)
    full = stock(input_ids=ids).logits.float()
    patched.train()
    for keep, targets in ((4, shifted[:, -4:]), (index, shifted[:, index])):
        kept = full[:, -4:] if keep is not index else full[:, index]
        expected = nn.functional.cross_entropy(kept.reshape(-1, tiny_llama.VOCAB), targets.reshape(-1))
        assert_close(patched(input_ids=ids, shift_labels=targets, logits_to_keep=keep).loss, expected)


def test_two_dimensional_logits_to_keep(device):
    modeling_utils = importlib.import_module("transformers.modeling_utils")
    if not hasattr(modeling_utils, "slice_logits_to_keep"):
        pytest.skip(f"transformers {transformers.__version__} has no two-dimensional logits_to_keep")
    stock, patched = (m.eval() for m in pair(device))
    ids, _ = tiny_llama.batch(device)
    positions = torch.tensor([[0, 3], [2, 8]], device=device)
    keep_mask = torch.zeros_like(ids, dtype=torch.bool)
    keep_mask[0, 2] = keep_mask[1, 1] = keep_mask[1, 7] = True
    for keep in (positions, keep_mask):
        expected = stock(input_ids=ids, logits_to_keep=keep).logits
        assert_close(patched(input_ids=ids, logits_to_keep=keep).logits, expected)
    patched.train()
    targets = ids[keep_mask]
    logits = stock(input_ids=ids, logits_to_keep=keep_mask).logits.float()
    expected = nn.functional.cross_entropy(logits, targets)
    assert_close(patched(input_ids=ids, logits_to_keep=keep_mask, shift_labels=targets).loss, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_labels_are_not_sliced(mode):
    _, patched = pair()
    getattr(patched, mode)()
    ids, labels = tiny_llama.batch()
    with pytest.raises(ValueError, match=r"8 positions.*18 targets"):
        patched(input_ids=ids, labels=labels, logits_to_keep=4)


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_targets_of_a_wrong_length_are_blamed_on_themselves(name):
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    with pytest.raises(ValueError, match=rf"{name}.*14 .*18 positions") as error:
        patched(input_ids=ids, **{name: labels[:, :7]})
    assert "logits_to_keep" not in str(error.value)  # nobody passed it


def test_accuracy_and_predictions(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    output = patched(input_ids=ids, labels=labels, return_token_accuracy=True, return_predicted_tokens=True)
    shifted = shift(labels).reshape(-1)
    best = stock(input_ids=ids).logits.argmax(-1).reshape(-1)
    valid = shifted != -100
    assert_close(output.token_accuracy, (best == shifted)[valid].float().mean())
    assert torch.equal(output.predicted_tokens.reshape(-1)[valid], best[valid])
    assert not output.token_accuracy.requires_grad
    items = patched(input_ids=ids, labels=labels, return_token_accuracy=True, num_items_in_batch=11)
    assert_close(items.token_accuracy, output.token_accuracy)


def test_token_scaling(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    shifted = shift(labels).reshape(-1)
    rows = nn.functional.cross_entropy(
        stock(input_ids=ids).logits.float().reshape(-1, tiny_llama.VOCAB), shifted, reduction="none"
    )
    valid = shifted != -100
    expected = (rows * torch.exp(-rows.detach()))[valid].sum() / valid.sum()
    assert_close(patched(input_ids=ids, labels=labels, use_token_scaling=True).loss, expected)


def test_what_the_forward_sets_itself_is_ignored(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    expected = stock(input_ids=ids, labels=labels).loss
    noise = dict(reduction="none", softcap=1.0, input=1, weight=2, target=3)
    assert_close(patched(input_ids=ids, labels=labels, **noise).loss, expected)
    patched.eval()
    assert_close(patched(input_ids=ids, labels=labels, **noise).loss, expected)


def test_tuples(device):
    stock, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    options = dict(input_ids=ids, labels=labels, use_cache=False, output_hidden_states=True)
    expected = stock(**options)
    output = patched(return_dict=False, **options)
    assert isinstance(output, tuple) and output[1] is None
    assert_close(output[0], expected.loss)
    assert len(output[2]) == len(expected.hidden_states)
    assert_close(output[2][-1], expected.hidden_states[-1])
    accuracy = patched(return_dict=False, return_token_accuracy=True, **options)
    assert len(accuracy) == len(output) + 1 and accuracy[-1].ndim == 0
    patched.eval()
    assert patched(input_ids=ids, return_dict=False, use_cache=False)[0].shape[-1] == tiny_llama.VOCAB


def test_generation_is_unchanged(device):
    stock, patched = tiny_llama.build(device).eval(), tiny_llama.build(device).eval()
    ids, _ = tiny_llama.batch(device)
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected = stock.generate(ids, **options)
    apply_liger_kernel_to_llama(model=patched)
    assert torch.equal(patched.generate(ids, **options), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_fp32_weights(device, dtype):
    stock, patched = tiny_llama.build(device), tiny_llama.build(device)
    ids, labels = tiny_llama.batch(device)
    with torch.autocast(device.type, dtype=dtype):
        expected = stock(input_ids=ids, labels=labels).loss
    expected.backward()
    apply_liger_kernel_to_llama(model=patched)
    with torch.autocast(device.type, dtype=dtype):
        loss = patched(input_ids=ids, labels=labels).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert_close(loss, expected, 3e-2)
    for name, gradient in tiny_llama.gradients(patched).items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name


def compiled_step(model, **inputs):
    torch.compiler.reset()
    return tiny_llama.run(torch.compile(model, fullgraph=True, backend="aot_eager"), **inputs)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("forgets", [None, False])
def test_compiles_without_graph_breaks(device, hooked, forgets, monkeypatch):
    if forgets is not None:  # as before torch 2.13
        monkeypatch.setattr(lm_head, "_forgets_what_was_deleted", lambda: forgets)
    model = tiny_llama.build(device)
    ids, labels = tiny_llama.batch(device)
    apply_liger_kernel_to_llama(model=model)
    if hooked:
        model.lm_head.register_forward_pre_hook(lambda module, args: None)
    expected_step = tiny_llama.run(model, input_ids=ids, labels=labels)
    try:
        output, gradients = compiled_step(model, input_ids=ids, labels=labels)
    except torch._dynamo.exc.Unsupported as cause:
        revert_liger_kernel()  # RoPE was replaced for every model
        try:
            compiled_step(tiny_llama.build(device), input_ids=ids, labels=labels)
        except torch._dynamo.exc.Unsupported:
            pytest.skip("this torch cannot trace the model of this transformers, patched or not")
        raise cause
    gradients = {name.removeprefix("_orig_mod."): gradient for name, gradient in gradients.items()}
    assert_same_step((output, gradients), expected_step)
    assert (output.logits is None) == (not hooked or lm_head._forgets_what_was_deleted())
    assert "forward" not in model.lm_head.__dict__


@pytest.mark.parametrize("bias", [False, True])
def test_engine_softcap_and_multiplier(device, bias, monkeypatch):
    """What other families hand to the engine, shown on Llama."""
    monkeypatch.setattr(causal_lm, "_applies", lambda model_class, name: True)
    _, model = pair(device)
    if bias:
        give_bias(model)
    ids, labels = tiny_llama.batch(device)
    shifted = shift(labels).reshape(-1)
    raw = model.lm_head(model.model(input_ids=ids)[0]).float()
    capped = 3 * torch.tanh(0.5 * raw / 3)
    expected = nn.functional.cross_entropy(capped.reshape(-1, tiny_llama.VOCAB), shifted)
    model.config.cap, model.half = 3.0, 0.5
    forward = named_forward(Head(softcap="cap", multiplier="half"), LANGUAGE_MODEL)
    for mode in (True, False):
        model.train(mode)
        output = forward(model, input_ids=ids, labels=labels)
        assert_close(output.loss, expected)
    assert_close(output.logits, capped)


def test_a_cap_that_the_stock_forward_does_not_apply_is_not_applied():
    """Some releases of a family do not, so they do not train with it."""
    stock, model = pair()
    ids, labels = tiny_llama.batch()
    model.config.cap = 3.0
    forward = fused_forward(Head(softcap="cap"), transformers.LlamaForCausalLM.forward)
    assert_close(forward(model, input_ids=ids, labels=labels).loss, stock(input_ids=ids, labels=labels).loss)


def test_a_base_model_property_is_not_asked(device):
    """It is the model itself where the family's prefix names no module."""
    stock, patched = pair(device)
    for model in (stock, patched):
        model.base_model_prefix = "transformer"
    assert patched.base_model is patched
    assert_trains_alike(patched, stock, device=device)


def test_the_signature_is_the_stock_ones_and_one_more(device):
    stock, patched = pair(device)
    own = inspect.signature(transformers.LlamaForCausalLM.forward).parameters
    ours = inspect.signature(type(patched).forward).parameters
    assert [name for name in ours if name != "skip_logits"] == list(own) and "skip_logits" in ours
    ids, labels = tiny_llama.batch(device)
    positional = (ids, None, None, None, None, labels, False)
    assert_close(patched(*positional).loss, stock(*positional).loss)
    with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
        patched(ids, input_ids=ids)
    with pytest.raises(TypeError, match="positional"):
        patched(*positional, *positional)


@pytest.mark.parametrize(
    "options",
    [
        dict(label_smoothing=0.3),
        dict(label_smoothing=0.3, num_items_in_batch=11),
        dict(lse_square_scale=0.1),
        dict(use_token_scaling=True),
        dict(use_token_scaling=True, num_items_in_batch=11, label_smoothing=0.1),
        dict(ce_weight=torch.linspace(0.1, 2, tiny_llama.VOCAB)),
        dict(ce_weight=torch.linspace(0.1, 2, tiny_llama.VOCAB), use_token_scaling=True),
        dict(return_token_accuracy=True, return_predicted_tokens=True, use_token_scaling=True),
        dict(return_token_accuracy=True, return_predicted_tokens=True, ignore_index=5),
    ],
    ids=lambda options: " ".join(options),
)
def test_loss_options_count_in_evaluation_as_in_training(device, options):
    _, patched = pair(device)
    ids, labels = tiny_llama.batch(device)
    if "ignore_index" in options:
        labels = labels.masked_fill(labels == -100, 5)
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    plain = patched(input_ids=ids, labels=labels).loss
    expected, expected_gradients = tiny_llama.run(patched, input_ids=ids, labels=labels, **options)
    patched.eval()
    output, gradients = tiny_llama.run(patched, input_ids=ids, labels=labels, **options)
    assert output.logits is not None and expected.logits is None
    assert_close(output.loss, expected.loss)
    assert "ignore_index" in options or abs(output.loss - plain) > 1e-3 or "return_token_accuracy" in options
    for name, gradient in expected_gradients.items():
        assert_close(gradients[name], gradient)
    for name in ("token_accuracy", "predicted_tokens"):
        one, other = getattr(output, name), getattr(expected, name)
        assert (one is None) == (other is None) == (f"return_{name}" not in options)
        if one is not None:
            assert_close(one, other)


# ---- names that others replace ---------------------------------------------------------------------------------------


def test_replaced_loss_functions_are_used(monkeypatch):
    _, patched = pair()
    ids, labels = tiny_llama.batch()
    seen = []
    own = liger_functional.liger_fused_linear_cross_entropy

    def operator(*args, **kwargs):
        seen.append("operator")
        return own(*args, **kwargs)

    monkeypatch.setattr(liger_functional, "liger_fused_linear_cross_entropy", operator)
    expected = patched(input_ids=ids, labels=labels, accum_dtype=torch.float32, anything=1).loss
    whole = loss_utils.LigerForCausalLMLoss

    def wrapper(hidden_states, *args, **kwargs):
        seen.append("loss")
        return whole(hidden_states.contiguous(), *args, **kwargs)

    monkeypatch.setattr(loss_utils, "LigerForCausalLMLoss", wrapper)
    assert_close(patched(input_ids=ids, labels=labels).loss, expected)
    assert seen == ["operator", "loss", "operator"]


def test_unpack_cross_entropy_result():
    loss, other = torch.zeros(()), torch.ones(())
    unpack = loss_utils.unpack_cross_entropy_result
    assert unpack(loss) == (loss, None, None, None)
    assert unpack((loss,)) == (loss, None, None, None)
    assert unpack((loss, None, other)) == (loss, None, other, None)
    assert unpack(liger_functional.CrossEntropyOutput(loss, predicted_tokens=other)) == (loss, None, None, other)


# ---- what the base model is given ------------------------------------------------------------------------------------


def keywords_of_base(model, **inputs):
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, sorted(kwargs))), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return seen


@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": None}, {"return_dict": True}, {"attention_mask": None}])
def test_the_base_model_is_given_what_the_stock_forward_gives_it(more):
    stock, patched = pair()
    ids, labels = tiny_llama.batch()
    inputs = dict(input_ids=ids, labels=labels, **more)
    assert keywords_of_base(patched, **inputs) == keywords_of_base(stock, **inputs)


def test_a_base_model_without_return_dict_trains(monkeypatch):
    stock, patched = pair()
    cls = type(stock.model)
    own, names = cls.forward, set(inspect.signature(cls.forward).parameters)

    def forward(
        self,
        input_ids,
        attention_mask,
        position_ids,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
    ):
        given = dict(attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds)
        cache = {"cache": cache} if "cache" in names else {"past_key_values": past_key_values}
        return own(self, input_ids, use_cache=use_cache, **given, **cache)

    monkeypatch.setattr(cls, "forward", forward)
    assert_trains_alike(patched, stock)


def test_a_config_without_return_dict_is_no_obstacle():
    stock, patched = pair()
    ids, labels = tiny_llama.batch()
    expected = tiny_llama.run(stock, input_ids=ids, labels=labels)[0].loss
    patched.config.return_dict = False
    assert_close(patched(input_ids=ids, labels=labels)[0], expected)
