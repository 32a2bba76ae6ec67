"""Preference losses on a head against float64 formulas as the papers write them, and what every loss owes its callers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from reference import DTYPES, assert_close, twins, unit

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import _token_loss, functional
from liger_kernel.chunked_loss.cpo_loss import LigerFusedLinearCPOFunction
from liger_kernel.chunked_loss.dpo_loss import LOSSES, LigerFusedLinearDPOFunction
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase
from liger_kernel.chunked_loss.fused_linear_unpaired_preference import LigerFusedLinearUnpairedPreferenceBase
from liger_kernel.chunked_loss.kto_loss import LigerFusedLinearKTOFunction
from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction
from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOFunction
from liger_kernel.ops import linear_logprob

PAIRS, TOKENS, HIDDEN, VOCAB = 3, 7, 16, 61
BETA, GAMMA, TAU, SMOOTHING = 0.3, 0.4, 0.5, 0.15

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


@dataclass(frozen=True)
class Paired:
    function: type
    module: type
    losses: Callable  # of chosen and rejected log-probabilities: one a pair
    options: dict = field(default_factory=dict)
    alpha: float = 1.0
    average: bool = False
    has_reference: bool = False
    nll: bool = True
    more: Callable | None = None  # auxiliary outputs behind the rewards

    def positional(self, **given):
        """The arguments as `apply` takes them, all of them."""
        given = self.options | given
        parameters = list(inspect.signature(self.function.forward).parameters.values())[1:]
        assert set(given) <= {p.name for p in parameters}
        return [given.get(p.name, p.default) for p in parameters]


def paired(function, module, losses, **options):
    keys = {k: options.pop(k) for k in ("alpha", "average", "has_reference", "more", "nll") if k in options}
    options["beta"] = BETA
    if "alpha" in inspect.signature(function.forward).parameters:
        options["alpha"] = keys.get("alpha", 1.0)
    if "average_log_prob" in inspect.signature(function.forward).parameters:
        options["average_log_prob"] = keys.get("average", False)
    options["compute_nll_loss"] = keys.get("nll", True)
    return Paired(function, module, losses, options, **keys)


def dpo_case(kind, **keys):
    s = SMOOTHING if kind in ("exo_pair", "robust") else 0.0
    return paired(
        LigerFusedLinearDPOFunction, chunked_loss.LigerFusedLinearDPOLoss, lambda c, r: DPO[kind](c, r, s), nll=False,
        **{"loss_type": kind, "label_smoothing": s, "discopop_tau": TAU, "has_reference": True} | keys,
    )  # fmt: skip


CPO = LigerFusedLinearCPOFunction, chunked_loss.LigerFusedLinearCPOLoss
SIMPO = LigerFusedLinearSimPOFunction, chunked_loss.LigerFusedLinearSimPOLoss
ORPO = LigerFusedLinearORPOFunction, chunked_loss.LigerFusedLinearORPOLoss
CASES = {
    "cpo": paired(*CPO, lambda c, r: sigmoid_pairs(BETA * (c - r), 0.0)),
    "cpo smooth": paired(
        *CPO, lambda c, r: sigmoid_pairs(BETA * (c - r), SMOOTHING), label_smoothing=SMOOTHING, alpha=0.5, average=True
    ),
    "cpo alone": paired(*CPO, lambda c, r: sigmoid_pairs(BETA * (c - r), 0.0), nll=False),
    "simpo": paired(
        *SIMPO, lambda c, r: sigmoid_pairs(BETA * (c - r) - GAMMA, SMOOTHING),
        label_smoothing=SMOOTHING, gamma=GAMMA, alpha=2.0, average=True,
    ),
    "orpo": paired(
        *ORPO, lambda c, r: -BETA * log_sigmoid(odds_ratio(c, r)), average=True,
        more=lambda c, r: (log_sigmoid(odds_ratio(c, r)).mean(), odds_ratio(c, r).mean()),
    ),
    **{f"dpo {kind}": dpo_case(kind) for kind in DPO},
    "dpo without reference": dpo_case("sigmoid", has_reference=False, use_ref_model=False),
    "dpo with nll": dpo_case("sigmoid", average=True) if False else paired(
        LigerFusedLinearDPOFunction, chunked_loss.LigerFusedLinearDPOLoss, lambda c, r: DPO["sigmoid"](c, r, 0.0),
        alpha=0.7, average=True, has_reference=True,
    ),
}  # fmt: skip


def problem(device, dtype, pairs=PAIRS, tokens=TOKENS, empty=False):
    """Pairs of unequal valid length: hidden states, head, labels, and a reference model of another width."""
    target = torch.randint(0, VOCAB, (2 * pairs, tokens), device=device)
    for i in range(2 * pairs):
        target[i, : i % 3] = -100  # the prompt
        target[i, tokens - (2 * i) % 5 :] = -100
    if empty:
        target[1] = -100
    make = lambda *shape, scale=1.0: (scale * torch.randn(*shape, device=device)).to(dtype)  # noqa: E731
    model = make(2 * pairs, tokens, HIDDEN), make(VOCAB, HIDDEN, scale=0.3), make(VOCAB)
    reference = make(2 * pairs, tokens, HIDDEN - 5), make(VOCAB, HIDDEN - 5, scale=0.3), make(VOCAB)
    return [t.requires_grad_() for t in model], target, reference


def token_log_probs(x, weight, bias, target):
    """float64 [sequences, T], 0 where a token does not count; and the logits."""
    logits = x @ weight.t() + bias
    log_p = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return log_p.where(target != -100, 0), logits


def of_sequences(tokens, target, average):
    return tokens.sum(-1) / (target != -100).sum(-1) if average else tokens.sum(-1)


def loss_of_tokens(case, tokens, target, reference):
    """As the paper writes it, of the model's log-probabilities: loss, nll, chosen and rejected log-probabilities."""
    c, r = of_sequences(tokens, target, case.average).split(target.shape[0] // 2)
    ratios = (c, r)
    if case.has_reference:
        ratios = [a - b for a, b in zip(ratios, of_sequences(reference, target, case.average).split(c.shape[0]))]
    nll = -tokens[: c.shape[0]].sum() / (target[: c.shape[0]] != -100).sum() if case.nll else torch.zeros(())
    return case.alpha * nll + case.losses(*ratios).mean(), nll, c, r, ratios


def token_error(dtype) -> float:
    """Of a token's log-probability: the logits, of size up to 8, are rounded, and so is what they are differences of."""
    return 2 * 8 * unit(dtype) + 40 * unit(torch.float32)


@dataclass
class Exact:
    """A loss in float64, and how far an error of each token's log-probability moves it and its gradients."""

    loss: torch.Tensor
    aux: tuple
    gradients: list
    loss_error: float
    factor_error: float


def exact(case, model, target, reference, dtype):
    model, reference, target = twins(*model), twins(*reference), target.cpu()
    tokens, logits = token_log_probs(*model, target)
    ref_tokens, _ = token_log_probs(*reference, target)
    loss, nll, c, r, ratios = loss_of_tokens(case, tokens, target, ref_tokens)
    n = c.shape[0]
    rewards = [BETA * x for x in ratios]
    more = () if case.more is None else case.more(c, r)
    aux = (c, r, logits[:n].mean(), logits[n:].mean(), nll, *rewards, *more)
    gradients = torch.autograd.grad(loss, model)

    counts, delta = target != -100, token_error(dtype)
    scalar = lambda t: loss_of_tokens(case, t.view_as(tokens), target, ref_tokens.detach())[0]  # noqa: E731
    leaf = tokens.detach().flatten()
    slope = torch.autograd.functional.jacobian(scalar, leaf)
    curve = torch.autograd.functional.hessian(scalar, leaf).abs() @ counts.flatten().double()
    used = slope.abs() > 1e-12
    loss_error = delta * (2 if case.has_reference else 1) * slope.abs().sum() + 8 * unit(torch.float32) * (
        loss.abs() + (slope * leaf).abs().sum()
    )
    factor_error = delta * 2 * (curve[used] / slope.abs()[used]).max() if used.any() else 0.0
    return Exact(loss.detach(), aux, list(gradients), float(loss_error), float(factor_error))


def run(case, model, target, reference, **options):
    given = dict(zip(("_input", "weight", "bias"), model)) | {"target": target} | options
    if case.has_reference:
        given |= dict(zip(("ref_input", "ref_weight", "ref_bias"), reference))
    return case.function.apply(*case.positional(**given))


def check(case, model, target, reference, dtype, loss, aux, upstream=1.0):
    right = exact(case, model, target, reference, dtype)
    assert loss.dtype is torch.float32 and loss.shape == ()
    assert abs(loss.item() - right.loss.item()) <= right.loss_error, (loss.item(), right.loss.item(), right.loss_error)
    assert len(aux) == len(right.aux)
    longest = TOKENS * token_error(dtype)
    for ours, wanted in zip(aux, right.aux):
        assert ours.shape == wanted.shape and not ours.requires_grad and ours.dtype is torch.float32
        assert (ours.cpu() - wanted).abs().max() <= 4 * longest * max(1.0, wanted.abs().max().item()), (ours, wanted)
    gradients = torch.autograd.grad(loss, model, torch.tensor(upstream, device=loss.device))
    roundings = 2 * (8 + 4) + right.factor_error / unit(dtype)
    for ours, wanted, given in zip(gradients, right.gradients, model):
        assert ours.dtype is given.dtype
        assert_close(ours.flatten(), upstream * wanted.flatten(), dtype, roundings, VOCAB)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, name):
    case = CASES[name]
    model, target, reference = problem(device, dtype)
    loss, aux = run(case, model, target, reference)
    check(case, model, target, reference, dtype, loss, aux, upstream=1.75)


def test_every_loss_type_is_here():
    assert DPO.keys() == LOSSES.keys()
