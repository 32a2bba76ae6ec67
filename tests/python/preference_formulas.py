"""Preference losses as the papers write them, in float64; pairs to try them on, and how far rounded logits move a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from reference import assert_close, twins, unit
from token_losses import HIDDEN, LOGITS, OPERANDS, VOCAB, arguments

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss.cpo_loss import LigerFusedLinearCPOFunction
from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOFunction
from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction
from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOFunction

PAIRS, TOKENS = 3, 7
REFERENCE = "ref_input", "ref_weight", "ref_bias"
BETA, GAMMA, TAU, SMOOTHING, KL = 0.3, 0.4, 0.5, 0.15, 0.6
DESIRABLE = torch.tensor([True, True, False, True, False, False])

# ---- the formulas ------------------------------------------------------------------------------------------------------


def log_sigmoid(x):
    return -torch.log(1 + torch.exp(-x))


def sigmoid_pairs(margin, s):
    return -(1 - s) * log_sigmoid(margin) - s * log_sigmoid(-margin)


def odds_ratio(c, r):
    return torch.log((c.exp() / (1 - c.exp())) / (r.exp() / (1 - r.exp())))


def discopop(d):
    m = 1 / (1 + torch.exp(-d / TAU))
    return -log_sigmoid(d) * (1 - m) + torch.exp(-d) * m


DPO = {  # of log ratios c, r to the reference
    "sigmoid": lambda c, r, s: -log_sigmoid(BETA * (c - r)),
    "hinge": lambda c, r, s: torch.clamp(1 - BETA * (c - r), min=0),
    "exo_pair": lambda c, r, s: (
        torch.sigmoid(BETA * (c - r)) * (log_sigmoid(BETA * (c - r)) - torch.log(torch.tensor(1 - s)))
        + torch.sigmoid(BETA * (r - c)) * (log_sigmoid(BETA * (r - c)) - torch.log(torch.tensor(s)))
    ),
    "nca_pair": lambda c, r, s: (
        -log_sigmoid(BETA * c) - 0.5 * log_sigmoid(-BETA * c) - 0.5 * log_sigmoid(-BETA * r)
    ),
    "robust": lambda c, r, s: (
        -(1 - s) * log_sigmoid(BETA * (c - r)) + s * log_sigmoid(BETA * (r - c))
    ) / (1 - 2 * s),
    "bco_pair": lambda c, r, s: -log_sigmoid(BETA * c) - log_sigmoid(-BETA * r),
    "sppo_hard": lambda c, r, s: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
    "apo_zero": lambda c, r, s: (1 - torch.sigmoid(BETA * c)) + torch.sigmoid(BETA * r),
    "apo_down": lambda c, r, s: torch.sigmoid(BETA * c) + (1 - torch.sigmoid(BETA * (c - r))),
    "discopop": lambda c, r, s: discopop(BETA * (c - r)),
}  # fmt: skip


def of_sequences(tokens, target, average):
    return tokens.sum(-1) / (target != -100).sum(-1) if average else tokens.sum(-1)


@dataclass(frozen=True)
class Case:
    """A Function, its module, the options of the call, and the formula of sequences' log-probabilities."""

    function: type
    module: type
    losses: Callable
    options: dict
    has_reference: bool = False
    more: Callable | None = None  # auxiliary outputs behind the rewards, of chosen and rejected log-probabilities

    @property
    def average(self):
        always = self.function in (LigerFusedLinearSimPOFunction, LigerFusedLinearORPOFunction)
        return always or self.options.get("average_log_prob", False)

    def sequences(self, tokens, target, reference):
        """Log-probabilities, and their distance to the reference's."""
        own = of_sequences(tokens, target, self.average)
        return own, own - of_sequences(reference, target, self.average) if self.has_reference else own

    def loss(self, tokens, target, reference):
        n = target.shape[0] // 2
        loss = self.losses(*self.sequences(tokens, target, reference)[1].split(n)).mean()
        return loss + self.options.get("alpha", 1.0) * self.nll(tokens, target)

    def nll(self, tokens, target):
        n = target.shape[0] // 2
        return -tokens[:n].sum() / (target[:n] != -100).sum() * self.options["compute_nll_loss"]

    def aux(self, tokens, logits, target, reference):
        own, ratios = self.sequences(tokens, target, reference)
        n = target.shape[0] // 2
        more = () if self.more is None else self.more(*own.split(n))
        rewards = (BETA * ratios).split(n)
        return *own.split(n), logits[:n].mean(), logits[n:].mean(), self.nll(tokens, target), *rewards, *more


class UnpairedCase(Case):
    def loss(self, tokens, target, reference):
        return self.losses(self.sequences(tokens, target, reference)[1]).mean()

    def aux(self, tokens, logits, target, reference):
        own, ratios = self.sequences(tokens, target, reference)
        values = own, logits.sum((-1, -2)), BETA * ratios
        return [v[kept].sum() for v in values for kept in (DESIRABLE, ~DESIRABLE)]


def paired(function, module, losses, has_reference=False, more=None, **options):
    return Case(function, module, losses, {"beta": BETA, "compute_nll_loss": True} | options, has_reference, more)


def dpo_case(kind, **options):
    s = SMOOTHING if kind in ("exo_pair", "robust") else 0.0
    given = dict(loss_type=kind, label_smoothing=s, discopop_tau=TAU, compute_nll_loss=False, has_reference=True)
    return paired(*OF_DPO, lambda c, r: DPO[kind](c, r, s), **given | options)


def kto(ratios):
    return 1 - torch.sigmoid(BETA * torch.where(DESIRABLE, 1, -1) * (ratios - KL))


def kto_case(**options):
    has_reference = options.get("use_ref_model", True)
    given = dict(beta=BETA, kl=torch.tensor([KL]), preference_labels=DESIRABLE) | options
    return UnpairedCase(LigerFusedLinearKTOFunction, chunked_loss.LigerFusedLinearKTOLoss, kto, given, has_reference)


OF_CPO = LigerFusedLinearCPOFunction, chunked_loss.LigerFusedLinearCPOLoss
OF_DPO = LigerFusedLinearDPOFunction, chunked_loss.LigerFusedLinearDPOLoss
OF_ORPO = LigerFusedLinearORPOFunction, chunked_loss.LigerFusedLinearORPOLoss
OF_SIMPO = LigerFusedLinearSimPOFunction, chunked_loss.LigerFusedLinearSimPOLoss
CASES = {
    "cpo": paired(*OF_CPO, lambda c, r: sigmoid_pairs(BETA * (c - r), 0.0)),
    "cpo smooth": paired(
        *OF_CPO, lambda c, r: sigmoid_pairs(BETA * (c - r), SMOOTHING),
        label_smoothing=SMOOTHING, alpha=0.5, average_log_prob=True,
    ),
    "cpo alone": paired(*OF_CPO, lambda c, r: sigmoid_pairs(BETA * (c - r), 0.0), compute_nll_loss=False),
    "simpo": paired(
        *OF_SIMPO, lambda c, r: sigmoid_pairs(BETA * (c - r) - GAMMA, SMOOTHING),
        label_smoothing=SMOOTHING, gamma=GAMMA, alpha=2.0,
    ),
    "orpo": paired(
        *OF_ORPO, lambda c, r: -BETA * log_sigmoid(odds_ratio(c, r)),
        more=lambda c, r: (log_sigmoid(odds_ratio(c, r)).mean(), odds_ratio(c, r).mean()),
    ),
    **{f"dpo {kind}": dpo_case(kind) for kind in DPO},
    "dpo without reference": dpo_case("sigmoid", has_reference=False, use_ref_model=False),
    "dpo with nll": dpo_case("sigmoid", compute_nll_loss=True, alpha=0.7, average_log_prob=True),
    "kto": kto_case(),
    "kto without reference": kto_case(use_ref_model=False, average_log_prob=True),
}  # fmt: skip


def problem(device, dtype, tokens=TOKENS):
    """Pairs of unequal valid length: hidden states, head, labels, and a reference model of another width."""
    target = torch.randint(0, VOCAB, (2 * PAIRS, tokens), device=device)
    for i in range(2 * PAIRS):
        target[i, : i % 3] = -100  # the prompt
        target[i, tokens - (2 * i) % 5 :] = -100
    make = lambda *shape, scale=1.0: (scale * torch.randn(*shape, device=device)).to(dtype)  # noqa: E731
    model = make(2 * PAIRS, tokens, HIDDEN), make(VOCAB, HIDDEN, scale=0.3), make(VOCAB)
    reference = make(2 * PAIRS, tokens, HIDDEN - 5), make(VOCAB, HIDDEN - 5, scale=0.3), make(VOCAB)
    return [t.requires_grad_() for t in model], target, reference


def token_log_probs(x, weight, bias, target):
    """float64 [sequences, T], 0 where a token does not count; and the logits."""
    logits = x @ weight.t() + bias
    log_p = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return log_p.where(target != -100, 0), logits


def token_errors(logits, tokens, target, dtype):
    """How far the rounding of logits moves each log-probability z_y - lse, whose derivative by z is onehot - p; and its sums."""
    z = logits.detach().abs()
    moved = z.gather(-1, target.clamp(min=0)[..., None])[..., 0] + (logits.softmax(-1) * z).sum(-1)
    return torch.where(target != -100, unit(dtype) * moved + 16 * unit(torch.float32) * (1 + tokens.abs()), 0).detach()


@dataclass
class Exact:
    """A loss in float64, and how far an error of each token's log-probability moves it and its gradients."""

    loss: torch.Tensor
    aux: tuple
    gradients: list
    sequence_errors: torch.Tensor
    loss_error: float
    factor_error: float


def exact(case, model, target, reference, dtype):
    model, target = twins(*model), target.cpu()
    tokens, logits = token_log_probs(*model, target)
    ref_tokens = ref_errors = torch.zeros_like(tokens)
    if case.has_reference:
        ref_tokens, ref_logits = token_log_probs(*twins(*reference), target)
        ref_errors = token_errors(ref_logits, ref_tokens, target, dtype)
    loss, aux = case.loss(tokens, target, ref_tokens), case.aux(tokens, logits, target, ref_tokens)
    gradients = torch.autograd.grad(loss, model)
    errors = token_errors(logits, tokens, target, dtype)
    by_token = lambda *t: case.loss(t[0], target, t[1])  # noqa: E731
    leaves = tokens.detach(), ref_tokens.detach()
    slope, ref_slope = torch.autograd.functional.jacobian(by_token, leaves)
    curve, ref_curve = torch.autograd.functional.hessian(by_token, leaves)[0]
    moved = (curve.abs() * errors).sum((-1, -2)) + (ref_curve.abs() * ref_errors).sum((-1, -2))
    loss_error = (slope.abs() * errors).sum() + (ref_slope.abs() * ref_errors).sum() + 8 * unit(torch.float32) * loss
    return Exact(
        loss.detach(), aux, list(gradients), errors.sum(-1), float(loss_error.detach()),
        float(moved.max() / slope.abs().max()),
    )  # fmt: skip


def given(case, model, target, reference):
    """The arguments by name."""
    names = dict(zip(OPERANDS, model)) | {"target": target}
    options = {k: v.to(target.device) if isinstance(v, torch.Tensor) else v for k, v in case.options.items()}
    return names | options | (dict(zip(REFERENCE, reference)) if case.has_reference else {})


def run(case, model, target, reference, **options):
    return case.function.apply(*arguments(case.function, given(case, model, target, reference) | options))


def check(case, model, target, reference, dtype, loss, aux, upstream=1.0):
    right = exact(case, model, target, reference, dtype)
    assert loss.dtype is torch.float32 and loss.shape == ()
    assert abs(loss.item() - right.loss.item()) <= right.loss_error, (loss.item(), right.loss.item(), right.loss_error)
    assert len(aux) == len(right.aux)
    longest = right.sequence_errors.max().item()
    for ours, wanted in zip(aux, right.aux):
        assert ours.shape == wanted.shape and not ours.requires_grad and ours.dtype is torch.float32
        assert (ours.cpu() - wanted).abs().max() <= 4 * longest * max(1.0, wanted.abs().max().item()), (ours, wanted)
    found = torch.autograd.grad(loss, model, torch.tensor(upstream, device=loss.device))
    roundings = LOGITS + right.factor_error / unit(dtype)
    for ours, wanted, tensor in zip(found, right.gradients, model):
        assert ours.dtype is tensor.dtype
        assert_close(ours.flatten(), upstream * wanted.flatten(), dtype, roundings, VOCAB)
