"""Nothing is replaced but what is stock: losses, forwards and modules of others train as they did."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import (  # noqa: E402
    apply,
    assert_as_stock,
    assert_close,
    assert_same_step,
    both_ways,
    warnings_of,
)
from transformers.modeling_outputs import ModelOutput  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerRMSNorm,
    LigerSwiGLUMLP,
    apply_liger_kernel_to_llama,
    monkey_patch,
    revert_liger_kernel,
)

pytestmark = pytest.mark.usefixtures("unpatched")


# ---- losses ----------------------------------------------------------------------------------------------------------


def ten_times(logits, labels, vocab_size, **kwargs):
    from transformers.loss.loss_utils import ForCausalLMLoss

    return 10 * ForCausalLMLoss(logits, labels, vocab_size, **kwargs)


def loss_is_set(monkeypatch):
    model = tiny_llama.build()
    model.loss_function = ten_times
    return model


def loss_type_is_set(monkeypatch):
    from transformers.loss import loss_utils

    monkeypatch.setitem(loss_utils.LOSS_MAPPING, "TenTimes", ten_times)
    model = tiny_llama.build()
    model.loss_type = "TenTimes"
    return model


class LossOfASubclass(transformers.LlamaForCausalLM):
    @property
    def loss_function(self):
        return ten_times


def loss_of_a_subclass(monkeypatch):
    torch.manual_seed(0)
    return LossOfASubclass(tiny_llama.config()).train()


@both_ways
@pytest.mark.parametrize("build", [loss_is_set, loss_type_is_set, loss_of_a_subclass])
@pytest.mark.parametrize("evaluation", ["none", "trainer's"])
def test_the_model_keeps_its_own_loss(build, way, evaluation, caplog, monkeypatch):
    mode, options = ("train", {}) if evaluation == "none" else ("eval", {"skip_logits": True})
    output = assert_as_stock(lambda: build(monkeypatch), way, caplog, "loss", mode, **options)
    assert output.loss > 30 and output.logits is not None


@both_ways
def test_a_loss_of_few_parameters_is_called_as_stock_calls_it(way, caplog):
    def build():
        model = tiny_llama.build()
        model.loss_function = lambda logits, labels, vocab_size: logits.square().mean() + vocab_size
        return model

    assert_as_stock(build, way, caplog, "loss")


# ---- forwards --------------------------------------------------------------------------------------------------------


class TwiceTheLoss(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.loss = 2 * output.loss
        return output


@both_ways
def test_a_subclass_keeps_its_forward(way, caplog):
    def build():
        torch.manual_seed(0)
        return TwiceTheLoss(tiny_llama.config()).train()

    assert_as_stock(build, way, caplog, "TwiceTheLoss")


class WithALossOfLogits(transformers.LlamaForCausalLM):
    """It looks at what the forward that it is written around has made."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.loss = output.loss + 0.1 * output.logits.logsumexp(-1).square().mean()
        return output


class OfTuples(transformers.LlamaForCausalLM):
    def forward(self, **kwargs):
        loss, logits, *_ = super().forward(return_dict=False, **kwargs)
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss + logits.mean(), logits=logits)


@both_ways
@pytest.mark.parametrize("cls", [WithALossOfLogits, OfTuples])
def test_a_forward_written_around_that_of_the_class_gets_logits(cls, way, caplog):
    def build():
        torch.manual_seed(0)
        return cls(tiny_llama.config()).train()

    assert_as_stock(build, way, caplog, cls.__name__)
    caplog.clear()
    of_trainer = {"skip_logits": True}  # in an evaluation that is to give the loss alone
    assert_as_stock(build, way, caplog, cls.__name__ if way == "instance" else None, "eval", **of_trainer)


class FromEmbeddings(transformers.LlamaForCausalLM):
    """It wants no logits, and says so where that is understood."""

    def forward(self, input_ids, **kwargs):
        return super().forward(inputs_embeds=self.get_input_embeddings()(input_ids), skip_logits=True, **kwargs)


def test_a_forward_written_around_that_of_the_class_can_do_without_logits(caplog):
    ids, labels = tiny_llama.batch()
    expected = tiny_llama.run(tiny_llama.build(), input_ids=ids, labels=labels)
    apply_liger_kernel_to_llama()
    torch.manual_seed(0)
    model = FromEmbeddings(tiny_llama.config()).train()
    step = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert_same_step(step, expected)
    assert step[0].logits is None and warnings_of(caplog) == []


class Renamed(transformers.LlamaForCausalLM):
    pass


@both_ways
def test_a_subclass_without_a_forward_is_fused(way, caplog):
    def build():
        torch.manual_seed(0)
        return Renamed(tiny_llama.config()).train()

    assert assert_as_stock(build, way, caplog).logits is None


@both_ways
def test_a_replaced_class_forward_stays(way, caplog, monkeypatch):
    own = transformers.LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        output.loss = 2 * output.loss
        return output

    forward.__wrapped__ = own  # as functools.wraps does
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    assert_as_stock(tiny_llama.build, way, caplog, "LlamaForCausalLM")


@dataclass
class Scored(ModelOutput):
    """The result of a base model which has more to say than Hugging Face's."""

    scores: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    cache: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


def scored(module, args, output):
    hidden = output.last_hidden_state
    return Scored(scores=torch.zeros_like(hidden), last_hidden_state=2 * hidden)


def described(module, args, output):
    given = {field.name: output.get(field.name) for field in fields(Scored)}
    return SimpleNamespace(**{**given, "last_hidden_state": 2 * output.last_hidden_state})


@both_ways
@pytest.mark.parametrize("hook", [scored, described])
def test_hidden_states_go_by_their_name(hook, way, caplog):
    def build():
        model = tiny_llama.build()
        model.model.register_forward_hook(hook)
        return model

    assert assert_as_stock(build, way, caplog).logits is None


# ---- modules ---------------------------------------------------------------------------------------------------------


class OnePlusNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.linspace(-0.5, 0.5, 32)), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def forward(self, x):
        return 3 * self.module(x)


class TripledNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, x):
        return 3 * super().forward(x)


class TripledMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        return 3 * super().forward(x)


class SquaredReLUMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x).relu().square() * self.up_proj(x))


def other_activation(model):
    mlp = model.model.layers[0].mlp
    mlp.act_fn = nn.GELU()
    return mlp


class MLPWithoutDown(nn.Module):
    """Its projections have names of their own, but for one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up_proj, self.out = nn.Linear(32, 56), nn.Linear(56, 32)

    def forward(self, x):
        return self.out(self.up_proj(x).relu())


def norm(make):
    def put(model):
        model.model.norm = make(model)
        return model.model.norm

    return put


def mlp(make):
    def put(model):
        model.model.layers[0].mlp = make(model)
        return model.model.layers[0].mlp

    return put


@pytest.mark.parametrize(
    ("put", "named"),
    [
        pytest.param(norm(lambda m: nn.LayerNorm(32)), "LayerNorm", id="layer norm"),
        pytest.param(norm(lambda m: nn.Identity()), "Identity", id="identity"),
        pytest.param(norm(lambda m: OnePlusNorm()), "OnePlusNorm", id="one plus"),
        pytest.param(norm(lambda m: Wrapper(m.model.norm)), "Wrapper", id="wrapped"),
        pytest.param(norm(lambda m: TripledNorm(32)), "TripledNorm", id="tripled norm"),
        pytest.param(norm(lambda m: nn.RMSNorm(32, eps=None)), "RMSNorm", id="torch's"),
        pytest.param(mlp(lambda m: TripledMLP(m.config)), "TripledMLP", id="tripled mlp"),
        pytest.param(mlp(lambda m: SquaredReLUMLP(m.config)), "SquaredReLUMLP", id="squared relu"),
        pytest.param(other_activation, "GELU", id="activation"),
        pytest.param(mlp(lambda m: MLPWithoutDown(m.config)), "MLPWithoutDown", id="no down projection"),
    ],
)
def test_other_modules_at_a_path_are_left_alone(put, named, caplog):
    made = []

    def build():
        model = tiny_llama.build()
        torch.manual_seed(9)
        made.append(put(model))
        return model

    output = assert_as_stock(build, "instance", caplog, named)
    assert output.logits is None  # the rest is patched
    assert len(warnings_of(caplog)) == 1
    stock, patched = made
    assert type(patched) is type(stock) and patched.__dict__.keys() == stock.__dict__.keys()


def test_a_replaced_norm_forward_stays(caplog, monkeypatch):
    own = modeling_llama.LlamaRMSNorm.forward
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 2 * own(self, x))
    assert_as_stock(tiny_llama.build, "instance", caplog, "LlamaRMSNorm")


def test_the_epsilon_of_torchs_norm_is_its_dtypes():
    """_patch_rms_norm_module is called by others, with any module."""
    own = nn.RMSNorm(32, eps=None)
    x = 1e-4 * torch.randn(3, 32)
    expected = own(x)
    monkey_patch._patch_rms_norm_module(own)
    assert_close(own(x), expected)
    with_own = nn.RMSNorm(32, eps=0.5)
    expected = with_own(x)
    monkey_patch._patch_rms_norm_module(with_own)
    assert with_own.forward.__func__ is LigerRMSNorm.forward
    assert_close(with_own(x), expected)


# ---- activations and options of the config ---------------------------------------------------------------------------


@both_ways
def test_another_activation_is_not_patched(way, caplog):
    assert_as_stock(lambda: tiny_llama.build(hidden_act="gelu"), way, caplog, "gelu" if way == "class" else "GELU")
    with pytest.raises(ValueError, match="gelu"):
        LigerSwiGLUMLP(tiny_llama.config(hidden_act="gelu"))


@both_ways
def test_pretraining_tp_leaves_the_loss_alone(way, caplog):
    def build():
        model = tiny_llama.build()
        model.config.pretraining_tp = 2
        return model

    assert assert_as_stock(build, way, caplog, "pretraining_tp").logits is not None


def test_a_class_derived_after_the_patch_keeps_its_forward(caplog):
    """It derives from Hugging Face's own class, whatever the activation."""
    for activation in ("silu", "gelu"):

        def build(activation=activation):
            class Tripled(modeling_llama.LlamaMLP):
                def forward(self, x):
                    return 3 * super().forward(x)

            class ByName(modeling_llama.LlamaMLP):
                def __init__(self, config):
                    modeling_llama.LlamaMLP.__init__(self, config)

                def forward(self, x):
                    return modeling_llama.LlamaMLP.forward(self, x)

            model = tiny_llama.build(hidden_act=activation)
            for layer, cls in zip(model.model.layers, (Tripled, ByName), strict=True):
                stock, layer.mlp = layer.mlp.state_dict(), cls(model.config).train()
                layer.mlp.load_state_dict(stock)
                assert type(layer.mlp) is cls and isinstance(layer.mlp, modeling_llama.LlamaMLP)
                assert issubclass(cls, modeling_llama.LlamaMLP)
            return model

        assert_as_stock(build, "class", caplog, None if activation == "silu" else "gelu")


def test_what_a_patched_class_has_built_is_an_instance_of_it():
    before = tiny_llama.build().model.layers[0].mlp
    apply_liger_kernel_to_llama()
    for activation in ("silu", "gelu"):
        assert isinstance(tiny_llama.build(hidden_act=activation).model.layers[0].mlp, modeling_llama.LlamaMLP)
    assert isinstance(before, modeling_llama.LlamaMLP) and not isinstance(nn.Linear(1, 1), modeling_llama.LlamaMLP)


def test_warnings_are_given_once(caplog):
    """Not by every layer, and not by every train() of a Trainer."""
    model = tiny_llama.build(hidden_act="gelu")
    model.model.norm = nn.LayerNorm(32)
    model.config.pretraining_tp = 2
    for _ in range(3):
        apply_liger_kernel_to_llama(model=model)
    assert len(warnings_of(caplog)) == len(set(warnings_of(caplog))) == 4  # each MLP is one, by its path
    caplog.clear()
    apply_liger_kernel_to_llama()
    tiny_llama.build(hidden_act="gelu")
    assert len(warnings_of(caplog)) == 1


def hooked(mlp):
    mlp.act_fn.register_forward_hook(lambda module, args, output: output * 2)


def hooked_before(mlp):
    mlp.act_fn.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def own_forward(mlp):
    mlp.act_fn.forward = torch.relu


def replaced(mlp):
    mlp.act_fn = nn.ReLU()


def replaced_by_a_function(mlp):
    del mlp.act_fn
    mlp.act_fn = torch.relu


CHANGES = [hooked, hooked_before, own_forward, replaced, replaced_by_a_function]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_activation_is_not_patched(change, caplog):
    def build():
        model = tiny_llama.build()
        change(model.model.layers[0].mlp)
        return model

    assert_as_stock(build, "instance", caplog, "activation")
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("way", "change"), [*[("instance", change) for change in CHANGES], ("class", replaced)])
def test_an_activation_that_is_changed_later_is_called(way, change, again, caplog):
    ids, labels = tiny_llama.batch()
    models = [tiny_llama.build(), apply(tiny_llama.build, way)]
    for model in models:
        change(model.model.layers[0].mlp)
    if again and way == "instance":
        apply_liger_kernel_to_llama(model=models[1])
    expected, step = (tiny_llama.run(model, input_ids=ids, labels=labels) for model in models)
    assert_same_step(step, expected, 1e-4)
    if way == "instance":
        revert_liger_kernel(models[1])
        assert "_liger_activation" not in models[1].model.layers[0].mlp.__dict__


@pytest.mark.parametrize(("way", "part"), [("class", "all"), ("instance", "all"), ("instance", "norm")])
def test_a_model_of_another_dtype_computes_as_stock(way, part):
    ids, labels = tiny_llama.batch()
    steps = []
    for patch in (False, True):
        revert_liger_kernel()
        if patch and way == "class":
            apply_liger_kernel_to_llama()
        model = tiny_llama.build()
        if patch and way == "instance":
            apply_liger_kernel_to_llama(model=model)
        (model if part == "all" else model.model.norm).double()
        if part == "norm":
            model.lm_head.double()
        steps.append(tiny_llama.run(model, input_ids=ids, labels=labels))
    assert_same_step(steps[1], steps[0])
    if part == "all" and way == "instance":
        for name, gradient in steps[0][1].items():
            assert torch.equal(steps[1][1][name], gradient), name


def test_layer_norms_of_another_dtype():
    for make in (lambda: nn.LayerNorm(8), lambda: nn.LayerNorm(8, bias=False)):
        own, x = make().double(), torch.randn(3, 8, dtype=torch.float64)
        expected = own(x)
        monkey_patch._patch_layer_norm_module(own)
        assert torch.equal(own(x), expected)
