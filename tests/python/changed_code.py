"""What somebody may have put in the place of the code that a patch stands for, and how it must count."""

from __future__ import annotations

import inspect
import sys
import types

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import assert_same_step, warnings_of  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.models.gemma import modeling_gemma  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from liger_kernel.transformers import monkey_patch, revert_liger_kernel  # noqa: E402


def build(family):
    return tiny_models.build(family)


def step(model):
    return tiny_llama.run(model, **tiny_models.batch())


def applied(family, way, order, change):
    """A patched model; `change` is made before the patch, or after it, before the model is built (of classes) or runs."""
    function = getattr(monkey_patch, f"apply_liger_kernel_to_{family}")
    if order == "before":
        change()
    if way == "class":
        function()
        if order == "built":
            change()
        model = build(family)
    else:
        model = build(family)
        if order == "built":
            change()
        function(model=model)
    if order == "after":
        change()
    return model


def assert_counts(family, way, order, change, caplog, named, moves=True):
    """The patched model trains as the stock model does with the same change, and one warning names it."""
    untouched = step(build(family))[0].loss
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        expected = step(build(family))
    if moves:
        assert abs(expected[0].loss - untouched) > 1e-3, "the change changes nothing"
    with pytest.MonkeyPatch.context() as patch:
        model = applied(family, way, order, lambda: change(patch))
        assert_same_step(step(model), expected, 1e-4)
        said = [text for text in warnings_of(caplog) if named in text] if named else []
        assert bool(said) == bool(named) and len(set(said)) == len(said), warnings_of(caplog)
        step(model)
        assert len([text for text in warnings_of(caplog) if named in text] if named else []) == len(said)
        revert_liger_kernel()


# ---- what a forward calls --------------------------------------------------------------------------------------------


def another_norm_helper(patch):
    own = modeling_gemma.GemmaRMSNorm._norm
    patch.setattr(modeling_gemma.GemmaRMSNorm, "_norm", lambda self, x: 2 * own(self, x))


def another_silu(patch):
    patch.setattr(nn.functional, "silu", lambda x, inplace=False: x.relu())


def a_builtin_as_silu(patch):
    patch.setattr(nn.functional, "silu", lambda x, inplace=False: x.relu())
    patch.setattr(nn.functional, "silu", torch.tanh)


def another_gelu(patch):
    patch.setattr(nn.functional, "gelu", lambda x, approximate="none": x.relu())


def another_half(patch):
    own = modeling_llama.rotate_half
    patch.setattr(modeling_llama, "rotate_half", lambda x: 0.5 * own(x))


def another_rsqrt(patch):
    own = torch.rsqrt
    patch.setattr(torch, "rsqrt", lambda x: 2 * own(x))


def another_norm_forward(patch):
    own = modeling_llama.LlamaRMSNorm.forward
    patch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: 2 * own(self, x))


def a_forward_of_another_family(patch):
    patch.setattr(modeling_llama.LlamaRMSNorm, "variance_epsilon", 1e-6, raising=False)
    patch.setattr(modeling_llama.LlamaRMSNorm, "eps", 1e-6, raising=False)
    patch.setattr(modeling_llama.LlamaRMSNorm, "_norm", modeling_gemma.GemmaRMSNorm._norm, raising=False)
    patch.setattr(modeling_llama.LlamaRMSNorm, "forward", modeling_gemma.GemmaRMSNorm.forward)


def another_mlp_forward(patch):
    own = modeling_llama.LlamaMLP.forward
    patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: 2 * own(self, x))


def another_model_forward(patch):
    own = modeling_llama.LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        output = inspect.unwrap(own)(self, *args, **kwargs)
        output.loss = 2 * output.loss
        return output

    patch.setattr(modeling_llama.LlamaForCausalLM, "forward", forward)


def another_init(patch):
    own = modeling_llama.LlamaRMSNorm.__init__

    def init(self, hidden_size, eps=1e-6):
        own(self, hidden_size, 0.5)

    patch.setattr(modeling_llama.LlamaRMSNorm, "__init__", init)


def another_init_of_the_mlp(patch):
    own = modeling_llama.LlamaMLP.__init__

    def init(self, config):
        own(self, config)
        self.act_fn = nn.ReLU()

    patch.setattr(modeling_llama.LlamaMLP, "__init__", init)


def another_call(patch):
    own = nn.Module.__call__
    patch.setattr(modeling_llama.LlamaRMSNorm, "__call__", lambda self, x: 2 * own(self, x))


def another_call_of_the_mlp(patch):
    own = nn.Module.__call__
    patch.setattr(modeling_llama.LlamaMLP, "__call__", lambda self, x: 2 * own(self, x))


def another_call_impl(patch):
    own = nn.Module._call_impl

    def call(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        return 2 * output if "SiLU" in type(self).__name__ or type(self) is nn.Linear else output

    patch.setattr(nn.Module, "_call_impl", call)


def another_call_of_modules(patch):
    own = nn.Module.__call__

    def call(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        return 2 * output if "SiLU" in type(self).__name__ or type(self) is nn.Linear else output

    patch.setattr(nn.Module, "__call__", call)


def another_call_of_the_activation(patch):
    own = nn.Module.__call__
    patch.setattr(type(ACT2FN["silu"]), "__call__", lambda self, x: 2 * own(self, x), raising=False)


def another_call_impl_of_the_activation(patch):
    own = nn.Module._call_impl
    patch.setattr(type(ACT2FN["silu"]), "_call_impl", lambda self, x: 2 * own(self, x), raising=False)


def with_other_halves(tables):
    cos, sin = tables
    half = cos.shape[-1] // 2
    return torch.cat((cos[..., :half], 0.5 * cos[..., half:]), -1), sin


def another_rotary_forward(patch):
    own = modeling_llama.LlamaRotaryEmbedding.forward
    other = lambda *args, **kwargs: with_other_halves(own(*args, **kwargs))  # noqa: E731
    patch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", other)


def rotary_class():
    class Rotary(modeling_llama.LlamaRotaryEmbedding):
        def forward(self, *args, **kwargs):
            return with_other_halves(super().forward(*args, **kwargs))

    return Rotary


def another_rotary_class(patch):
    patch.setattr(modeling_llama, "LlamaRotaryEmbedding", rotary_class())


def another_output(patch):
    class Output(modeling_llama.CausalLMOutputWithPast):
        def __post_init__(self):
            if self.loss is not None:
                self.loss = 2 * self.loss
            super().__post_init__()

    patch.setattr(modeling_llama, "CausalLMOutputWithPast", Output)


def another_cross_entropy(patch):
    own = nn.functional.cross_entropy
    patch.setattr(nn.functional, "cross_entropy", lambda *args, **kwargs: 2 * own(*args, **kwargs))


def another_pad(patch):
    own = nn.functional.pad
    patch.setattr(nn.functional, "pad", lambda x, *args, **kwargs: own(x, *args, **kwargs).clamp(max=50))


def another_torch(patch):
    torch_like = types.ModuleType("torch_like")
    vars(torch_like).update(vars(torch), rsqrt=lambda x: 2 * torch.rsqrt(x))
    patch.setattr(modeling_llama, "torch", torch_like)


def another_text(patch):
    """Nothing is made larger: without the normalization a model's gradients would be as uncertain as its activations are large."""
    patch.setattr(modeling_llama.LlamaRMSNorm.forward, "__code__", (lambda self, x: x * self.weight).__code__)


def a_method_as_function(patch):
    class Halves:
        def rotate_half(self, x):
            return 0.5 * x

    patch.setattr(modeling_llama, "rotate_half", Halves().rotate_half)


def an_object_as_function(patch):
    class Halves(nn.Module):
        def forward(self, x):
            return 0.5 * x

    patch.setattr(modeling_llama, "rotate_half", Halves())


def another_namespace(patch):
    functional = types.SimpleNamespace(
        **{**vars(nn.functional), "pad": lambda x, *args, **kwargs: nn.functional.pad(x, *args, **kwargs).clamp(max=50)}
    )
    patch.setattr(sys.modules["transformers.loss.loss_utils"], "nn", types.SimpleNamespace(functional=functional))
