"""apply_liger_kernel: a family without a row is patched where its modules compute what ours do, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_models  # noqa: E402
from llama_patching import assert_same_step, warnings_of  # noqa: E402
from tiny_llama import run  # noqa: E402

from liger_kernel.transformers import apply_liger_kernel, patching, revert_liger_kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

HALVES, FUSED = "liger_rotary_pos_emb", "the loss fused into the output projection"


def build(class_name, **changes):
    cls = getattr(transformers, class_name, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    torch.manual_seed(0)
    return cls(cls.config_class(**{**tiny_models.TEXT, **changes})).train()


# class -> (changes to the config, what must have been done: (MLPs, norms, rotary embedding, loss))
FAMILIES = {
    "SeedOssForCausalLM": (dict(head_dim=8, residual_dropout=0.0, attention_dropout=0.0), (2, 5, True, True)),
    "HeliumForCausalLM": (dict(head_dim=8), (2, 5, False, True)),  # its rotary embedding is interleaved
    "ArceeForCausalLM": ({}, (0, 5, True, True)),  # its MLPs have no gate
    "GlmForCausalLM": (dict(head_dim=8), (2, 5, False, True)),
    "CohereForCausalLM": ({}, (2, 0, False, False)),  # layer norms; logits are scaled
    "Starcoder2ForCausalLM": ({}, (0, 0, True, True)),  # layer norms, and MLPs without a gate
    "GPT2LMHeadModel": (
        dict(n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        (0, 0, False, False),
    ),
}


@pytest.mark.parametrize("class_name", FAMILIES)
def test_what_behaves_alike_is_patched(class_name, capsys, caplog):
    changes, (mlps, norms, halves, fused) = FAMILIES[class_name]
    model = build(class_name, **changes)
    inputs = tiny_models.batch()
    expected = run(model, **inputs)
    kinds = {path: type(module) for path, module in model.named_modules()}
    done = apply_liger_kernel(model)
    assert sum("MLP" in what for what in done.values()) == mlps, done
    assert sum("RMSNorm" in what for what in done.values()) == norms, done
    assert (HALVES in done.values()) == halves and (FUSED in done.values()) == fused, done
    said = capsys.readouterr().out
    assert class_name in said and ("nothing is patched" in said) == (not done)
    step = run(model, **inputs)
    assert_same_step(step, expected, 1e-4)
    assert (step[0].logits is None) == fused
    assert warnings_of(caplog) == []
    revert_liger_kernel(model)
    assert {path: type(module) for path, module in model.named_modules()} == kinds


def test_a_family_with_a_row_goes_by_it(capsys):
    model = build("LlamaForCausalLM")
    done = apply_liger_kernel(model)
    assert done["model.norm"] == "LigerRMSNorm" and done["model.layers.1.mlp"] == "LigerSwiGLUMLP" and "" in done
    assert "model.layers.*.mlp: LigerSwiGLUMLP (2)" in capsys.readouterr().out


class Halved(nn.Module):
    """A norm in all but its values."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, 1e-6

    def forward(self, x):
        return 0.5 * self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class NoGradientOfScale(Halved):
    """A norm in its values, not in its gradients."""

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon).detach()
        return self.weight * (x.float() * scale).to(x.dtype)


class RoundsLate(Halved):
    """A norm that is Llama's in fp32; in bf16 it rounds after the product with the weight."""

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight.float() * x.float() * scale).to(x.dtype)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Halved, None),
        (NoGradientOfScale, None),
        (RoundsLate, "LigerRMSNorm, offset 0.0, rounded as gemma"),
    ],
)
def test_norms_are_told_apart(make, expected):
    model = build("SeedOssForCausalLM", head_dim=8)
    model.model.norm = make(model.model.norm)
    assert apply_liger_kernel(model).get("model.norm") == expected
    assert patching.is_ours(model.model.norm.forward) == (expected is not None)


def test_a_model_that_cannot_be_run_keeps_its_forward_and_rotary_embedding():
    model = build("SeedOssForCausalLM", head_dim=8)
    model.model.register_forward_pre_hook(lambda module, args: exec("raise RuntimeError"))
    done = apply_liger_kernel(model)
    assert HALVES not in done.values() and FUSED not in done.values()
    assert done["model.norm"].startswith("LigerRMSNorm")
