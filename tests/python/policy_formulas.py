"""Losses of a policy in float64, one token after the other, as the papers write them; a batch to try them on."""

from __future__ import annotations

import inspect
import math

import torch
from reference import twins
from token_losses import HIDDEN, VOCAB

from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

BATCH, TOKENS = 5, 6
LOW, HIGH, CISPO = 0.15, 0.25, 1.1  # CISPO's is the bound itself
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


def problem(device, dtype, tokens=TOKENS):
    """Sequences of many lengths, one of them without a token, one with a hole."""
    x = torch.randn(BATCH, tokens, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    b = (0.5 * torch.randn(VOCAB, device=device)).to(dtype).requires_grad_()
    ids = torch.randint(0, VOCAB, (BATCH, tokens), device=device)
    mask = torch.ones(BATCH, tokens, dtype=torch.bool, device=device)
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


def make_case(device, dtype, kind, level, variant, tokens=TOKENS):
    """What `apply` is given by name, and what the formula is."""
    variant = dict(variant)
    x, weight, bias, ids, mask, advantages = problem(device, dtype, tokens)
    p, _ = log_probs64(x, weight, bias, ids, variant.get("temperature", 1.0))
    spread = 0.35 if level == "token" else 0.8
    given = dict(
        _input=x, weight=weight, selected_token_ids=ids, attention_mask=mask, advantages=advantages,
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
