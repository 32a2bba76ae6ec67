"""apply_liger_kernel: a family without a row is patched where its modules compute what ours do, and only there. Forwards:
test_probing_forwards.py; what is changed afterwards: test_probing_later.py."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_models  # noqa: E402
from llama_patching import assert_same_step, warnings_of  # noqa: E402
from probed_models import Halved, build  # noqa: E402
from tiny_llama import run  # noqa: E402

from liger_kernel.transformers import apply_liger_kernel, patching, revert_liger_kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

HALVES, FUSED = "liger_rotary_pos_emb", "the loss fused into the output projection"


HYBRID = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4)

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
    # Norms with a gate are left alone.
    "Mamba2ForCausalLM": (
        dict(num_heads=8, head_dim=8, state_size=8, n_groups=1, expand=2, chunk_size=4),
        (0, 3, False, False),
    ),
    "BambaForCausalLM": (dict(attn_layer_indices=[1], **HYBRID), (2, 5, True, True)),
    "GraniteMoeHybridForCausalLM": (
        dict(layer_types=["mamba", "attention"], num_local_experts=0, shared_intermediate_size=40, **HYBRID),
        (0, 5, False, False),
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


class TwiceInTraining(RoundsLate):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


class DropsInTraining(RoundsLate):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 1e-6, self.training)


class SometimesTwice(RoundsLate):
    def forward(self, x):
        return super().forward(x) * (2 if self.training and random.random() < 1e-6 else 1)


class WithAnOption(RoundsLate):
    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * gate)


@pytest.mark.parametrize("make", [TwiceInTraining, DropsInTraining, SometimesTwice, WithAnOption])
def test_a_norm_that_does_more_in_training_or_for_another_argument_is_left_alone(make):
    model = build("SeedOssForCausalLM", head_dim=8).eval()
    model.model.norm = make(model.model.norm).eval()
    assert "model.norm" not in apply_liger_kernel(model)


class Clamps(RoundsLate):
    """A guard against values that a 16-bit float cannot hold."""

    def forward(self, x):
        return super().forward(x.clamp(-1e3, 1e3))


class EpsilonBehindTheRoot(Halved):
    """It shows only where the input is small."""

    def forward(self, x):
        wide = x.float()
        return (self.weight.float() * wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + 1e-6)).to(x.dtype)


class ClampsInHalf(RoundsLate):
    def forward(self, x):
        return super().forward(x.clamp(-2, 2) if x.dtype == torch.float16 else x)


class ForOtherBatches(RoundsLate):
    def forward(self, x):
        return super().forward(x) if len(x) == 6 else 2 * super().forward(x)


class ForTwoDimensions(RoundsLate):
    def forward(self, x):
        return super().forward(x) if x.dim() == 2 else 2 * super().forward(x)


class ForManyTokens(RoundsLate):
    def forward(self, x):
        return super().forward(x) if x.shape[0] < 1000 else 2 * super().forward(x)


class WithoutNan(RoundsLate):
    def forward(self, x):
        return super().forward(x.nan_to_num())


class WithoutNanByHand(RoundsLate):
    def forward(self, x):
        return super().forward(torch.where(x == x, x, 0.0))


class OfNothing(RoundsLate):
    """Of a row of zeros, as padding may be, it makes something."""

    def forward(self, x):
        return super().forward(x) + (x == 0).all(-1, keepdim=True).to(x.dtype)


class ForManyRows(RoundsLate):
    def forward(self, x):
        return super().forward(x) if len(x) < 1000 else 2 * super().forward(x)


class ForFourDimensions(RoundsLate):
    def forward(self, x):
        return super().forward(x) if x.dim() < 4 else 2 * super().forward(x)


class ForStridedInputs(RoundsLate):
    def forward(self, x):
        return super().forward(x) if x.is_contiguous() else 2 * super().forward(x)


class UnderAutocast(RoundsLate):
    def forward(self, x):
        return super().forward(x) * (2 if torch.is_autocast_enabled("cpu") else 1)


class WhileCompiling(RoundsLate):
    def forward(self, x):
        return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)


class Remembers(RoundsLate):
    """For a loss that is computed elsewhere."""

    def forward(self, x):
        self.last = x
        return super().forward(x)


class Counts(RoundsLate):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        Clamps,
        EpsilonBehindTheRoot,
        ClampsInHalf,
        ForOtherBatches,
        ForTwoDimensions,
        ForManyTokens,
        WithoutNan,
        WithoutNanByHand,
        OfNothing,
        ForManyRows,
        ForFourDimensions,
        ForStridedInputs,
        UnderAutocast,
        WhileCompiling,
        Remembers,
        Counts,
    ],
)
def test_a_norm_that_differs_for_other_values_is_left_alone(make):
    model = build("SeedOssForCausalLM", head_dim=8)
    model.model.norm = make(model.model.norm)
    assert "model.norm" not in apply_liger_kernel(model)


class ClampsTheGate(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x).clamp(max=10.0)) * self.up_proj(x))


class ClampsInHalfOnly(ClampsTheGate):
    def forward(self, x):
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner.clamp(-1, 1) if x.dtype is torch.half else inner)


class OfSequences(ClampsTheGate):
    def forward(self, x):
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner if x.dim() == 2 else 2 * inner)


class RemembersTheGate(ClampsTheGate):
    def forward(self, x):
        self.gate = nn.functional.silu(self.gate_proj(x))
        return self.down_proj(self.gate * self.up_proj(x))


class WithoutNanInside(ClampsTheGate):
    def forward(self, x):
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(torch.where(inner == inner, inner, 0.0))


@pytest.mark.parametrize("make", [ClampsTheGate, ClampsInHalfOnly, OfSequences, RemembersTheGate, WithoutNanInside])
def test_an_mlp_with_a_limit_is_left_alone(make):
    model = build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.0, attention_dropout=0.0)
    model.model.layers[0].mlp = make(model.model.layers[0].mlp)
    done = apply_liger_kernel(model)
    assert "model.layers.0.mlp" not in done and done["model.layers.1.mlp"] == "LigerSwiGLUMLP"


class ScaledByANumber(Halved):
    scale = 1.0

    def forward(self, x):
        scale = self.scale * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight.float() * x.float() * scale).to(x.dtype)


class WithALimit(ClampsTheGate):
    limit = None

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(
            nn.functional.silu(gate if self.limit is None else gate.clamp(max=self.limit)) * self.up_proj(x)
        )


def with_a_scale(model):
    model.model.norm = ScaledByANumber(model.model.norm)


def set_scale(model):
    model.model.norm.scale = 2.0


def with_a_limit(model):
    model.model.layers[0].mlp = WithALimit(model.model.layers[0].mlp)


def set_limit(model):
    model.model.layers[0].mlp.limit = 0.1


def set_dropout(model):
    for layer in model.model.layers:
        layer.mlp.residual_dropout = 0.5


@pytest.mark.parametrize(
    ("make", "path", "change"),
    [
        (with_a_scale, "model.norm", set_scale),
        (with_a_limit, "model.layers.0.mlp", set_limit),
        (lambda model: None, "model.layers.1.mlp", set_dropout),
    ],
)
def test_a_number_of_a_module_that_is_set_later_counts(make, path, change):
    models = [build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.0, attention_dropout=0.0) for _ in range(2)]
    for model in models:
        make(model)
    assert path in apply_liger_kernel(models[1])
    losses = []
    for changed in (False, True):
        steps = []
        for model in models:
            if changed:
                change(model)
            torch.manual_seed(3)
            steps.append(run(model, **tiny_models.batch()))
        assert_same_step(steps[1], steps[0], 1e-4)
        losses.append(steps[0][0].loss.item())
    assert losses[0] != losses[1]


def test_an_mlp_that_drops_in_training_is_left_alone():
    model = build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.5, attention_dropout=0.0).eval()
    done = apply_liger_kernel(model)
    assert not any("MLP" in what for what in done.values()) and done["model.norm"].startswith("LigerRMSNorm")


class OfOneClass(nn.Module):
    """It asks for the class of its child, which a patch changes."""

    def __init__(self, norm):
        super().__init__()
        self.inner = RoundsLate(norm)

    def forward(self, x):
        assert type(self.inner) is RoundsLate
        return self.inner(x)


def test_what_breaks_the_model_is_taken_back():
    model = build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.0, attention_dropout=0.0)
    model.model.norm = OfOneClass(model.model.norm)
    expected = run(model, **tiny_models.batch())
    done = apply_liger_kernel(model)
    assert "model.norm.inner" not in done and "model.layers.0.input_layernorm" in done and FUSED in done.values()
    assert_same_step(run(model, **tiny_models.batch()), expected, 1e-4)


def test_trying_leaves_modes_buffers_and_random_numbers_as_they_were():
    model = build("SeedOssForCausalLM", head_dim=8)
    model.model.layers[0].eval()
    model.model.register_buffer("calls", torch.zeros(()))
    model.model.register_forward_pre_hook(lambda module, args: module.calls.add_(1) and None)
    modes = {path: module.training for path, module in model.named_modules()}
    states = torch.get_rng_state(), random.getstate()
    apply_liger_kernel(model)
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert model.model.calls == 0


def test_a_model_that_cannot_be_run_keeps_its_forward_and_rotary_embedding():
    model = build("SeedOssForCausalLM", head_dim=8)
    model.model.register_forward_pre_hook(lambda module, args: exec("raise RuntimeError"))
    done = apply_liger_kernel(model)
    assert HALVES not in done.values() and FUSED not in done.values()
    assert done["model.norm"].startswith("LigerRMSNorm")
