"""apply_liger_kernel: a forward of a family without a row has its loss fused into the head where it computes what ours do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
import tiny_models  # noqa: E402
from llama_patching import assert_same_step  # noqa: E402
from tiny_llama import run  # noqa: E402
from transformers.modeling_outputs import CausalLMOutputWithPast  # noqa: E402

from liger_kernel.transformers import apply_liger_kernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

FUSED = "the loss fused into the output projection"


class OfNoFamily(transformers.LlamaConfig):
    model_type = "of_no_family"


class OwnLoss(transformers.LlamaForCausalLM):
    config_class = OfNoFamily
    dropout = log_z = 0.0

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(nn.functional.dropout(hidden, self.dropout, self.training)), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if self.log_z:
                loss = loss + self.log_z * logits.float().logsumexp(-1).square().mean()
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class DropsBeforeTheHead(OwnLoss):
    dropout = 0.5


class AddsLogZ(OwnLoss):
    log_z = 3e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("cls", "fused"), [(OwnLoss, True), (DropsBeforeTheHead, False), (AddsLogZ, False)])
def test_a_forward_that_does_more_is_not_fused(cls, fused, dtype):
    options = {name: value for name, value in tiny_llama.config().to_dict().items() if name != "model_type"}
    model = cls(OfNoFamily(**options)).to(dtype).train()
    assert (FUSED in apply_liger_kernel(model).values()) == fused


class CapsLogits(OwnLoss):
    """Those of a model that is not trained yet are far below."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden).clamp(-50, 50), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class WithANumber(OwnLoss):
    """As Bamba has one."""

    z_loss_coefficient = 0.0

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if self.z_loss_coefficient > 0:
                loss = loss + self.z_loss_coefficient * helper(logits)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def helper(logits):
    return logits.float().logsumexp(-1).square().mean()


class WithANumberOfTheConfig(OwnLoss):
    """As GraniteSWA and HyperCLOVA X have one."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden) * self.config.logits_scaling, None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def of_no_family(cls):
    options = {name: value for name, value in tiny_llama.config().to_dict().items() if name != "model_type"}
    torch.manual_seed(0)
    return cls(OfNoFamily(**options, logits_scaling=1.0, image_token_index=90)).train()


def test_a_forward_that_caps_its_logits_is_not_fused():
    done = apply_liger_kernel(of_no_family(CapsLogits))
    assert FUSED not in done.values() and "model.norm" in done


class Own(OwnLoss):
    """A forward as many write it. What a class below changes shows for some batches only."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        hidden, labels, given = self.changed(input_ids, attention_mask, hidden, labels, kwargs)
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **given)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels, given


class IgnoresPadding(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels.masked_fill(mask == 0, -100), given


class IgnoresPadTokens(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels.masked_fill(ids == (self.config.pad_token_id or 0), -100), given


class MasksHiddenStates(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden * mask[..., None], labels, given


class KeepsKeywords(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels, {}


class ClampsLabels(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels.clamp(min=0), given


class OfTheLastPositions(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden[:, -8:], labels[:, -8:], given


class OfTheFirstSequence(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden[:1], labels[:1], given


class GivesTheBaseNoKeywords(OwnLoss):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class WithATemperature(OwnLoss):
    def forward(self, input_ids=None, attention_mask=None, labels=None, temperature=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden if temperature is None else hidden / temperature), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class IgnoresTheEnd(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels.masked_fill(labels == self.config.eos_token_id, -100), given


class IgnoresImages(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden, labels.masked_fill(labels == self.config.image_token_index, -100), given


class DetachesHiddenStates(Own):
    """Only the head is trained: the loss is the same, its gradients are not."""

    def changed(self, ids, mask, hidden, labels, given):
        return hidden.detach(), labels, given


class TrainsTheHeadOnly(OwnLoss):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        with torch.no_grad():
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class Slows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return 0.5 * gradient


class SlowsTheBase(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return Slows.apply(hidden), labels, given


class LimitsGradients(Own):
    def changed(self, ids, mask, hidden, labels, given):
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient.clamp(-1e-4, 1e-4))
        return hidden, labels, given


class PullsTheHead(OwnLoss):
    """A gradient that is no part of the loss's value: for the head."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            pull = self.pull(hidden)
            loss = loss + (pull - pull.detach())
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def pull(self, hidden):
        return 0.01 * self.lm_head.weight.square().sum()


class PullsTheNorm(PullsTheHead):
    def pull(self, hidden):
        return hidden.square().mean()


class TakesAWeight(OwnLoss):
    """A keyword of the loss that is no parameter."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        weight = kwargs.pop("loss_weight", None)
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            loss = loss if weight is None else loss * weight
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class AsksForAWeight(Own):
    def changed(self, ids, mask, hidden, labels, given):
        return hidden / given["temperature"] if "temperature" in given else hidden, labels, given


class HandsAWeightOn(OwnLoss):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.weighted(logits, labels, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def weighted(self, logits, labels, loss_weight=1.0, **kwargs):
        return loss_weight * self.loss_function(
            logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
        )


class RemembersLogits(OwnLoss):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        self.logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=self.logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=self.logits)


class KeepsShiftedLabels(Own):
    def changed(self, ids, mask, hidden, labels, given):
        given.pop("shift_labels", None)
        return hidden, labels, given


FORWARDS = [
    IgnoresTheEnd,
    IgnoresImages,
    DetachesHiddenStates,
    TrainsTheHeadOnly,
    SlowsTheBase,
    LimitsGradients,
    PullsTheHead,
    PullsTheNorm,
    TakesAWeight,
    AsksForAWeight,
    HandsAWeightOn,
    RemembersLogits,
    KeepsShiftedLabels,
    IgnoresPadding,
    IgnoresPadTokens,
    MasksHiddenStates,
    KeepsKeywords,
    ClampsLabels,
    OfTheLastPositions,
    OfTheFirstSequence,
    GivesTheBaseNoKeywords,
    WithATemperature,
]


@pytest.mark.parametrize("cls", [Own, *FORWARDS])
def test_a_forward_that_differs_for_other_batches_is_not_fused(cls):
    done = apply_liger_kernel(of_no_family(cls))
    assert (FUSED in done.values()) == (cls is Own) and "model.norm" in done


def set_coefficient(model):
    model.z_loss_coefficient = 0.1


def set_scaling(model):
    model.config.logits_scaling = 2.0


@pytest.mark.parametrize(("cls", "change"), [(WithANumber, set_coefficient), (WithANumberOfTheConfig, set_scaling)])
def test_a_number_that_is_set_later_counts(cls, change):
    models = [of_no_family(cls), of_no_family(cls)]
    assert FUSED in apply_liger_kernel(models[1]).values()
    for changed in (False, True):
        if changed:
            for model in models:
                change(model)
        expected, step = (run(model, **tiny_models.batch()) for model in models)
        assert_same_step(step, expected, 1e-4)
        assert (step[0].logits is None) == (not changed)


class DropsByAChild(OwnLoss):
    def __init__(self, config):
        super().__init__(config)
        self.drop = nn.Dropout(0.0)

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits, loss = self.lm_head(self.drop(hidden)), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def test_a_forward_with_another_child_is_not_fused():
    assert FUSED not in apply_liger_kernel(of_no_family(DropsByAChild)).values()
