"""The adapters for Megatron-Core, against float64 and against stand-ins of the places that they are put in."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import types

import own_process
import pytest
import reference
import torch
from reference import DTYPES, assert_close

import liger_kernel.megatron as lm
from liger_kernel.megatron import LigerMegatronRMSNorm, LigerMegatronSwiGLU, apply_liger_kernel_to_megatron
from liger_kernel.ops import LigerRMSNormFunction
from liger_kernel.transformers import patching

MONKEY_PATCH, SWIGLU = "liger_kernel.megatron.monkey_patch", "liger_kernel.megatron.swiglu"


def config(**entries):
    return types.SimpleNamespace(**{"normalization": "RMSNorm", "sequence_parallel": False, **entries})


# ---- the package -----------------------------------------------------------------------------------------------------


def test_names():
    assert lm.__all__ == sorted(lm.__all__) and len(lm.__all__) == 4 and set(lm.__all__) <= set(dir(lm))
    assert lm.monkey_patch.apply_liger_kernel_to_megatron is apply_liger_kernel_to_megatron
    with pytest.raises(AttributeError, match="no_such_name"):
        lm.no_such_name  # noqa: B018
    assert not hasattr(lm, "softmax")
    signature = inspect.signature(apply_liger_kernel_to_megatron)
    assert str(signature).partition(" ->")[0] == "(rms_norm=True, cross_entropy=False, swiglu=False)"


def test_import_needs_no_megatron():
    said = own_process.output(
        "-c",
        """
import sys
sys.modules.update(megatron=None, transformers=None)
import liger_kernel.megatron as lm
assert "liger_kernel.megatron.rms_norm" not in sys.modules
assert all(getattr(lm, name) for name in lm.__all__)
try:
    lm.apply_liger_kernel_to_megatron()
except ImportError as error:
    assert "megatron.core.models.backends.LocalSpecProvider.layer_norm" in str(error) and "megatron-core" in str(error)
    print("right")
""",
    )
    assert said.strip() == "right"


# ---- RMSNorm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_centered", [False, True])
def test_norm_values(device, dtype, zero_centered):
    module = LigerMegatronRMSNorm(config(), 67, eps=1e-3, zero_centered_gamma=zero_centered).to(device, dtype)
    assert torch.equal(module.weight, torch.full_like(module.weight, 0.0 if zero_centered else 1.0))
    with torch.no_grad():
        module.weight.add_(torch.randn_like(module.weight) / 4)
    x = torch.randn(5, 3, 67, device=device).to(dtype).requires_grad_()
    y = module(x)
    dy = torch.randn_like(y)
    gradients = [torch.autograd.grad(y, (x, module.weight), dy, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(first, again) for first, again in zip(*gradients))
    x64, weight64 = reference.twins(x, module.weight)
    expected = reference.rms_norm(x64, weight64, 1e-3, float(zero_centered))
    expected.backward(dy.cpu().double())
    assert y.dtype is dtype and gradients[0][0].dtype is dtype and gradients[0][1].dtype is dtype
    assert_close(y, expected, dtype, 2, terms=67)  # x·rstd is rounded, and the product
    assert_close(gradients[0][0], x64.grad, dtype, 1, terms=67)
    # each term of the sum has a factor that is rounded: their bound is that of the sum of magnitudes
    normal = reference.rms_norm(x64, None, 1e-3).detach()
    error = (gradients[0][1].cpu().double() - weight64.grad).abs()
    magnitudes = (normal * dy.cpu().double()).abs().sum((0, 1))
    bound = (reference.unit(dtype) + reference.apart(15 + 67 + 8, sides=1)) * magnitudes
    assert (error <= bound + reference.unit(dtype) * weight64.grad.abs() + 1e-7).all()


def test_norm_rounds_as_llama_does(device):
    module = LigerMegatronRMSNorm(config(), 1024).to(device, torch.bfloat16)
    with torch.no_grad():
        module.weight.add_(torch.randn_like(module.weight) / 4)
    x = torch.randn(8, 1024, device=device).bfloat16()
    llama, gemma = (LigerRMSNormFunction.apply(x, module.weight, 1e-5, 0.0, mode) for mode in ("llama", "gemma"))
    assert torch.equal(module(x), llama) and not torch.equal(llama, gemma)


def test_norm_reads_its_config():
    module = LigerMegatronRMSNorm(config(layernorm_zero_centered_gamma=True, sequence_parallel=1), 8)
    assert module.zero_centered_gamma is True and module.weight.sequence_parallel is True
    assert module.hidden_size == torch.Size([8]) and isinstance(module.hidden_size, torch.Size) and module.eps == 1e-5
    assert module.config.sequence_parallel == 1 and list(module.state_dict()) == ["weight"]
    plain = LigerMegatronRMSNorm(types.SimpleNamespace(), 8, 1e-6, True, False, "RMSNorm")
    assert plain.weight.sequence_parallel is False and plain.zero_centered_gamma is False
    assert "eps=1e-06" in repr(plain) and "(8,)" in repr(plain)
    with pytest.raises(ValueError, match="'LayerNorm'.*'RMSNorm'"):
        LigerMegatronRMSNorm(config(normalization="LayerNorm"), 8)
    with pytest.raises(ValueError, match="hidden_size must be one number"):
        LigerMegatronRMSNorm(config(), (2, 8))


def test_norm_is_reset():
    """A new parameter, made where one on no device was, is marked again."""
    with torch.device("meta"):
        module = LigerMegatronRMSNorm(config(sequence_parallel=True), 8, zero_centered_gamma=True)
    module.to_empty(device="cpu")
    assert not hasattr(module.weight, "sequence_parallel")
    module.reset_parameters()
    assert module.weight.sequence_parallel is True and not module.weight.any()


# ---- SwiGLU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 66), (3, 5, 66), (0, 66)])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_values(device, shape, in_place, dtype):
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    before = x.detach().clone()
    y = LigerMegatronSwiGLU(in_place=in_place)(x)
    dy = torch.randn_like(y)
    gradients = [torch.autograd.grad(y, x, dy, retain_graph=not last)[0].clone() for last in (False, False, True)]
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    assert torch.equal(x, before)
    (x64,) = reference.twins(x)
    expected = reference.swiglu(*x64.chunk(2, -1))
    expected.backward(dy.cpu().double())
    assert_close(y, expected, dtype, 3)
    assert_close(gradients[0], x64.grad, dtype, 2)


def test_swiglu_refuses():
    for shape in ((8,), (2, 2, 2, 8)):
        with pytest.raises(ValueError, match="2D"):
            LigerMegatronSwiGLU()(torch.zeros(shape))
    with pytest.raises(ValueError, match="input is 7.*even"):
        LigerMegatronSwiGLU()(torch.zeros(2, 7))


ASKED = {"bias": {"bias": torch.zeros(8)}, "fp8_input_store": {"fp8_input_store": True}}
ASKED["cpu_offload_input"] = {"cpu_offload_input": True}


@pytest.mark.parametrize("reason", ASKED)
def test_swiglu_falls_back(caplog, reason):
    calls = []
    module, x = LigerMegatronSwiGLU(lambda *args: calls.append(args) or "theirs"), torch.zeros(2, 8)
    with caplog.at_level(logging.INFO, SWIGLU):
        assert module(x, **ASKED[reason]) == "theirs" and module(x, **ASKED[reason]) == "theirs"
    asked = {"bias": None, "fp8_input_store": False, "cpu_offload_input": False, **ASKED[reason]}
    assert len(calls) == 2 and calls[0][0] is x and calls[0][1] is asked["bias"]
    assert calls[0][2:] == (asked["fp8_input_store"], asked["cpu_offload_input"])
    (record,) = caplog.records
    assert (record.name, record.levelno) == (SWIGLU, logging.INFO)
    assert "falling back" in record.message and reason in record.message
    with caplog.at_level(logging.INFO, SWIGLU):
        module(x, torch.zeros(8), True, True)
    assert len(caplog.records) == 3  # the other two reasons
    with pytest.raises(RuntimeError, match=f"{reason}.*apply_liger_kernel_to_megatron"):
        LigerMegatronSwiGLU()(x, **ASKED[reason])


# ---- cross entropy ---------------------------------------------------------------------------------------------------


def test_cross_entropy_is_the_vocab_parallel_one():
    from liger_kernel.transformers.vocab_parallel_cross_entropy import LigerVocabParallelCrossEntropy

    module = lm.LigerMegatronCrossEntropy()
    assert isinstance(module, LigerVocabParallelCrossEntropy)
    said = "ignore_index=-100, label_smoothing=0.0, reduction='none', label_smoothing_formula='megatron', "
    assert said + "label_smoothing_mode='partition'" in repr(module)
    with pytest.raises(ValueError, match="reduction must be 'none'"):
        lm.LigerMegatronCrossEntropy(reduction="mean")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_values(device, smoothing):
    """Of one process: its slice is the vocabulary."""
    vocab = 37
    logits = (3 * torch.randn(5, 2, vocab, device=device)).requires_grad_()
    target = torch.randint(vocab, (5, 2), device=device)
    target[0, 0] = -100
    loss = lm.LigerMegatronCrossEntropy(label_smoothing=smoothing)(logits, target)
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    logits64, labels = reference.twins(logits, target)
    log_p, alpha = logits64.log_softmax(-1), smoothing * vocab / (vocab - 1)
    of_target = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = (-(1 - alpha) * of_target - alpha * log_p.mean(-1)) * (labels != -100)
    expected.backward(upstream.cpu().double())
    assert loss.dtype is torch.float32
    assert_close(loss.flatten(), expected.flatten(), torch.float32, 3, terms=vocab)
    assert_close(logits.grad.flatten(0, 1), logits64.grad.flatten(0, 1), torch.float32, 3, terms=vocab)


# ---- patching --------------------------------------------------------------------------------------------------------

BACKENDS, LANGUAGE_MODULE = "models.backends", "models.common.language_module.language_module"
FUSED, UNFUSED = "fused_vocab_parallel_cross_entropy", "vocab_parallel_cross_entropy"


def of_megatron(name, **attributes):
    """A stand-in of a module of Megatron's."""
    module = types.ModuleType(f"megatron.core.{name}")
    vars(module).update(attributes)
    return module


class Loss:
    """In the place of LigerMegatronCrossEntropy: what it was made and called with."""

    made: list = []

    def __init__(self, **options):
        self.options, self.calls = options, []
        Loss.made.append(self)

    def __call__(self, logits, target, tp_group):
        return self.options, logits, target, tp_group


@pytest.fixture
def core(monkeypatch):
    """Megatron's places, name -> module: what the stock functions answer says which they are."""

    class LocalSpecProvider:
        def layer_norm(self, rms_norm=False, for_qk=False, has_residual=False, **more):
            return "stock", rms_norm, for_qk, has_residual, more

    class WrappedTorchNorm:
        def __new__(cls, config, hidden_size, eps=1e-5, **more):
            return "stock", config, hidden_size, eps, more

    class SwiGLUFunction:
        @staticmethod
        def apply(*args):
            return "stock", *args

    def fused(vocab_parallel_logits, target, tp_group):
        return "stock"

    def unfused(vocab_parallel_logits, target, label_smoothing=0.0, tp_group=None):
        return "stock"

    parts = [
        of_megatron(BACKENDS, LocalSpecProvider=LocalSpecProvider, _fused_ce=fused),
        of_megatron("transformer.torch_norm", WrappedTorchNorm=WrappedTorchNorm),
        of_megatron("transformer.transformer_block", LayerNormImpl=WrappedTorchNorm),
        of_megatron("fusions.fused_cross_entropy", **{FUSED: fused}),
        of_megatron("fusions.fused_bias_swiglu", SwiGLUFunction=SwiGLUFunction, BiasSwiGLUFunction=object()),
        of_megatron("tensor_parallel.cross_entropy", **{UNFUSED: unfused}),
        of_megatron("tensor_parallel", **{UNFUSED: unfused}),
        of_megatron(LANGUAGE_MODULE, **{FUSED: fused}),
    ]
    monkeypatch.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
    monkeypatch.setitem(sys.modules, "megatron.core", types.ModuleType("megatron.core"))
    for module in parts:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    stand_in = types.ModuleType("liger_kernel.megatron.cross_entropy")
    stand_in.LigerMegatronCrossEntropy = Loss
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(Loss, "made", [])
    yield {module.__name__.removeprefix("megatron.core."): module for module in parts}
    patching.restore_all()


def everything(core):
    return {
        (name, key): value
        for name, owner in {**core, "LocalSpecProvider": core[BACKENDS].LocalSpecProvider}.items()
        for key, value in vars(owner).items()
        if not key.startswith("__")
    }


def changed(core, before):
    return {key for key, value in everything(core).items() if value is not before[key]}


PLACES = {
    "rms_norm": {("LocalSpecProvider", "layer_norm"), ("transformer.transformer_block", "LayerNormImpl")},
    "cross_entropy": {
        ("fusions.fused_cross_entropy", FUSED),
        (LANGUAGE_MODULE, FUSED),
        (BACKENDS, "_fused_ce"),
        ("tensor_parallel.cross_entropy", UNFUSED),
        ("tensor_parallel", UNFUSED),
    },
    "swiglu": {("fusions.fused_bias_swiglu", "SwiGLUFunction")},
}


@pytest.mark.parametrize("flag", PLACES)
def test_a_flag_replaces_its_places(core, caplog, flag):
    """Twice is as once, what stood there is kept, and a revert puts it back."""
    before = everything(core)
    flags = {name: name == flag for name in PLACES}
    assert apply_liger_kernel_to_megatron(**flags) is None
    assert changed(core, before) == PLACES[flag]
    once = everything(core)
    for key in PLACES[flag]:
        assert once[key].__liger_patched__ is True and once[key].__wrapped__ is before[key]
    apply_liger_kernel_to_megatron(**flags)
    assert changed(core, once) == set()
    patching.restore_all()
    assert changed(core, before) == set()
    apply_liger_kernel_to_megatron(**flags)
    assert changed(core, before) == PLACES[flag]
    assert not caplog.records


def test_defaults(core):
    before = everything(core)
    apply_liger_kernel_to_megatron()
    assert changed(core, before) == PLACES["rms_norm"]
    patching.restore_all()
    apply_liger_kernel_to_megatron(None, None, None)
    assert changed(core, before) == set()


def test_norms_of_a_provider(core):
    apply_liger_kernel_to_megatron()
    provider = core[BACKENDS].LocalSpecProvider()
    assert provider.layer_norm(True) is provider.layer_norm(rms_norm=True, for_qk=True) is LigerMegatronRMSNorm
    assert provider.layer_norm() == ("stock", False, False, False, {})
    more = provider.layer_norm(rms_norm=False, for_qk=True, has_residual=True, further=1)
    assert more == ("stock", False, True, True, {"further": 1})


def test_norms_of_an_older_provider(core):
    """Its layer_norm has fewer arguments."""
    core[BACKENDS].LocalSpecProvider.layer_norm = lambda self, rms_norm=False, for_qk=False: (rms_norm, for_qk)
    apply_liger_kernel_to_megatron()
    assert core[BACKENDS].LocalSpecProvider().layer_norm(False, True) == (False, True)


def test_final_norm(core):
    apply_liger_kernel_to_megatron()
    impl = core["transformer.transformer_block"].LayerNormImpl
    norm = impl(config=config(sequence_parallel=True), hidden_size=8, eps=1e-3, zero_centered_gamma=True)
    assert type(norm) is LigerMegatronRMSNorm and norm.eps == 1e-3 and norm.zero_centered_gamma
    assert norm.weight.sequence_parallel
    layer = config(normalization="LayerNorm")
    assert impl(layer, 8, persist_layer_norm=True) == ("stock", layer, 8, 1e-5, {"persist_layer_norm": True})


@pytest.mark.parametrize("case", ["another class", "none", "no module", "no stock"])
def test_final_norm_of_others_is_left_alone(core, monkeypatch, case):
    block = core["transformer.transformer_block"]
    if case == "another class":
        block.LayerNormImpl = type("TENorm", (), {})
    elif case == "none":
        del block.LayerNormImpl
    else:
        missing = block if case == "no module" else core["transformer.torch_norm"]
        monkeypatch.setitem(sys.modules, missing.__name__, None)
    before = everything(core)
    apply_liger_kernel_to_megatron()
    assert changed(core, before) == {("LocalSpecProvider", "layer_norm")}


def test_cross_entropies(core):
    apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    group = object()
    fused, unfused = core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy, core["tensor_parallel"]
    assert fused("x", "t", group) == fused("x", target="t", tp_group=group) == ({}, "x", "t", group)
    assert fused("x", "t") == ({}, "x", "t", None)
    unfused = unfused.vocab_parallel_cross_entropy
    assert unfused("x", "t", tp_group=group) == ({}, "x", "t", group)
    made = len(Loss.made)
    assert unfused(vocab_parallel_logits="x", target="t") == ({}, "x", "t", None)
    assert len(Loss.made) == made
    for smoothing in (0.0, 0.1):
        assert unfused("x", "t", smoothing, group) == ({"label_smoothing": smoothing}, "x", "t", group)


def test_the_group_of_a_call_without_one(core, monkeypatch):
    """Megatron's, if there is one at the time of the call. Applying asks for none."""
    groups = []
    state = of_megatron("parallel_state", get_tensor_model_parallel_group=lambda check_initialized: groups[0])
    monkeypatch.setitem(sys.modules, state.__name__, state)
    apply_liger_kernel_to_megatron(cross_entropy=True)
    functions = [getattr(core[LANGUAGE_MODULE], FUSED), getattr(core["tensor_parallel"], UNFUSED)]
    assert [function("x", "t")[-1] for function in functions] == [None, None]
    groups.append(object())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for function in functions:
        assert function("x", "t")[-1] is groups[0]
        assert function("x", "t", tp_group="given")[-1] == "given"


def test_overrides_of_others_are_left_alone(core, caplog):
    """One of the two callers of the fused function suffices; without any a warning says so, once."""
    theirs = core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy = lambda *args: "theirs"
    apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    assert core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy is theirs
    assert core[BACKENDS]._fused_ce.__liger_patched__ and not caplog.records
    core[BACKENDS]._fused_ce = core["tensor_parallel"].vocab_parallel_cross_entropy = theirs
    for _ in range(2):
        apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    assert core[BACKENDS]._fused_ce is theirs and core["tensor_parallel"].vocab_parallel_cross_entropy is theirs
    (record,) = caplog.records
    assert (record.name, record.levelno) == (MONKEY_PATCH, logging.WARNING)
    assert "fused configurations may keep Megatron's kernel" in record.message


def test_callers_that_cannot_be_imported(core, monkeypatch, caplog):
    for name in (LANGUAGE_MODULE, BACKENDS):
        monkeypatch.setitem(sys.modules, f"megatron.core.{name}", None)
    apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    assert core["fusions.fused_cross_entropy"].fused_vocab_parallel_cross_entropy.__liger_patched__
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_reloaded_caller_is_patched_again(core):
    stock = core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy
    apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    ours = core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy
    core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy = stock
    apply_liger_kernel_to_megatron(rms_norm=False, cross_entropy=True)
    assert core[LANGUAGE_MODULE].fused_vocab_parallel_cross_entropy is ours


def test_a_substitute_is_patched(core, monkeypatch):
    """The module that stands in sys.modules when it is called for."""
    apply_liger_kernel_to_megatron(rms_norm=False, swiglu=True)
    substitute = of_megatron("fusions.fused_bias_swiglu", SwiGLUFunction=type("Other", (), {}))
    monkeypatch.setitem(sys.modules, substitute.__name__, substitute)
    apply_liger_kernel_to_megatron(rms_norm=False, swiglu=True)
    assert substitute.SwiGLUFunction.__wrapped__.__name__ == "Other"


def test_swiglu_function(core, caplog):
    apply_liger_kernel_to_megatron(rms_norm=False, swiglu=True)
    function = core["fusions.fused_bias_swiglu"].SwiGLUFunction
    assert not issubclass(function, torch.autograd.Function)
    x = torch.randn(3, 8, requires_grad=True)
    assert torch.equal(function.apply(x), LigerMegatronSwiGLU()(x))
    assert torch.equal(function.apply(x, False, False), LigerMegatronSwiGLU()(x))
    with caplog.at_level(logging.INFO, SWIGLU):
        for _ in range(2):
            assert function.apply(x, True) == ("stock", x, True, False)
            assert function.apply(x, cpu_offload_input=True) == ("stock", x, False, True)
    assert ["falling back" in message for message in caplog.messages] == [True, True]


@pytest.mark.parametrize(
    ("module", "symbol"),
    [
        (BACKENDS, "LocalSpecProvider"),
        ("fusions.fused_cross_entropy", FUSED),
        ("tensor_parallel.cross_entropy", UNFUSED),
        ("fusions.fused_bias_swiglu", "SwiGLUFunction"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_missing_is_named(core, monkeypatch, module, symbol, whole):
    """And nothing is replaced, by the other flags neither."""
    before = everything(core)
    owner, value = core[module], getattr(core[module], symbol)
    if whole:
        monkeypatch.setitem(sys.modules, owner.__name__, None)
    else:
        delattr(owner, symbol)
    with pytest.raises(ImportError, match=rf"megatron\.core\.{module}\.{symbol}.*megatron-core"):
        apply_liger_kernel_to_megatron(True, True, True)
    setattr(owner, symbol, value)
    assert changed(core, before) == set()


def test_revert_is_that_of_hugging_face_models(core, unpatched):
    before = everything(core)
    apply_liger_kernel_to_megatron(True, True, True)
    assert changed(core, before) == set().union(*PLACES.values())
    importlib.import_module("liger_kernel.transformers").revert_liger_kernel()
    assert changed(core, before) == set()
