"""What somebody changes around a model, before it is patched or afterwards, counts as it does in the stock model."""

from __future__ import annotations

import functools
import pickle
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import apply, assert_close, assert_same_step, both_ways, warnings_of  # noqa: E402
from transformers.activations import ACT2CLS, ACT2FN  # noqa: E402
from transformers.models.gemma import modeling_gemma  # noqa: E402
from transformers.models.glm4 import modeling_glm4  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerLayerNorm,
    LigerRMSNorm,
    apply_liger_kernel_to_llama,
    monkey_patch,
    patching,
    revert_liger_kernel,
)

pytestmark = pytest.mark.usefixtures("unpatched")


def step(model, **options):
    ids, labels = tiny_llama.batch()
    return tiny_llama.run(model, input_ids=ids, labels=labels, **options)


def patched(family, way, build):
    function = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    if way == "class":
        function()
        return build()
    model = build()
    function(model=model)
    return model


def assert_as_stock(way, build=tiny_llama.build, change=lambda model: None, run=step):
    """A step of the patched model is one of the stock model; `change` comes after the patch. Its output."""
    stock = build()
    change(stock)
    expected = run(stock)
    model = apply(build, way)
    change(model)
    found = run(model)
    assert_same_step(found, expected, 1e-4)
    return found[0]


# ---- names of the modelling module -----------------------------------------------------------------------------------


class ScaledNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, x):
        return 3 * super().forward(x)


class ScaledMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        return 3 * super().forward(x)


def with_another_norm(monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", ScaledNorm)


def with_another_mlp(monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaMLP", ScaledMLP)


def with_another_forward_of_the_norm(monkeypatch):
    own = modeling_llama.LlamaRMSNorm.forward
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 3 * own(self, x))


def with_an_option_of_the_rotation(monkeypatch):
    def scaled(q, k, cos, sin, unsqueeze_dim=1, scale=1.0, own=modeling_llama.apply_rotary_pos_emb):
        return own(q, k, scale * cos, sin, unsqueeze_dim)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", functools.partial(scaled, scale=2.0))


def with_another_rotation(monkeypatch):
    own = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, *rest: own(q, k, 2 * cos, sin, *rest)
    )


def with_a_norm_of_torch(monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", nn.LayerNorm)


def with_a_norm_of_another_family(monkeypatch):
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", modeling_gemma.GemmaRMSNorm)


def with_a_rotation_of_another_family(monkeypatch):
    """Of neighbouring pairs."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_glm4.apply_rotary_pos_emb)


@both_ways
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_a_norm_of_torch, "LayerNorm"),
        (with_a_norm_of_another_family, "GemmaRMSNorm"),
        (with_a_rotation_of_another_family, "apply_rotary_pos_emb"),
        (with_another_norm, "ScaledNorm"),
        (with_another_mlp, "ScaledMLP"),
        (with_another_forward_of_the_norm, "LlamaRMSNorm"),
        (with_another_rotation, "apply_rotary_pos_emb"),
        (with_an_option_of_the_rotation, "apply_rotary_pos_emb"),
    ],
)
def test_what_somebody_has_put_in_the_modelling_module_stays(change, named, way, caplog, monkeypatch):
    change(monkeypatch)
    before = dict(vars(modeling_llama))
    output = assert_as_stock(way)
    assert output.logits is None  # the rest is patched
    assert any(named in text for text in warnings_of(caplog)), warnings_of(caplog)
    assert "replaced nothing" not in str(warnings_of(caplog))
    revert_liger_kernel()
    assert dict(vars(modeling_llama)) == before


def test_what_stands_in_a_substitute_for_the_modelling_module_is_replaced(monkeypatch):
    names = ("LlamaRMSNorm", "LlamaMLP", "LlamaForCausalLM")
    stubs = {name: type(name, (nn.Module,), {"forward": lambda self, x: x}) for name in names}
    substitute = types.SimpleNamespace(apply_rotary_pos_emb=lambda q, k, cos, sin: (q, k), **stubs)
    monkeypatch.setattr(transformers.models.llama, "modeling_llama", substitute)
    apply_liger_kernel_to_llama()
    assert substitute.LlamaRMSNorm is LigerRMSNorm and patching.is_ours(substitute.LlamaMLP)
    assert patching.is_ours(substitute.apply_rotary_pos_emb)


def test_a_class_derived_from_a_patched_norm_finds_what_the_stock_one_has():
    def build():
        class Doubled(modeling_gemma.GemmaRMSNorm):
            def forward(self, x):
                assert self.eps == 1e-6
                return 2 * (self._norm(x.float()) * (1.0 + self.weight.float())).type_as(x)

        model = tiny_models.build("gemma")
        norm = Doubled(32)
        norm.load_state_dict(model.model.norm.state_dict())
        model.model.norm = norm
        return model

    expected = step(build())
    assert_same_step(step(patched("gemma", "class", build)), expected, 1e-4)


# ---- activations -----------------------------------------------------------------------------------------------------


class Squared(nn.Module):
    def forward(self, x):
        return x.relu().square()


@both_ways
def test_an_activation_that_is_registered_by_that_name_is_called(way, caplog, monkeypatch):
    monkeypatch.setitem(ACT2CLS, "silu", Squared)
    monkeypatch.setitem(ACT2FN, "silu", Squared)
    assert_as_stock(way)
    assert any("Squared" in text for text in warnings_of(caplog))


@both_ways
def test_a_replaced_forward_of_the_activations_class_is_called(way, caplog, monkeypatch):
    monkeypatch.setattr(type(ACT2FN["silu"]), "forward", lambda self, x: x.relu())
    assert_as_stock(way)
    assert any("activation" in text for text in warnings_of(caplog))


@both_ways
def test_a_forward_of_the_activations_class_that_is_replaced_later_is_called(way, monkeypatch):
    def run(model):
        with monkeypatch.context() as later:
            later.setattr(type(ACT2FN["silu"]), "forward", lambda self, x: x.relu())
            return step(model)

    assert_as_stock(way, run=run)


def hooked_by_name(model):
    """As those do who look at the activations of neurons."""
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, args, output: 2 * output)


@both_ways
def test_the_activation_has_its_name(way):
    assert_as_stock(way, change=hooked_by_name)


@pytest.mark.filterwarnings("ignore:.*[Bb]ackward hook")  # torch's, of the hook on modules whose output is no tensor
@both_ways
@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_global_hook_sees_activations(kind, way):
    seen = []

    def hook(module, args, *output):
        if type(module) is type(ACT2FN["silu"]):
            seen.append(args[0].shape)
            if kind == "forward_hook":
                return 2 * output[0]
            return (2 * args[0],) if kind == "forward_pre_hook" else None

    handle = getattr(nn.modules.module, f"register_module_{kind}")(hook)
    try:
        assert_as_stock(way)
    finally:
        handle.remove()
    assert len(seen) == 4 and seen[:2] == seen[2:]


# ---- projections -----------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(("owner", "name"), [(nn.Linear, "forward"), (nn.functional, "linear")])
def test_a_replaced_projection_is_called(owner, name, way, caplog, monkeypatch):
    own = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: 1.5 * own(*args))
    assert assert_as_stock(way).logits is not None
    assert any(name in text for text in warnings_of(caplog))


def test_a_projection_of_deepspeed_is_fused(monkeypatch):
    """It replaces the function for ZeRO-3."""
    own = nn.functional.linear

    def linear(input, weight, bias=None):
        return own(input, weight, bias)

    linear.__module__ = "deepspeed.runtime.zero.linear"
    monkeypatch.setattr(nn.functional, "linear", linear)
    assert assert_as_stock("instance").logits is None


class CalledTwice(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


def with_another_call(model):
    model.lm_head.__class__ = CalledTwice


@both_ways
def test_a_head_with_a_call_of_its_own_is_called(way, caplog):
    assert assert_as_stock(way, change=with_another_call).logits is not None
    assert any("CalledTwice" in text for text in warnings_of(caplog))


def by_keyword(model):
    model.lm_head.register_forward_pre_hook(lambda module, args, kwargs: ((), {"input": 2 * args[0]}), with_kwargs=True)


@both_ways
def test_a_hook_may_give_the_heads_input_by_its_name(way):
    assert assert_as_stock(way, change=by_keyword).logits is None


def accelerates_hooks(*hooks):
    hook_classes = pytest.importorskip("accelerate.hooks", reason="needs accelerate")

    class Halved(hook_classes.ModelHook):
        def post_forward(self, module, output):
            return output / 2

    def change(model):
        for i, hook in enumerate(hooks):  # what stands is wrapped once more each time
            made = Halved() if hook == "somebody's" else hook_classes.ModelHook()
            if hook == "an instance's":
                made.post_forward = lambda module, output: output / 2
            hook_classes.add_hook_to_module(model.lm_head, made, append=i > 0)

    return change


HOOKS_OF_ACCELERATE = [
    ("its own",),
    ("somebody's",),
    ("an instance's",),
    ("its own", "somebody's"),
    ("somebody's", "its own", "its own"),
]


@both_ways
@pytest.mark.parametrize("hooks", HOOKS_OF_ACCELERATE)
def test_a_hook_by_the_means_of_accelerate_sees_logits(hooks, way, caplog):
    change = accelerates_hooks(*hooks)
    harmless = set(hooks) == {"its own"}
    assert (assert_as_stock(way, change=change).logits is None) == harmless
    assert len(warnings_of(caplog)) == (not harmless)


# ---- epsilon ---------------------------------------------------------------------------------------------------------


def set_epsilon(model):
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            setattr(module, "eps" if hasattr(module, "eps") else "variance_epsilon", 0.3)


@both_ways
@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "qwen3", "olmo2"])
def test_an_epsilon_that_is_set_later_counts(family, way):
    def build():
        return tiny_models.build(family)

    stock = build()
    set_epsilon(stock)
    expected = step(stock)
    model = patched(family, way, build)
    set_epsilon(model)
    assert_same_step(step(model), expected, 1e-4)


@pytest.mark.parametrize("by", ["class", "instance"])
def test_an_epsilon_of_a_layer_norm_that_is_set_later_counts(by):
    x = torch.randn(3, 8)
    expected = nn.LayerNorm(8, eps=0.5)(x)
    norm = nn.LayerNorm(8)
    if by == "class":
        monkey_patch.apply_liger_kernel_to_paligemma()
        norm = nn.LayerNorm(8)
    else:
        monkey_patch._patch_layer_norm_module(norm)
    norm.eps = 0.5
    assert_close(norm(x), expected)
    again = pickle.loads(pickle.dumps(norm))
    assert again.variance_epsilon == 0.5
    again.eps = 0.25
    assert_close(again(x), nn.functional.layer_norm(x, (8,), eps=0.25))


@pytest.mark.parametrize("make", [LigerRMSNorm, LigerLayerNorm])
def test_the_epsilon_of_ours_has_two_names(make):
    norm = make(8, eps=1e-6)
    assert norm.eps == norm.variance_epsilon == 1e-6
    norm.eps = 0.5
    assert norm.variance_epsilon == 0.5
    norm.variance_epsilon = 0.25
    assert norm.eps == 0.25 and "eps=0.25" in repr(norm)


def test_the_epsilon_of_a_patched_norm_can_be_set_by_either_name():
    norm = modeling_gemma.GemmaRMSNorm(8)
    monkey_patch._patch_rms_norm_module(norm, offset=1.0, casting_mode="gemma")
    norm.variance_epsilon = 0.5
    expected = modeling_gemma.GemmaRMSNorm(8, eps=0.5)
    x = torch.randn(3, 8)
    assert_close(norm(x), expected(x))
    for module in norm.modules():
        patching.restore_instance(module)
    assert "variance_epsilon" not in norm.__dict__ and norm.eps == 0.5


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("family", ["llama", "gemma", "phi3", "qwen2_vl"])
def test_a_model_in_double_computes_as_stock(family, way):
    def build():
        return tiny_models.build(family).double()

    expected = step(build())
    found = step(patched(family, way, build))
    assert_close(found[0].loss, expected[0].loss)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.dtype == torch.float64
        assert_close(found[1][name], gradient)


def test_a_compiled_model_in_double_computes_as_stock():
    expected = step(tiny_llama.build().double())
    apply_liger_kernel_to_llama()
    model = tiny_llama.build().double()
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output, gradients = step(torch.compile(model, backend="aot_eager"))
    assert_same_step((output, {n.removeprefix("_orig_mod."): g for n, g in gradients.items()}), expected)


# ---- what a class builds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3", "gemma", "olmo2"])
def test_a_patched_class_has_the_parameters_of_the_stock_one(family):
    """`mlp_bias` is an entry of some families' configurations, and nobody's in others."""
    stock = tiny_models.build(family, mlp_bias=True)
    model = patched(family, "class", lambda: tiny_models.build(family, mlp_bias=True))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}
    assert_same_step(step(model), step(stock), 1e-4)
    assert model.model.layers[0].mlp._get_name().startswith("Liger")


def test_a_layer_norm_that_a_patched_class_has_built_is_of_a_subclass_of_it():
    own = nn.LayerNorm
    monkey_patch.apply_liger_kernel_to_paligemma()
    assert nn.LayerNorm is own
    made = type(nn.LayerNorm(8))
    assert made is not own and issubclass(made, own)
    assert not issubclass(nn.Linear, nn.LayerNorm)


# ---- the base model --------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """As FullyShardedDataParallel stands around a base model: its forward names no argument."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@both_ways
def test_generation_through_a_wrapped_base_model_warns_of_nothing(way):
    def generated(model):
        model.model = Around(model.model)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            return model.eval().generate(tiny_llama.batch()[0], max_new_tokens=3, do_sample=False, pad_token_id=0)

    expected = generated(tiny_llama.build())
    assert torch.equal(generated(apply(tiny_llama.build, way)), expected)


# ---- classes that change under a patch -------------------------------------------------------------------------------


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_norm_is_patched_still(caplog):
    model = apply(tiny_llama.build, "instance")
    parametrize.register_parametrization(model.model.norm, "weight", Doubling())
    apply_liger_kernel_to_llama(model=model)  # as a Trainer does, at every train()
    assert warnings_of(caplog) == []
    stock = tiny_llama.build()
    with torch.no_grad():
        stock.model.norm.weight.mul_(2)
    assert_close(step(model)[0].loss, step(stock)[0].loss)


def test_a_class_derived_from_a_patched_models_class_is_reverted():
    model = apply(tiny_llama.build, "instance")

    class Twice(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.loss = 2 * output.loss
            return output

    model.__class__ = Twice
    assert patching.is_patched(model)
    for revert in (lambda model: None, revert_liger_kernel):
        revert(model)
        output = step(model)[0]
        assert output.logits is not None
        assert_close(output.loss, 2 * step(tiny_llama.build())[0].loss)
    assert not patching.is_patched(model)


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_a_patched_class_warns_once(caplog, monkeypatch):
    own = modeling_llama.LlamaForCausalLM.forward
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", lambda self, *a, **k: own(self, *a, **k))
    with_another_norm(monkeypatch)
    with_another_rotation(monkeypatch)
    for _ in range(3):
        apply_liger_kernel_to_llama()
    assert len(warnings_of(caplog)) == len(set(warnings_of(caplog))) == 3, warnings_of(caplog)


def test_flags_of_a_class_patch_are_warned_of_once(caplog):
    for _ in range(3):
        monkey_patch.apply_liger_kernel_to_gpt_oss(swiglu=True)
        monkey_patch.apply_liger_kernel_to_mistral(cross_entropy=True, fused_linear_cross_entropy=False)
    assert len(warnings_of(caplog)) == len(set(warnings_of(caplog))) == 2, warnings_of(caplog)
