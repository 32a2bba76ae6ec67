"""apply_liger_kernel on a family without a row: what code or user changes afterwards counts as it does in the stock model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs transformers")

import tiny_models  # noqa: E402
from llama_patching import assert_same_step  # noqa: E402
from probed_models import Halved, build  # noqa: E402
from tiny_llama import run  # noqa: E402

from liger_kernel.transformers import apply_liger_kernel, patching  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

HALVES = "liger_rotary_pos_emb"

FACTOR = 1.0


def plain_norm(self, x):
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return (self.weight.float() * x.float() * scale).to(x.dtype)


class OfAHelper(Halved):
    factor = 1.0

    def _factor(self):
        return self.factor

    def forward(self, x):
        return plain_norm(self, x) * self._factor()


class OfABuffer(Halved):
    def __init__(self, norm):
        super().__init__(norm)
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x):
        return plain_norm(self, x) * self.factor.to(x.dtype)


class OfWhatIsNotThereYet(Halved):
    def forward(self, x):
        return plain_norm(self, x) * getattr(self, "factor", 1.0)


class OfAnObject(Halved):
    def __init__(self, norm):
        super().__init__(norm)
        self.options = {"factor": 1.0}

    def forward(self, x):
        return plain_norm(self, x) * self.options["factor"]


class OfAFunction(Halved):
    def __init__(self, norm):
        super().__init__(norm)
        self.after = torch.nn.functional.threshold

    def forward(self, x):
        return self.after(plain_norm(self, x), -1e30, 0.0)


class OfItsModule(Halved):
    def forward(self, x):
        return plain_norm(self, x) * FACTOR


class OfItsClass(Halved):
    def forward(self, x):
        return plain_norm(self, x)


def set_factor(module, patch):
    module.factor = 2.0


def fill_factor(module, patch):
    module.factor.fill_(2.0)


def set_option(module, patch):
    module.options["factor"] = 2.0


def set_function(module, patch):
    module.after = lambda x, *args: 2 * x


def set_global(module, patch):
    patch.setitem(globals(), "FACTOR", 2.0)


def set_global_function(module, patch):
    own = plain_norm
    patch.setitem(globals(), "plain_norm", lambda self, x: 2 * own(self, x))


def set_class_forward(module, patch):
    own = OfItsClass.forward
    patch.setattr(OfItsClass, "forward", lambda self, x: 2 * own(self, x))


class OwnMLP(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.build()

    def build(self):
        pass

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class WithDropout(OwnMLP):
    def build(self):
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.dropout(super().forward(x))


class WithAnActivationOfAnotherName(OwnMLP):
    def build(self):
        self.act = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class WithAnActivationNotCalled(OwnMLP):
    def build(self):
        self.act_fn = nn.SiLU()


def set_dropout_of_a_child(module, patch):
    module.dropout.p = 1.0


def set_act(module, patch):
    module.act = nn.ReLU()


def set_act_fn(module, patch):
    module.act_fn = nn.ReLU()


def set_silu(module, patch):
    patch.setattr(nn.functional, "silu", lambda x, inplace=False: x.relu())


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (OfAHelper, set_factor),
        (OfABuffer, fill_factor),
        (OfWhatIsNotThereYet, set_factor),
        (OfAnObject, set_option),
        (OfAFunction, set_function),
        (OfItsModule, set_global),
        (OfItsClass, set_class_forward),
        (OfItsClass, set_global_function),
        (WithDropout, set_dropout_of_a_child),
        (WithAnActivationOfAnotherName, set_act),
        (OwnMLP, set_silu),
    ],
)
def test_what_a_module_reads_and_is_changed_later_counts(make, change):
    models = [build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.0, attention_dropout=0.0) for _ in range(2)]
    places = []
    for model in models:
        if issubclass(make, OwnMLP):
            model.model.layers[0].mlp = make(model.model.layers[0].mlp)
            places.append(model.model.layers[0].mlp)
        else:
            model.model.norm = make(model.model.norm)
            places.append(model.model.norm)
    apply_liger_kernel(models[1])
    losses = []
    for changed in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if changed:
                for place in places[: 1 if change in (set_global, set_global_function, set_class_forward) else 2]:
                    change(place, patch)
            expected, step = (run(model, **tiny_models.batch()) for model in models)
        assert_same_step(step, expected, 1e-4)
        losses.append(expected[0].loss.item())
    assert losses[0] != losses[1]


def test_an_activation_that_a_forward_does_not_call_changes_nothing():
    models = [build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.0, attention_dropout=0.0) for _ in range(2)]
    for model in models:
        model.model.layers[0].mlp = WithAnActivationNotCalled(model.model.layers[0].mlp)
    apply_liger_kernel(models[1])
    for model in models:
        set_act_fn(model.model.layers[0].mlp, None)
    expected, step = (run(model, **tiny_models.batch()) for model in models)
    assert_same_step(step, expected, 1e-4)


@pytest.mark.parametrize("make", [OfAHelper, OfWhatIsNotThereYet, OfItsModule, OfItsClass])
def test_a_norm_whose_changes_can_be_seen_is_patched(make):
    model = build("SeedOssForCausalLM", head_dim=8)
    model.model.norm = make(model.model.norm)
    assert "model.norm" in apply_liger_kernel(model)


@pytest.mark.parametrize("change", ["rotate_half", "rotary_emb"])
def test_a_rotation_that_is_changed_later_counts(change):
    from transformers.models.seed_oss import modeling_seed_oss as modeling

    models = [build("SeedOssForCausalLM", head_dim=8, residual_dropout=0.0, attention_dropout=0.0) for _ in range(2)]
    assert HALVES in apply_liger_kernel(models[1]).values()
    half, apply = modeling.rotate_half, modeling.apply_rotary_pos_emb
    with pytest.MonkeyPatch.context() as patch:
        if change == "rotate_half":
            patch.setattr(modeling, "rotate_half", lambda x: 0.5 * half(x))
        else:
            for model in models:
                own = model.model.rotary_emb.forward

                def tables(*args, own=own, **kwargs):
                    cos, sin = own(*args, **kwargs)
                    return torch.cat((cos[..., :4], 0.5 * cos[..., 4:]), -1), sin

                model.model.rotary_emb.forward = tables
        step = run(models[1], **tiny_models.batch())
        patch.setattr(modeling, "apply_rotary_pos_emb", patching.original(modeling, "apply_rotary_pos_emb"))
        expected = run(models[0], **tiny_models.batch())
    assert apply is modeling.apply_rotary_pos_emb
    assert_same_step(step, expected, 1e-4)
