"""Losses of a policy on a head against float64 formulas, one token after the other, as the papers write them."""

from __future__ import annotations

import inspect
import math
import pathlib
import warnings

import own_process
import pytest
import torch
from reference import assert_close, twins, unit

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import functional, grpo_loss
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction, LigerFusedLinearGRPOLoss
from liger_kernel.ops import _policy_loss

BATCH, TOKENS, HIDDEN, VOCAB = 5, 6, 16, 61
LOW, HIGH, CISPO = 0.15, 0.25, 1.1  # CISPO's is the bound itself
DTYPES = (torch.float32, torch.bfloat16)
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
KINDS = [(kind, level) for kind in CLIPPED for level in ("token", "sequence")] + [
    (kind, "token") for kind in ("cispo", "sapo", "vespo")
]
DEFAULTS = {
    name: p.default
    for name, p in inspect.signature(LigerFusedLinearGRPOFunction.forward).parameters.items()
    if p.default is not p.empty
}

# ---- the formulas ------------------------------------------------------------------------------------------------------


def clipped_objective(w, a, delta):
    """min(w·A, clip(w)·A): PPO's, with GRPO's and DAPO's bounds; delta is the second bound of the INTELLECT-2 report."""
    bounded = w if delta is None else torch.clamp(w, max=delta)
    return torch.minimum(bounded * a, torch.clamp(w, 1 - LOW, 1 + HIGH) * a)


def is_clipped(kind, w, a):
    if kind in ("sapo", "vespo"):
        return False
    if kind == "cispo":
        return bool(w > CISPO and a > 0)
    return bool((w < 1 - LOW and a < 0) or (w > 1 + HIGH and a > 0))


def vespo_weight(log_ratios, ratios, a, given):
    """φ(w) = w^k·exp(λ·(1 - w)) of the sequence's weight, whose logarithm is bounded."""
    sign = "pos" if a >= 0 else "neg"
    k, rate = given[f"vespo_k_{sign}"], max(given[f"vespo_lambda_{sign}"], 1e-4)
    bounded = [min(max(math.log(r), math.log(1e-8)), 20) for r in ratios]
    u = sum((min(max(v.item(), -20), 20) for v in log_ratios), 0.0) + sum(bounded)
    u = min(max(u, math.log(1e-8)), 20)
    exponent = rate + k * u - rate * math.exp(u)
    return math.exp(exponent), abs(rate) + k * abs(u) + rate * math.exp(u)


class Exact:
    """Loss and metrics of log-probabilities p [B, T] float64, and `size`: the magnitudes of all that is added up, which
    rounding errors of a float32 evaluation are parts of."""

    def __init__(self, p, mask, advantages, old, reference, ratio, given, skips_masked=False):
        self.skips_masked = skips_masked  # LUSPO too, whose terms are then numbers of a token always
        self.p, self.mask, self.advantages, self.given = p, mask.cpu() != 0, advantages.cpu().double(), given
        self.old, self.reference = (t if t is None else t.cpu().double() for t in (old, reference))
        self.ratio = None if ratio is None else ratio.cpu().double().reshape(BATCH, -1)
        self.kind, self.beta = given["loss_type"], given["beta"]
        self.counts = self.mask.sum(-1).tolist()
        self.tokens = sum(self.counts)
        self.size, self.kl, self.clipped = 0.0, 0.0, 0
        self.loss = self._reduced()
        self.kl, self.clipped = self.kl / max(self.tokens, 1), self.clipped / max(self.tokens, 1)

    def _weights(self, i):
        """log(policy/sampler) and its exponential, of each token of a sequence."""
        log_ratios = [
            self.p[i, t] - (self.p[i, t].detach() if self.old is None else self.old[i, t]) for t in range(TOKENS)
        ]
        if self.given["importance_sampling_level"] == "token":
            return log_ratios, [v.exp() for v in log_ratios]
        mean = sum((v for v, m in zip(log_ratios, self.mask[i]) if m), torch.zeros((), dtype=torch.float64))
        return log_ratios, [(mean / max(self.counts[i], 1)).exp()] * TOKENS

    def _term(self, i, t, log_ratios, w):
        """One token's, and what it may cost in magnitude."""
        a, p, given = self.advantages[i], self.p[i, t], self.given
        extra = 1.0
        if self.kind == "cispo":
            term = -w.detach().clamp(max=CISPO) * a * p
        elif self.kind == "sapo":
            tau = given["sapo_temperature_pos"] if a > 0 else given["sapo_temperature_neg"]
            term = -a * 4 / tau / (1 + torch.exp(-tau * (w - 1)))
        elif self.kind == "vespo":
            valid = [v for v, m in zip(log_ratios, self.mask[i]) if m]
            ratios = [] if self.ratio is None else self.ratio[i].tolist()
            phi, extra = vespo_weight(valid, ratios, a, given)
            term, extra = -phi * a * p, 1 + extra
        else:
            term = -clipped_objective(w, a, given["delta"])
        if self.ratio is not None and self.kind != "vespo":
            term = term * self.ratio[i, t if self.ratio.shape[1] > 1 else 0]
        size = abs(term.item()) * extra
        counts = self.mask[i, t].item()
        self.clipped += counts and is_clipped(self.kind, w, a)
        if self.beta:
            d = (p.detach() if self.reference is None else self.reference[i, t]) - p
            kl = (d.exp() - d - 1) * (w if given["use_bias_correction_kl"] else 1)
            term = term + self.beta * kl
            size += self.beta * (abs(d.exp().item() - 1) + abs(d.item())) * max(w.item(), 1)
            self.kl += kl.item() if counts else 0.0
        return term, size

    def _factor(self, i):
        """What each token's term of a sequence is multiplied by."""
        kind, given = self.kind, self.given
        if kind in ("grpo", "sapo"):
            return 1 / max(self.counts[i], 1) / BATCH
        if kind == "bnpo":
            return 1 / max(self.tokens, 1)
        if kind == "dr_grpo":
            return 1 / (BATCH * given["max_completion_length"])
        if kind == "luspo":
            return self.counts[i] / (BATCH * (TOKENS if self.has_tokens() else 1))
        items = given["num_items_in_batch"]
        return 1 / max(float(self.tokens if items is None else items), 1)

    def has_tokens(self):
        is_wide = self.ratio is not None and self.ratio.shape[1] > 1
        return self.skips_masked or self.given["importance_sampling_level"] == "token" or bool(self.beta) or is_wide

    def _reduced(self):
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(BATCH):
            log_ratios, weights = self._weights(i)
            for t in range(TOKENS):
                everywhere = self.kind == "luspo" and not self.skips_masked and (self.has_tokens() or t == 0)
                if not (self.mask[i, t] or everywhere):
                    continue
                term, size = self._term(i, t, log_ratios, weights[t])
                if self.kind == "luspo" and not self.has_tokens() and t > 0:
                    continue  # the sequence has one term; its tokens are looked at for the metrics
                loss = loss + term * self._factor(i)
                self.size += size * self._factor(i)
        return loss


# ---- the problem -------------------------------------------------------------------------------------------------------


def problem(device, dtype, bias=True):
    """Sequences of many lengths, one of them without a token, one with a hole."""
    x = torch.randn(BATCH, TOKENS, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    b = (0.5 * torch.randn(VOCAB, device=device)).to(dtype).requires_grad_() if bias else None
    ids = torch.randint(0, VOCAB, (BATCH, TOKENS), device=device)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=device)
    mask[1] = False
    mask[2, 3:] = False
    mask[3, 1] = False
    advantages = torch.tensor([1.3, -0.7, -1.1, 0.4, 0.9], device=device)
    return x, weight, b, ids, mask, advantages


def log_probs64(x, weight, bias, ids, temperature=1.0):
    """And the twins whose gradients they have."""
    x, weight, bias = twins(x, weight, bias)
    z = (x @ weight.t() if bias is None else x @ weight.t() + bias) / temperature
    return z.log_softmax(-1).gather(-1, ids.cpu()[..., None])[..., 0], (x, weight, bias)


def near(p, spread):
    """Log-probabilities of another policy, close to these ones."""
    return (p.detach() + spread * torch.randn(p.shape, dtype=torch.float64)).float()


def arguments(given):
    """All arguments of `apply`, by position."""
    assert not set(given) - set(inspect.signature(LigerFusedLinearGRPOFunction.forward).parameters), given
    names = list(inspect.signature(LigerFusedLinearGRPOFunction.forward).parameters)[1:]
    return [given.get(name, DEFAULTS.get(name)) for name in names]


VARIANTS = {  # beside the tensors that make_case() makes where their names stand here
    "on policy": dict(beta=0.0),
    "clip": dict(beta=0.0, old=True),
    "kl": dict(beta=0.3, old=True, reference="given"),
    "kl to itself": dict(beta=0.3, use_ref_model=False),
    "kl corrected": dict(beta=0.3, old=True, reference="given", use_bias_correction_kl=True),
    "reference head": dict(beta=0.3, reference="head", temperature=0.7),
    "delta": dict(beta=0.0, old=True, delta=1.35),
    "ratio [B]": dict(beta=0.0, old=True, ratio=(BATCH,)),
    "ratio [B, 1], kl": dict(beta=0.3, old=True, reference="given", ratio=(BATCH, 1)),
    "ratio [B, T]": dict(beta=0.0, old=True, ratio=(BATCH, TOKENS)),
    "items": dict(beta=0.0, old=True, num_items_in_batch=37),
}
ITEMS = ("dapo", "cispo", "vespo")


def cases(variants):
    """(kind, level, name of the variant) where the loss reads what the variant is about."""
    readers = {"delta": CLIPPED, "items": ITEMS}
    return [(k, level, name) for k, level in KINDS for name in variants if k in readers.get(name, (k,))]


def make_case(device, dtype, kind, level, variant, mask_dtype=torch.bool):
    """What `apply` is given by name, and what the formula is."""
    variant = dict(variant)
    x, weight, bias, ids, mask, advantages = problem(device, dtype)
    p, _ = log_probs64(x, weight, bias, ids, variant.get("temperature", 1.0))
    spread = 0.35 if level == "token" else 0.8
    given = dict(
        _input=x, weight=weight, selected_token_ids=ids, attention_mask=mask.to(mask_dtype), advantages=advantages,
        bias=bias, loss_type=kind, importance_sampling_level=level, epsilon_low=LOW, max_completion_length=TOKENS + 2,
        epsilon_high=CISPO if kind == "cispo" else HIGH, use_ref_model=False,
    )  # fmt: skip
    if variant.pop("old", False):
        given["old_per_token_logps"] = near(p, spread).to(device)
    reference = variant.pop("reference", None)
    if reference is not None:
        given["use_ref_model"] = True
    if reference == "given":
        given["ref_per_token_logps"] = near(p, 0.5).to(device)
    if reference == "head":
        given["ref_input"] = (x.detach() + 0.1 * torch.randn(x.shape, device=device)).to(dtype)
        given["ref_weight"], given["ref_bias"] = weight.detach().clone(), bias.detach().clone()
    shape = variant.pop("ratio", None)
    if shape is not None:
        given["vllm_is_ratio"] = (0.2 * torch.randn(shape)).exp().to(device)
    return given | variant


def spied(monkeypatch):
    """The tensors that the formula is given in a call: it is compared on the same log-probabilities, float32."""
    seen = {}
    original = LigerFusedLinearGRPOFunction.ppo_loss_fn

    def spy(**given):
        seen.update(p=given["per_token_logps"].detach().cpu(), reference=given["ref_per_token_logps"])
        return original(**given)

    monkeypatch.setattr(LigerFusedLinearGRPOFunction, "ppo_loss_fn", staticmethod(spy))
    return seen


def logits_error() -> float:
    """In units of a dtype's rounding: logits of size up to 8, rounded, and once more their gradients; and what follows."""
    return 8 + 4


def check_against_formula(given, loss, metrics, seen):
    """Three steps, each to its own rounding: log-probabilities to that of logits, the formula on them to float32's, and the
    gradients of the formula's derivatives to that of logits again."""
    full = DEFAULTS | given
    x, weight, bias = given["_input"], given["weight"], given["bias"]
    dtype = x.dtype
    p64, others = log_probs64(x, weight, bias, given["selected_token_ids"], full["temperature"])
    counts = (given["attention_mask"] != 0).cpu()
    read = torch.ones_like(counts) if seen["p"][~counts].any() else counts
    assert_close(seen["p"][read].float(), p64[read], dtype, logits_error() / min(full["temperature"], 1), VOCAB)
    if "ref_input" in given:
        operands = given["ref_input"], given["ref_weight"], given["ref_bias"], given["selected_token_ids"]
        wanted, _ = log_probs64(*operands, full["temperature"])
        allowed = logits_error() / min(full["temperature"], 1)
        assert_close(seen["reference"].cpu()[read], wanted[read], dtype, allowed, VOCAB)
    leaf = seen["p"].double().requires_grad_()
    right = Exact(
        leaf, given["attention_mask"], given["advantages"], full["old_per_token_logps"], seen["reference"],
        full["vllm_is_ratio"], full,
    )  # fmt: skip
    assert loss.dtype is torch.float32 and loss.dim() == 0
    budget = (32 + counts.numel()) * unit(torch.float32) * right.size
    assert abs(loss.item() - right.loss.item()) <= budget, (loss.item(), right.loss.item(), budget)
    *kl, clipped = metrics
    assert all(m.device == x.device and m.dim() == 0 and not m.requires_grad for m in metrics)
    assert abs(clipped.item() - right.clipped) <= 2 * unit(torch.float32)
    assert len(kl) == bool(full["beta"])
    if kl:
        assert abs(kl[0].item() - right.kl) <= (32 + counts.numel()) * unit(torch.float32) * max(right.kl, right.size)
    (by_token,) = torch.autograd.grad(right.loss, leaf, allow_unused=True)
    (p64 * by_token).sum().backward()
    for ours, twin in zip((x, weight, bias), others):
        assert ours.grad.dtype is ours.dtype
        assert_close(ours.grad.flatten(), twin.grad.flatten(), dtype, 2 * logits_error(), VOCAB)


# ---- values and gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "level", "name"), cases(VARIANTS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_formula(device, dtype, kind, level, name, monkeypatch):
    given = make_case(device, dtype, kind, level, VARIANTS[name])
    seen = spied(monkeypatch)
    loss, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    loss.backward()
    check_against_formula(given, loss, metrics, seen)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", _policy_loss.LOSS_TYPES)
def test_masks_of_any_dtype(device, kind, mask_dtype):
    """The same bits; and another number than 1 says no more than 1."""
    given = make_case(device, torch.float32, kind, "token", VARIANTS["kl"])
    loss, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    mask = given["attention_mask"].to(mask_dtype)
    for factor in (1,) if mask_dtype is torch.bool else (1, 2):
        other, others = LigerFusedLinearGRPOFunction.apply(*arguments(given | dict(attention_mask=mask * factor)))
        assert torch.equal(loss, other) and all(map(torch.equal, metrics, others))


@pytest.mark.parametrize("kind", _policy_loss.LOSS_TYPES)
def test_nothing_at_masked_positions_spreads(device, kind):
    """NaN in all that has a number for each token, and ids of no token. Of a GPU's rows only those that are left out."""
    level, kl = (
        ("sequence", "clip") if kind == "luspo" else ("token", "kl corrected")
    )  # LUSPO's terms of tokens all count
    clean = make_case(device, torch.float32, kind, level, VARIANTS[kl])
    mask, x = clean["attention_mask"], clean["_input"]
    if kind not in ("vespo", "luspo"):  # VESPO's weight reads the ratios of all positions
        clean["vllm_is_ratio"] = 1 + 0.1 * torch.rand(mask.shape, device=device)
    clean["valid_rows"] = int(mask.sum())
    dirty = dict(clean)
    for name in ("old_per_token_logps", "ref_per_token_logps", "vllm_is_ratio"):
        if clean.get(name) is not None:
            dirty[name] = clean[name].masked_fill(~mask, torch.nan)
    dirty["_input"] = x.detach().masked_fill(~mask[..., None], torch.nan).requires_grad_()
    dirty["selected_token_ids"] = clean["selected_token_ids"].masked_fill(~mask, 10**6)
    found = []
    for given in (clean, dirty):
        loss, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(given))
        tensors = given["_input"], given["weight"], given["bias"]
        found.append((loss, *metrics, *torch.autograd.grad(loss, tensors)))
    assert all(map(torch.equal, *found))
    assert not found[1][-3][~mask].any()


@pytest.mark.parametrize("kind", _policy_loss.LOSS_TYPES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 4)])
def test_no_token_at_all(device, kind, shape):
    x = torch.randn(*shape, HIDDEN, device=device, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, device=device, requires_grad=True)
    ids = torch.zeros(shape, dtype=torch.int64, device=device)
    advantages = torch.ones(shape[0], device=device)
    module = LigerFusedLinearGRPOLoss(loss_type=kind, use_ref_model=False, max_completion_length=9)
    loss, metrics = module(x, weight, ids, torch.zeros_like(ids), advantages)
    loss.backward()
    if kind == "luspo":
        assert torch.isfinite(loss)
    else:
        assert loss == 0 and not weight.grad.any() and not x.grad.any()
    assert [m.item() for m in metrics] == [0, 0]


@pytest.mark.parametrize("valid_rows", ["exact", "more", "all"])
@pytest.mark.parametrize("kind", _policy_loss.LOSS_TYPES)
def test_a_bound_of_the_tokens(device, kind, valid_rows):
    """It changes nothing; where masked tokens take part it is not used."""
    given = make_case(device, torch.float32, kind, "token", VARIANTS["reference head"])
    count = int(given["attention_mask"].sum())
    bound = {"exact": count, "more": count + 2, "all": 1000}[valid_rows]
    tensors = given["_input"], given["weight"], given["bias"]
    results = []
    for extra in ({}, dict(valid_rows=bound)):
        loss, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(given | extra))
        results.append((loss, *metrics, *torch.autograd.grad(loss, tensors)))
    for one, other in zip(*results):  # a product of fewer rows may add up in another order
        assert_close(other.flatten(), one.flatten().double(), torch.float32, 2 * logits_error(), VOCAB)
    module = LigerFusedLinearGRPOLoss(loss_type=kind, use_ref_model=False, max_completion_length=TOKENS)
    named = "_input", "weight", "selected_token_ids", "attention_mask", "advantages", "bias"
    loss, _ = module(*(given[n] for n in named), valid_rows=bound)
    assert loss.isfinite()
    with pytest.raises(TypeError):
        module(*(given[n] for n in named), *[None] * 7, bound)


def test_too_small_a_bound_is_not_silent(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["clip"]) | dict(valid_rows=2)
    if device.type == "cpu":
        with pytest.raises(ValueError, match="valid_rows"):
            LigerFusedLinearGRPOFunction.apply(*arguments(given))
        return
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    assert loss.isnan()


# ---- gradients: what is owed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_trained(device, dtype, trained):
    given = make_case(device, dtype, "dapo", "token", VARIANTS["kl"])
    names = "_input", "weight", "bias"
    whole, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    full = torch.autograd.grad(whole, [given[n] for n in names])
    for i, name in enumerate(names):
        given[name] = given[name].detach().requires_grad_(i in trained)
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    assert torch.equal(loss, whole) and loss.requires_grad is bool(trained)
    if trained:
        loss.backward()
    for i, (name, wanted) in enumerate(zip(names, full)):
        found = given[name].grad
        assert (found is None) if i not in trained else torch.equal(found, wanted)


def test_nothing_else_has_a_gradient(device):
    """Not the other policies, nor advantages and ratios, also where they ask for one; eager, and by torch's own graph."""
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["reference head"] | dict(old=True))
    given["vllm_is_ratio"] = torch.ones(BATCH, device=device)
    others = ["old_per_token_logps", "ref_input", "ref_weight", "ref_bias", "advantages", "vllm_is_ratio"]
    for name in others:
        given[name] = given[name].detach().requires_grad_()
    for apply in (LigerFusedLinearGRPOFunction.apply, compiled_apply()):
        loss, _ = apply(*arguments(given))
        loss.backward()
        assert all(given[name].grad is None for name in others) and given["_input"].grad is not None


def test_upstream_and_a_second_backward(device):
    given = make_case(device, torch.bfloat16, "grpo", "token", VARIANTS["kl"])
    tensors = given["_input"], given["weight"], given["bias"]
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    once = torch.autograd.grad(loss, tensors, retain_graph=True)
    again = torch.autograd.grad(loss, tensors, retain_graph=True)
    quarter = torch.autograd.grad(loss, tensors, torch.tensor(-0.25, device=device), retain_graph=True)
    last = torch.autograd.grad(loss, tensors)
    for one, other, fourth, final in zip(once, again, quarter, last):
        assert torch.equal(one, other) and torch.equal(one, final)  # powers of two round nothing
        assert torch.equal(fourth, one * -0.25)
        assert one.data_ptr() != other.data_ptr()


def test_autocast(device):
    """float32 parameters and products in bf16; backward outside of the block computes as forward did."""
    given = make_case(device, torch.float32, "dapo", "token", VARIANTS["kl"])
    tensors = given["_input"], given["weight"], given["bias"]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    found = torch.autograd.grad(loss, tensors)
    low = [t.detach().bfloat16().requires_grad_() for t in tensors]
    other, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given | dict(zip(("_input", "weight", "bias"), low))))
    assert torch.equal(loss, other)
    for ours, wanted in zip(found, torch.autograd.grad(other, low)):
        assert ours.dtype is torch.float32
        assert_close(ours.flatten(), wanted.flatten().double(), torch.bfloat16, 2, VOCAB)


def test_no_gradient_is_asked_for(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    loss, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    with torch.no_grad():
        other, others = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    assert not other.requires_grad and torch.equal(loss, other) and all(map(torch.equal, metrics, others))


def test_second_derivatives_are_refused(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["clip"])
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    with pytest.raises(RuntimeError, match="second derivatives are not provided"):
        torch.autograd.grad(loss, given["weight"], create_graph=True)


def test_as_many_gradients_as_arguments(device):
    given = arguments(make_case(device, torch.float32, "grpo", "token", VARIANTS["clip"]))
    names = list(inspect.signature(LigerFusedLinearGRPOFunction.forward).parameters)[1:]
    assert names.index("num_items_in_batch") == 30 and names[31:] == ["valid_rows"]
    loss, _ = LigerFusedLinearGRPOFunction.apply(*given[:31])
    with torch.no_grad():
        gradients = LigerFusedLinearGRPOFunction.backward(loss.grad_fn, torch.ones_like(loss), None)
    assert len(gradients) == 31 and [i for i, g in enumerate(gradients) if g is not None] == [0, 1, 5]


def test_inputs_are_left_alone(device):
    given = make_case(device, torch.bfloat16, "dapo", "token", VARIANTS["reference head"] | dict(old=True))
    before = {k: v.detach().clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    loss.backward()
    assert all(torch.equal(given[k], v) for k, v in before.items())


@pytest.mark.parametrize("kind", ["grpo", "vespo"])
def test_what_was_made_in_inference_mode(device, kind):
    """As samplers make log-probabilities and rewards."""
    given = make_case(device, torch.float32, kind, "token", VARIANTS["kl"])
    given["vllm_is_ratio"] = torch.rand(BATCH, TOKENS, device=device)
    trained = given["_input"], given["weight"], given["bias"]
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            others = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor) and not v.requires_grad}
        loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given | others))
        found.append((loss, *torch.autograd.grad(loss, trained)))
    assert all(map(torch.equal, *found))


def test_hidden_states_of_any_strides(device):
    """As trainers cut them out of longer sequences."""
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["clip"])
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    wanted = torch.autograd.grad(loss, given["_input"])[0]
    longer = torch.randn(BATCH, TOKENS + 2, HIDDEN, device=device)
    longer[:, 1:-1] = given["_input"].detach()
    longer.requires_grad_()
    other, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given | dict(_input=longer[:, 1:-1])))
    other.backward()
    assert torch.equal(loss, other) and torch.equal(longer.grad[:, 1:-1], wanted)


# ---- where torch looks at the call -------------------------------------------------------------------------------------


def compiled_apply():
    torch._dynamo.reset()
    return torch.compile(LigerFusedLinearGRPOFunction.apply, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", ["clip", "reference head", "ratio [B, 1], kl"])
@pytest.mark.parametrize(("kind", "level"), [(k, v) for k, v in KINDS if k in ("grpo", "luspo", "cispo", "vespo")])
def test_compiled(device, kind, level, name):
    given = make_case(device, torch.float32, kind, level, VARIANTS[name])
    given["valid_rows"] = int(given["attention_mask"].sum())
    tensors = given["_input"], given["weight"], given["bias"]
    results = []
    for apply in (LigerFusedLinearGRPOFunction.apply, compiled_apply()):
        loss, metrics = apply(*arguments(given))
        results.append((loss, *metrics, *torch.autograd.grad(loss, tensors)))
    for one, other in zip(*results):
        assert_close(other.flatten(), one.flatten().double(), torch.float32, 2 * logits_error(), VOCAB)


def test_under_functorch_and_without_memory(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    (wanted,) = torch.autograd.grad(loss, given["weight"])

    def loss_of(weight):
        return LigerFusedLinearGRPOFunction.apply(*arguments(given | dict(weight=weight)))[0]

    found = torch.func.grad(loss_of)(given["weight"].detach())
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        given["_input"], given["bias"] = given["_input"].detach(), given["bias"].detach()
        traced = torch.jit.trace(loss_of, given["weight"].detach(), check_trace=False)
    assert_close(traced(given["weight"]), loss.double(), torch.float32, 2 * logits_error(), VOCAB)
    assert_close(found.flatten(), wanted.flatten().double(), torch.float32, 2 * logits_error(), VOCAB)
    on_meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    loss, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(on_meta))
    assert loss.is_meta and loss.shape == () and len(metrics) == 2


def test_it_waits_for_no_device(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    for kind, level in KINDS:
        given = make_case(device, torch.bfloat16, kind, level, VARIANTS["reference head"] | dict(old=True))
        args = arguments(given | dict(num_items_in_batch=31))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            LigerFusedLinearGRPOFunction.apply(*args)[0].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ---- how it is called --------------------------------------------------------------------------------------------------


def test_positional_call_with_bools(device):
    """sapo_temperature_neg=False, temperature=True, compiled=1: what callers pass by position means numbers."""
    given = make_case(device, torch.float32, "bnpo", "token", VARIANTS["kl"] | dict(beta=0.04, reference=None))
    x, weight, ids, mask, advantages = list(given.values())[:2] + [
        given[n] for n in ("selected_token_ids", "attention_mask", "advantages")
    ]
    reference = near(log_probs64(x, weight, given["bias"], ids)[0], 0.3).to(device)
    tensors = x, weight, ids, mask, advantages, given["bias"], reference, given["old_per_token_logps"]
    loss, metrics = functional.liger_fused_linear_grpo(
        *tensors, None, None, None, 0.04, 0.2, 0.2, "bnpo", TOKENS, "token", 1.0, False, True, 1
    )
    module = LigerFusedLinearGRPOLoss(loss_type="bnpo", max_completion_length=TOKENS)
    other, others = module(x, weight, ids, mask, advantages, *tensors[5:])
    assert torch.equal(loss, other) and all(map(torch.equal, metrics, others)) and len(metrics) == 2


def test_module_as_trainers_call_it(device):
    given = make_case(device, torch.bfloat16, "dapo", "token", VARIANTS["kl"] | dict(beta=0.04))
    numbers = dict(
        beta=0.04, epsilon_low=LOW, epsilon_high=HIGH, temperature=0.9, use_ref_model=True, loss_type="dapo",
        max_completion_length=32, importance_sampling_level="token", delta=1.5, use_bias_correction_kl=True,
        sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
    )  # fmt: skip
    ratio = torch.full((BATCH, 1), 0.8, device=device)
    loss, metrics = chunked_loss.LigerFusedLinearGRPOLoss(**numbers)(
        _input=given["_input"], lin_weight=given["weight"], selected_token_ids=given["selected_token_ids"],
        attention_mask=given["attention_mask"], advantages=given["advantages"], bias=None,
        old_per_token_logps=given["old_per_token_logps"], ref_per_token_logps=given["ref_per_token_logps"],
        vllm_is_ratio=ratio, num_items_in_batch=torch.tensor(40, device=device),
    )  # fmt: skip
    wanted, others = LigerFusedLinearGRPOFunction.apply(
        *arguments(given | numbers | dict(bias=None, vllm_is_ratio=ratio, num_items_in_batch=40))
    )
    assert torch.equal(loss, wanted) and all(map(torch.equal, metrics, others))
    assert isinstance(metrics, tuple) and len(metrics) == 2


@pytest.mark.parametrize("kind", ITEMS)
def test_number_of_items(device, kind):
    """The mask's own sum changes nothing, and twice as many halve loss and gradients."""
    given = make_case(device, torch.float32, kind, "token", VARIANTS["clip"])
    count = int(given["attention_mask"].sum())
    tensors = given["_input"], given["weight"]
    results = []
    for items in (None, count, float(count), torch.tensor(count, device=device), torch.tensor([2.0 * count])):
        loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given | dict(num_items_in_batch=items)))
        results.append((loss, *torch.autograd.grad(loss, tensors)))
    for same in results[1:4]:
        assert all(map(torch.equal, results[0], same))
    for whole, half in zip(results[0], results[4]):
        assert torch.equal(whole / 2, half)


def test_two_references_are_one_too_many(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    with warnings.catch_warnings(record=True) as none:
        warnings.simplefilter("always")
        loss, _ = LigerFusedLinearGRPOFunction.apply(*arguments(given))
    assert not none
    both = given | dict(ref_input=torch.full_like(given["_input"], torch.nan), ref_weight=given["weight"])
    with pytest.warns(UserWarning, match="ref_per_token_logps and ref_input are both given"):
        other, _ = LigerFusedLinearGRPOFunction.apply(*arguments(both))
    assert torch.equal(loss, other)
    compiled, _ = compiled_apply()(*arguments(both))
    assert_close(compiled, loss.double(), torch.float32, 2 * logits_error(), VOCAB)
    unused = both | dict(use_ref_model=False)
    _, metrics = LigerFusedLinearGRPOFunction.apply(*arguments(unused))
    assert metrics[0] == 0


REFUSED = [
    (dict(loss_type="ppo"), ValueError, "loss_type"),
    (dict(importance_sampling_level="batch"), ValueError, "importance_sampling_level"),
    *(
        (
            dict(loss_type=kind, importance_sampling_level="sequence"),
            ValueError,
            "Sequence-level importance sampling is not supported",
        )
        for kind in ("cispo", "sapo", "vespo")
    ),
    (dict(loss_type="sapo", sapo_temperature_pos=0.0), ValueError, "sapo_temperature_pos"),
    (dict(loss_type="sapo", sapo_temperature_neg=-1.0), ValueError, "sapo_temperature_neg"),
    (dict(loss_type="dr_grpo", max_completion_length=None), AssertionError, "max_completion_length"),
    (dict(use_ref_model=True), AssertionError, "ref_per_token_logps"),
    (dict(vllm_is_ratio=torch.ones(BATCH + 1)), AssertionError, "vllm_is_ratio"),
    (dict(vllm_is_ratio=torch.ones(BATCH, 2)), AssertionError, "vllm_is_ratio"),
    (dict(vllm_is_ratio=torch.ones(BATCH, TOKENS, 1)), AssertionError, "vllm_is_ratio"),
    (dict(temperature=0.0), ValueError, "temperature"),
    (dict(valid_rows=-1), ValueError, "valid_rows"),
    (dict(attention_mask=torch.ones(BATCH, TOKENS + 1)), ValueError, "attention_mask"),
    (dict(attention_mask=None), TypeError, "attention_mask"),
    (dict(advantages=torch.ones(BATCH, 2)), ValueError, "advantages"),
    (dict(old_per_token_logps=torch.ones(BATCH, 1)), ValueError, "old_per_token_logps"),
    (dict(use_ref_model=True, ref_per_token_logps=torch.ones(2)), ValueError, "ref_per_token_logps"),
    (dict(use_ref_model=True, beta=0.1, ref_input=torch.ones(BATCH, TOKENS, 3)), ValueError, "ref_weight"),
    (dict(selected_token_ids=torch.zeros(BATCH, TOKENS)), ValueError, "selected_token_ids"),
    (dict(selected_token_ids=torch.full((BATCH, TOKENS), VOCAB)), ValueError, str(VOCAB)),
    (dict(selected_token_ids=torch.full((BATCH, TOKENS), -100)), ValueError, "-100"),
    (dict(_input=torch.zeros(BATCH, HIDDEN)), ValueError, "_input"),
    (dict(_input=torch.zeros(BATCH, TOKENS, HIDDEN, dtype=torch.float64)), ValueError, "float64"),
    (dict(weight=torch.zeros(VOCAB, HIDDEN + 1)), ValueError, "_input"),
    (dict(loss_type="dapo", num_items_in_batch=torch.ones(2)), ValueError, r"num_items_in_batch has shape \(2,\)"),
    (dict(vllm_is_ratio=[1.0]), TypeError, "vllm_is_ratio"),
    (
        dict(use_ref_model=True, beta=0.1, ref_input=torch.ones(BATCH, TOKENS, 3), ref_weight=torch.ones(1, 3)),
        ValueError,
        r"^LigerFusedLinearGRPOFunction: selected_token_ids\[\d+\] is \d+, .* in \[0, 1\)$",
    ),
    (dict(bias=torch.zeros(VOCAB + 1)), ValueError, "bias"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_what_is_refused(change, error, words):
    given = make_case(torch.device("cpu"), torch.float32, "grpo", "token", VARIANTS["on policy"])
    with pytest.raises(error, match=words):
        LigerFusedLinearGRPOFunction.apply(*arguments(given | change))


def test_a_token_that_is_refused_goes_by_the_callers_word():
    given = make_case(torch.device("cpu"), torch.float32, "grpo", "token", VARIANTS["on policy"])
    vocab = given["weight"].shape[0]
    args = list(arguments(given))
    args[2], args[3] = torch.full_like(args[2], vocab), torch.ones_like(args[3])
    words = rf"LigerFusedLinearGRPOFunction: selected_token_ids\[0\] is {vocab}, .* in \[0, {vocab}\)$"
    with pytest.raises(ValueError, match=words):
        LigerFusedLinearGRPOFunction.apply(*args)


@pytest.mark.parametrize(
    "options",
    [dict(sapo_temperature_pos=0), dict(sapo_temperature_neg=-1.0), dict(delta=0.0), dict(delta=-1.0)],
)
def test_what_the_module_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LigerFusedLinearGRPOLoss(**options)


def test_the_function_reads_temperatures_of_sapo_alone():
    given = make_case(torch.device("cpu"), torch.float32, "grpo", "token", VARIANTS["on policy"])
    LigerFusedLinearGRPOFunction.apply(*arguments(given | dict(sapo_temperature_neg=False)))


# ---- pieces ------------------------------------------------------------------------------------------------------------


def test_k3_keeps_its_digits():
    """Close to one policy the estimate is d²/2; the difference of its terms would have no digit of it."""
    log_q = torch.tensor([-1.0, -2.0, -3.0])
    d = torch.tensor([2.0**-10, -(2.0**-9), 0.5])
    exact = torch.expm1(d.double()) - d.double()
    found = grpo_loss.k3_loss_fn(log_q + d, log_q)
    assert (found.double() / exact - 1).abs().max() < 2.0**-22 * 2**11
    assert (torch.exp(d) - d - 1)[0] != found[0]


def test_pieces_by_name():
    w = torch.tensor([0.5, 1.0, 1.5])
    clipped, low, high = grpo_loss.clip_coef_fn(w, 0.2, 0.3, "grpo")
    assert torch.equal(clipped, torch.tensor([0.8, 1.0, 1.3])) and low.tolist() == [True, False, False]
    assert high.tolist() == [False, False, True]
    clipped, low, high = grpo_loss.clip_coef_fn(w.requires_grad_(), 0.2, 1.2, "cispo")
    assert torch.equal(clipped, torch.tensor([0.5, 1.0, 1.2])) and not clipped.requires_grad and not low.any()
    with pytest.raises(ValueError, match="loss_type"):
        grpo_loss.clip_coef_fn(w, 0.2, 0.2, "ppo")
    with pytest.raises(ValueError, match="larger than 0"):
        grpo_loss.sapo_loss_fn(w, 0.0)
    assert grpo_loss.sapo_loss_fn(torch.ones(1), 0.5).item() == 4.0
    ones = torch.ones(2, 3)
    assert grpo_loss.get_gamma_weights(torch.ones(2), 0 * ones, ones).tolist() == [[1.0], [1.0]]
    assert grpo_loss.get_gamma_weights(torch.ones(2), torch.nan * ones, ones).tolist() == [[0.0], [0.0]]
    negative = grpo_loss.get_gamma_weights(-torch.ones(2, 1), ones, ones, lambda_neg=-1.0)
    assert negative.shape == (2, 1) and (negative.log() - (1e-4 + 9 - 1e-4 * math.exp(3))).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probs_of_a_chunk(device, dtype):
    x, weight, bias, ids, _, _ = problem(device, dtype)
    found = LigerFusedLinearPPOBase.chunk_forward(x[1:3], weight, ids[1:3], bias, 0.8)
    wanted, others = log_probs64(x, weight, bias, ids, 0.8)
    assert found.dtype is torch.float32
    assert_close(found, wanted[1:3], dtype, logits_error() / 0.8, VOCAB)
    found.sum().backward()
    wanted[1:3].sum().backward()
    for ours, twin in zip((x, weight, bias), others):
        assert_close(ours.grad.flatten(), twin.grad.flatten(), dtype, 2 * logits_error() / 0.8, VOCAB)


# ---- a loss of one's own -----------------------------------------------------------------------------------------------


class Reinforce(LigerFusedLinearPPOBase):
    """-A·p, with a bonus for what the sampler did not expect; its own order of arguments, and only some of them."""

    @staticmethod
    def ppo_loss_fn(per_token_logps, attention_mask, advantages, full_attention_mask, old_per_token_logps=None, **_):
        terms = -advantages[:, None] * per_token_logps + 0.1 * (per_token_logps - old_per_token_logps) ** 2
        loss = (terms * attention_mask).sum() / full_attention_mask.sum()
        return loss, [per_token_logps.mean(), torch.tensor(3)]

    @classmethod
    def forward(cls, ctx, _input, weight, ids, mask, advantages, bias=None, old=None):
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, selected_token_ids=ids, attention_mask=mask,
            advantages=advantages, bias=bias, old_per_token_logps=old, chunk_size=2,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, *grad_outputs):
        return *LigerFusedLinearPPOBase.backward(ctx, *grad_outputs)[:6], None


class Blind(Reinforce):
    @staticmethod
    def reads_masked(**_):
        return False


@pytest.mark.parametrize("function", [Reinforce, Blind])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_subclass_brings_its_formula(device, function, compiled):
    x, weight, bias, ids, mask, advantages = problem(device, torch.float32)
    p, others = log_probs64(x, weight, bias, ids)
    old = near(p, 0.3).to(device)
    apply = torch.compile(function.apply, fullgraph=True, backend="aot_eager") if compiled else function.apply
    loss, (mean, three) = apply(x, weight, ids, mask, advantages, bias, old)
    if function is Reinforce:
        assert_close(mean, p.mean(), torch.float32, 4, VOCAB)
    assert three == 3 and not mean.requires_grad
    (2 * loss).backward()
    terms = -advantages.cpu()[:, None] * p + 0.1 * (p - old.cpu().double()) ** 2
    right = (terms * mask.cpu()).sum() / mask.sum().item()
    (2 * right).backward()
    assert_close(loss, right, torch.float32, 16, VOCAB)
    for ours, twin in zip((x, weight, bias), others):
        assert_close(ours.grad.flatten(), twin.grad.flatten(), torch.float32, 2 * logits_error(), VOCAB)


def test_the_base_has_no_formula():
    class Empty(LigerFusedLinearPPOBase):
        @classmethod
        def forward(cls, ctx, *args):
            return super().forward(cls, ctx, *args)

    x, weight, _, ids, mask, advantages = problem(torch.device("cpu"), torch.float32)
    with pytest.raises(NotImplementedError, match="ppo_loss_fn"):
        Empty.apply(x, weight, ids, mask, advantages)


# ---- several processes -------------------------------------------------------------------------------------------------


def test_normaliser_of_two_processes(tmp_path):
    """The mean of the processes' gradients is the gradient of the whole batch in one process."""
    worker = pathlib.Path(__file__).with_name("grpo_worker.py")
    processes = [own_process.start(worker, rank, 2, tmp_path / "store") for rank in range(2)]
    said = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    assert all("right" in out for out, _ in said)


# ---- training ----------------------------------------------------------------------------------------------------------


STATES, ACTIONS = 6, 16


def entropies(dtype, loss_of, steps=1000):
    """Of a policy that is trained by the exact gradient of its expected reward and entropy: every action stands in the batch, and
    its probability and advantage in the ratio. No sample sends two such runs apart, and they end in the same policy."""
    torch.manual_seed(3)
    states = torch.randn(STATES, 12).bfloat16().float()
    weight = torch.nn.Parameter(0.1 * torch.randn(ACTIONS, 12))
    rewards, optimizer, found = torch.randn(STATES, ACTIONS), torch.optim.SGD([weight], lr=0.5), []
    ids = torch.arange(ACTIONS).expand(STATES, ACTIONS)
    hidden = states[:, None].expand(STATES, ACTIONS, 12).to(dtype)
    for _ in range(steps):
        with torch.no_grad():
            log_p = (states @ weight.t()).log_softmax(-1)
            p, values = log_p.exp(), rewards - 0.5 * log_p
            found.append(-(p * log_p).sum(-1).mean())
            ratio = ACTIONS * p * (values - (p * values).sum(-1, keepdim=True))
        optimizer.zero_grad()
        loss_of(hidden, weight.to(dtype), ids, ratio).backward()
        optimizer.step()
    return torch.stack(found)


def test_entropy_does_not_drift():
    """In bf16 it stays as close to float32's as that of torch's own evaluation in bf16."""
    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="grpo")
    mask, advantages = torch.ones(STATES, ACTIONS), torch.ones(STATES)

    def fused(x, weight, ids, ratio):
        return module(x, weight, ids, mask, advantages, vllm_is_ratio=ratio)[0]

    def plain(x, weight, ids, ratio):
        log_p = (x @ weight.t()).float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return -((log_p - log_p.detach()).exp() * ratio).mean()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small are the tensors
    try:
        exact = entropies(torch.float32, plain)
        ours, torchs = (entropies(torch.bfloat16, loss_of) - exact for loss_of in (fused, plain))
    finally:
        torch.set_num_threads(threads)
    assert exact[0] - exact[-1] > 0.5
    assert ours.abs().max() <= 2 * torchs.abs().max()
    assert ours[-200:].abs().max() <= 2 * torchs[-200:].abs().max() + 8 * unit(torch.float32) * exact[0]


def test_small_gradients_in_float16():
    """A loss of many tokens has gradients that float16 has no numbers for; what they are scaled by reaches them in time."""
    tokens, vocab = 512, 1000
    x = torch.randn(4, tokens, HIDDEN).half().requires_grad_()
    weight = (0.05 * torch.randn(vocab, HIDDEN)).half().requires_grad_()
    ids, advantages = torch.randint(0, vocab, (4, tokens)), 0.05 * torch.randn(4)
    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
    loss, _ = module(x, weight, ids, torch.ones_like(ids), advantages)
    (2.0**16 * loss).backward()
    p, others = log_probs64(x, weight, None, ids)
    (-(2.0**16) * advantages[:, None].double() * p / ids.numel()).sum().backward()
    for ours, twin in zip((x, weight), others):
        error = (ours.grad.double() - twin.grad).norm() / twin.grad.norm()
        assert error <= 4 * unit(torch.float16), error  # of the logits, of their gradients, of the result
