"""Preference losses on a head against float64 formulas as the papers write them, and what every loss owes its callers."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

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

    def positional(self, **given):
        """The arguments as `apply` takes them, all of them."""
        given = self.options | given
        parameters = list(inspect.signature(self.function.forward).parameters.values())[1:]
        assert set(given) <= {p.name for p in parameters}
        return [given.get(p.name, p.default) for p in parameters]

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
SOME = ["cpo", "dpo with nll", "orpo", "kto"]


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
    model, reference, target = twins(*model), twins(*reference), target.cpu()
    tokens, logits = token_log_probs(*model, target)
    ref_tokens, ref_logits = token_log_probs(*reference, target)
    loss, aux = case.loss(tokens, target, ref_tokens), case.aux(tokens, logits, target, ref_tokens)
    gradients = torch.autograd.grad(loss, model)
    errors = token_errors(logits, tokens, target, dtype)
    ref_errors = token_errors(ref_logits, ref_tokens, target, dtype) if case.has_reference else torch.zeros_like(errors)
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
    names = dict(zip(("_input", "weight", "bias"), model)) | {"target": target}
    held = {name: value.to(target.device) for name, value in case.options.items() if isinstance(value, torch.Tensor)}
    refs = dict(zip(("ref_input", "ref_weight", "ref_bias"), reference)) if case.has_reference else {}
    return names | held | refs


def run(case, model, target, reference, **options):
    return case.function.apply(*case.positional(**given(case, model, target, reference) | options))


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
    roundings = 8 + 4 + right.factor_error / unit(dtype)
    for ours, wanted, tensor in zip(found, right.gradients, model):
        assert ours.dtype is tensor.dtype
        assert_close(ours.flatten(), upstream * wanted.flatten(), dtype, roundings, VOCAB)


@pytest.fixture(params=SOME)
def case(request):
    return CASES[request.param]


def same(ours, others):
    for one, other in zip(ours, others, strict=True):
        assert torch.equal(one, other)


def about(ours, others, roundings=8, dtype=torch.float32):
    for one, other in zip(ours, others, strict=True):
        assert_close(one.flatten(), other.detach().double().flatten(), dtype, roundings, VOCAB)


def flat(loss, aux):
    return loss, *aux


def result(case, *args, **options):
    """(loss, aux...) and gradients, one after the other."""
    loss, aux = run(case, *args, **options)
    return *flat(loss, aux), *torch.autograd.grad(loss, args[0])


# ---- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, name):
    case = CASES[name]
    model, target, reference = problem(device, dtype)
    check(case, model, target, reference, dtype, *run(case, model, target, reference), upstream=1.75)


def test_every_loss_type_is_here():
    assert DPO.keys() == LOSSES.keys()


@pytest.mark.parametrize("slices", [VOCAB, 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_made_again(device, dtype, slices, case, monkeypatch):
    """So many rows that they are not kept: in one slice of the vocabulary and in several."""
    args = problem(device, dtype)
    kept = result(case, *args)
    forward = linear_logprob._forward
    monkeypatch.setattr(linear_logprob, "_forward", lambda *a, **_: (forward(*a), None)[1])
    monkeypatch.setattr(linear_logprob, "_slice_cols", lambda head, numbers: slices)
    again = result(case, *args)
    same(again[:-3], kept[:-3])
    about(again[-3:], kept[-3:], 4, dtype)


def plain_torch(case, model, target, reference):
    """The composition that people write, in the tensors' own dtype up to the logits."""
    both = [t.detach() for t in reference]
    tokens = [
        torch.where(
            target != -100,
            torch.nn.functional.linear(x, w, b).float().log_softmax(-1)
            .gather(-1, target.clamp(min=0)[..., None])[..., 0], 0,
        ) for x, w, b in (model, both)
    ]  # fmt: skip
    loss = case.loss(tokens[0], target, tokens[1])
    return [loss, *torch.autograd.grad(loss, model)]


@pytest.mark.parametrize("name", ["cpo", "simpo", "orpo", "dpo sigmoid", "kto"])
def test_errors_in_bfloat16_are_not_above_plain_torchs(name):
    """Over some problems, root mean square, against float64."""
    case, ours, theirs = CASES[name], torch.zeros(4), torch.zeros(4)
    for _ in range(12):
        model, target, reference = problem("cpu", torch.bfloat16)
        right = exact(case, model, target, reference, torch.bfloat16)
        wanted = [right.loss, *right.gradients]
        loss, _ = run(case, model, target, reference)
        for errors, found in (
            (ours, [loss, *torch.autograd.grad(loss, model)]),
            (theirs, plain_torch(case, model, target, reference)),
        ):
            errors += torch.tensor([
                ((f.detach().double() - w).norm() / w.norm()).square() for f, w in zip(found, wanted)
            ])  # fmt: skip
    assert (ours.sqrt() <= 1.05 * theirs.sqrt()).all(), (ours.sqrt(), theirs.sqrt())


def test_means_of_logits_in_pieces(device):
    """So large a head that its columns are summed in several pieces."""
    x = torch.randn(3, 1500, 300, device=device).bfloat16()
    weight, bias = torch.randn(2000, 300, device=device).bfloat16(), torch.randn(2000, device=device).bfloat16()
    wide = [t.cpu().double() for t in (x, weight, bias)]
    sums = _token_loss.logit_sums(x, weight, bias)
    terms = wide[0].abs().sum(1) @ wide[1].abs().sum(0) + 1500 * wide[2].abs().sum()
    right = torch.nn.functional.linear(*wide).sum((1, 2))
    assert ((sums.cpu() - right).abs() <= 16 * unit(torch.float32) * terms).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_a_distance_of_any_dtype(device, dtype):
    """Of the reference that KTO is given, as tensors of these or a number."""
    args, case = problem(device, torch.float32), CASES["kto"]
    losses = [run(case, *args, kl=kl)[0] for kl in (torch.ones(1, dtype=dtype, device=device), 1, 1.0)]
    assert losses[0].dtype is torch.float32 and torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_large_margins_stay_finite(device):
    """e^(-d) alone is infinite at d = -100, and 1 - e^c is 0 at c = -3e-9."""
    chosen = torch.tensor([-400.0, -3e-9, -0.6, 0.0], device=device, requires_grad=True)
    rejected = torch.tensor([-1e-4, -2.0, -40.0, -5.0], device=device, requires_grad=True)
    target = torch.zeros(8, 1, dtype=torch.int64, device=device)
    loss, *_ = LigerFusedLinearDPOFunction.preference_loss_fn(chosen, rejected, target, loss_type="discopop")
    found = torch.autograd.grad(loss, (chosen, rejected))
    assert loss.isfinite() and all(g.isfinite().all() for g in found)
    loss, *_, odds = LigerFusedLinearORPOFunction.preference_loss_fn(chosen, rejected, target)
    found = torch.autograd.grad(loss, (chosen, rejected))
    assert all(g.isfinite().all() for g in found)
    c, r = (t.detach().cpu().double()[:3] for t in (chosen, rejected))
    wanted = (c - r - torch.log(-torch.expm1(c)) + torch.log(-torch.expm1(r))).sum()
    last = -rejected[3].item() - torch.log(torch.tensor(torch.finfo(torch.float32).tiny)) - 0.0067611
    assert odds.item() == pytest.approx((wanted.item() + last.item()) / 4, rel=1e-6)


# ---- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made_again", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_labels_for_nll(device, dtype, made_again, monkeypatch):
    """Prompts too, an answer labelled otherwise, and an answer's token that nll does not count."""
    if made_again:
        monkeypatch.setattr(_token_loss, "is_one_pass", lambda *tensors: False)
    model, target, _ = problem(device, dtype)
    texts = torch.where(target == -100, torch.randint_like(target, VOCAB), target)
    texts[0, 3], texts[1, 2:4], texts[2, :2] = (target[0, 3] + 1) % VOCAB, -100, -100
    loss, aux = LigerFusedLinearORPOFunction.apply(*model[:2], target, model[2], -100, BETA, True, texts)
    x, w, b = twins(*model)
    tokens, logits = token_log_probs(x, w, b, target.cpu())
    longer, _ = token_log_probs(x, w, b, texts.cpu())
    nll = -longer[:PAIRS].sum() / (texts[:PAIRS] != -100).sum().cpu()
    c, r = of_sequences(tokens, target.cpu(), True).split(PAIRS)
    right = nll - BETA * log_sigmoid(odds_ratio(c, r)).mean()
    errors = token_errors(logits, tokens, torch.zeros_like(target).cpu(), dtype)
    assert abs(loss.item() - right.item()) <= 2 * errors.max()
    assert abs(aux[4].item() - nll.item()) <= errors.max()
    found = torch.autograd.grad(loss, model)
    for ours, wanted in zip(found, torch.autograd.grad(right, (x, w, b))):
        assert_close(ours.flatten(), wanted.flatten(), dtype, 2 * (8 + 4), VOCAB)


def test_labels_for_nll_that_agree_need_no_row_twice():
    target = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    texts = torch.tensor([[5, 1, 2], [6, 3, 0]])
    from liger_kernel.chunked_loss.fused_linear_preference import _labels_for_both

    labels, second = _labels_for_both("", target, texts, -100)
    assert (second == -100).all() and labels.tolist() == [[5, 1, 2], [-100, 3, -100]]


@pytest.mark.parametrize("name", SOME)
def test_another_ignored_label_and_int32(device, name):
    model, target, reference = problem(device, torch.float32)
    right = result(CASES[name], model, target, reference)
    other = torch.where(target == -100, 7, torch.where(target == 7, -100, target)).int()
    swapped = [t.detach().clone().requires_grad_() for t in model]
    found = result(CASES[name], swapped, torch.where(target == -100, -1, target).int(), reference, ignore_index=-1)
    same(found, right)
    assert other.dtype is torch.int32


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("dpo ") or n in ("dpo sigmoid", "dpo with nll")])
def test_sequences_without_a_token_that_counts(device, name):
    """Their log-probability is 0, averaged or not, and nothing is NaN."""
    case = CASES[name]
    model, target, reference = problem(device, torch.float32)
    target[1] = -100
    loss, aux = run(case, model, target, reference)
    found = torch.autograd.grad(loss, model)
    assert all(t.isfinite().all() for t in (*flat(loss, aux), *found))
    assert not found[0][1].any()
    if not isinstance(case, UnpairedCase):
        assert aux[0][1] == 0
    target[:] = -100
    loss, aux = run(case, model, target, reference)
    assert all(t.isfinite().all() for t in flat(loss, aux))
    assert all(not g.any() for g in torch.autograd.grad(loss, model))


def test_a_pair_without_an_answer_contributes_nothing_to_orpo(device):
    model, target, _ = problem(device, torch.float32)
    case = paired(*OF_ORPO, None, compute_nll_loss=False)
    target[1] = -100
    loss, aux = run(case, model, target, None)
    kept = [0, 2, 3, 5]
    fewer = [model[0].detach()[kept].requires_grad_(), *model[1:]]
    right, others = run(case, fewer, target[kept], None)
    (dx,), (right_dx,) = torch.autograd.grad(loss, model[:1]), torch.autograd.grad(right, fewer[:1])
    about([3 / 2 * t for t in (loss, *aux[-2:], dx[kept])], [right, *others[-2:], right_dx])
    assert not dx[4].any()


@pytest.mark.parametrize("shape", [(0, TOKENS), (2 * PAIRS, 0)])
def test_nothing_at_all(device, shape, case):
    model, _, reference = problem(device, torch.float32)
    target = torch.zeros(shape, dtype=torch.int64, device=device)
    x = torch.zeros(*shape, HIDDEN, device=device, requires_grad=True)
    refs = [torch.zeros(*shape, HIDDEN - 5, device=device), *reference[1:]]
    options = {"preference_labels": DESIRABLE[: shape[0]].to(device)} if isinstance(case, UnpairedCase) else {}
    loss, aux = run(case, [x, *model[1:]], target, refs, **options)
    assert all(t.isfinite().all() for t in flat(loss, aux))
    assert all(not g.any() for g in torch.autograd.grad(loss, [x, *model[1:]]))


@pytest.mark.parametrize("one_pass", [True, False])
def test_labels_out_of_range(device, one_pass, case, monkeypatch):
    model, target, reference = problem(device, torch.float32)
    target[0, -1] = VOCAB
    if one_pass is False:
        monkeypatch.setattr(_token_loss, "is_one_pass", lambda *tensors: False)
    monkeypatch.setenv("LIGER_DEBUG", "1")
    with pytest.raises(ValueError, match="61"):
        run(case, model, target, reference)


# ---- the calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_module_is_the_function(device, name):
    """Every option by name there, by position here; the functional form is `apply`."""
    case = CASES[name]
    model, target, reference = problem(device, torch.float32)
    made = inspect.signature(case.module.__init__).parameters
    module = case.module(**{k: v for k, v in case.options.items() if k in made})
    x, weight, bias = model
    refs = reference if case.has_reference else (None,) * 3
    if isinstance(case, UnpairedCase):
        module.use_ref_model = case.has_reference
        labels, kl = (given(case, *problem(device, torch.float32))[k] for k in ("preference_labels", "kl"))
        loss, aux = module(x, weight, target, bias, labels, *refs, kl)
    elif case.module is chunked_loss.LigerFusedLinearDPOLoss:
        loss, aux = module(weight, x, target, bias, *refs)
    else:
        loss, aux = module(weight, x, target, bias)
    short = case.function.__name__.removeprefix("LigerFusedLinear").removesuffix("Function").lower()
    call = getattr(functional, f"liger_fused_linear_{short}")
    right, others = call(*case.positional(**given(case, model, target, reference)))
    same(flat(loss, aux), flat(right, others))
    same(torch.autograd.grad(loss, model), torch.autograd.grad(right, model))


def test_arguments_by_name(device, case):
    model, target, reference = problem(device, torch.float32)
    right = result(case, model, target, reference)
    loss, aux = case.function.apply(**given(case, model, target, reference) | {
        name: value for name, value in case.options.items() if not isinstance(value, torch.Tensor)
    })  # fmt: skip
    same((*flat(loss, aux), *torch.autograd.grad(loss, model)), right)


def test_defaults_that_differ():
    simpo, kto = OF_SIMPO, CASES["kto"]
    assert inspect.signature(simpo[0].forward).parameters["compute_nll_loss"].default is False
    assert simpo[1]().compute_nll_loss is True
    assert inspect.signature(kto.function.forward).parameters["use_ref_model"].default is True
    assert kto.module().use_ref_model is False


def test_a_reference_that_is_known(device):
    """Its log-probabilities in the place of its hidden states, which they win over."""
    model, target, reference = problem(device, torch.float32)
    with torch.no_grad():
        own = run(CASES["dpo without reference"], reference, target, None)[1]
        sums = torch.cat(own[:2])
    case = CASES["dpo sigmoid"]
    right, others = run(case, model, target, reference)
    module = chunked_loss.LigerFusedLinearDPOLoss(beta=BETA)
    x, weight, bias = model
    nan = [torch.full_like(t, torch.nan) for t in reference]
    for refs in ((), nan):
        loss, aux = module(weight, x, target, bias, *refs, ref_chosen_logps=own[0], ref_rejected_logps=own[1])
        same(flat(loss, aux), flat(right, others))
        same(torch.autograd.grad(loss, model, retain_graph=True), torch.autograd.grad(right, model, retain_graph=True))
    right, others = run(CASES["kto"], model, target, reference)
    labels, kl = DESIRABLE.to(device), torch.tensor(KL, device=device)
    loss, aux = chunked_loss.LigerFusedLinearKTOLoss(beta=BETA, use_ref_model=True)(
        x, weight, target, bias, labels, kl=kl, ref_logps=sums
    )
    same(flat(loss, aux), flat(right, others))
    with pytest.raises(ValueError, match="ref_rejected_logps has shape"):
        module(weight, x, target, bias, ref_chosen_logps=own[0], ref_rejected_logps=sums)
    with pytest.raises(ValueError, match="one is None"):
        module(weight, x, target, bias, ref_chosen_logps=own[0])
    with pytest.raises(ValueError, match="ref_logps has shape"):
        chunked_loss.LigerFusedLinearKTOLoss(use_ref_model=True)(x, weight, target, bias, labels, ref_logps=own[0])


def test_what_was_made_in_inference_mode(device, case):
    model, target, reference = problem(device, torch.float32)
    right = result(case, model, target, reference)
    with torch.inference_mode():
        target, reference = target.clone(), [t.clone() for t in reference]
        options = {k: v.clone() for k, v in case.options.items() if isinstance(v, torch.Tensor)}
    same(result(case, model, target, reference, **options), right)


def test_what_changes_nothing(device, case):
    args = problem(device, torch.float32)
    right = result(case, *args)
    for options in ({"chunk_size": 2}, {"chunk_size": 1000}, {"compiled": False}):
        same(result(case, *args, **options), right)


def test_hidden_states_without_the_last_token(device, case):
    """A view of a longer sequence, as trainers give it."""
    (x, weight, bias), target, reference = problem(device, torch.float32)
    right = result(case, [x, weight, bias], target, reference)
    longer = torch.cat((x.detach(), torch.full_like(x[:, :1], torch.nan)), 1).requires_grad_()
    loss, aux = run(case, [longer[:, :-1], weight, bias], target, reference)
    found = torch.autograd.grad(loss, (longer, weight, bias))
    same((*flat(loss, aux), found[0][:, :-1], *found[1:]), right)
    assert not found[0][:, -1].any()


# ---- autograd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
def test_what_is_trained(device, trained, case):
    model, target, reference = problem(device, torch.float32)
    right = result(case, model, target, reference)
    tensors = [t.detach().requires_grad_(i in trained) for i, t in enumerate(model)]
    refs = [t.clone().requires_grad_() for t in reference]
    loss, aux = run(case, tensors, target, refs)
    assert loss.requires_grad is bool(trained) and not any(a.requires_grad for a in aux)
    same(flat(loss, aux), right[:-3])
    if trained:
        loss.backward()
    for i, (tensor, wanted) in enumerate(zip(tensors, right[-3:])):
        assert tensor.grad is None if i not in trained else torch.equal(tensor.grad, wanted)
    assert all(t.grad is None for t in refs)


def test_without_gradients(device, case):
    args = problem(device, torch.float32)
    right = result(case, *args)[:-3]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss, aux = run(case, *args)
        assert not loss.requires_grad
        same(flat(loss, aux), right)


def test_without_bias(device, case):
    (x, weight, bias), target, reference = problem(device, torch.float32)
    right = result(case, [x, weight, torch.zeros_like(bias).requires_grad_()], target, reference)
    loss, aux = run(case, [x, weight, None], target, reference)
    same((*flat(loss, aux), *torch.autograd.grad(loss, (x, weight))), right[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward(device, dtype, case):
    model, target, reference = problem(device, dtype)
    loss, _ = run(case, model, target, reference)
    first, again = (torch.autograd.grad(3 * loss, model, retain_graph=True) for _ in range(2))
    kept = [g.clone() for g in first]
    last = torch.autograd.grad(3 * loss, model)
    same(first, again)
    same(first, last)
    same(first, kept)


def test_gradients_that_float32_hardly_holds(device):
    """There is no power of two in float32 that would bring them to 1."""
    args = problem(device, torch.float16)
    loss, _ = run(CASES["cpo alone"], *args, beta=1e-39)
    for gradient in torch.autograd.grad(loss, args[0]):
        assert not gradient.any()


@pytest.mark.parametrize("upstream", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_that_do_not_count_are_zero_whatever_comes_from_above(device, dtype, upstream, case):
    model, target, reference = problem(device, dtype)
    above = torch.tensor(upstream, device=device)
    dx, *_ = torch.autograd.grad(run(case, model, target, reference)[0], model, above)
    assert not dx[target == -100].any() and not dx[target != -100].isfinite().any()
    target.fill_(-100)
    for gradient in torch.autograd.grad(run(case, model, target, reference)[0], model, above):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_upstreams_at_once(device, dtype, case):
    model, target, reference = problem(device, dtype)
    loss, _ = run(case, model, target, reference)
    upstreams = torch.tensor([1.0, -2.0], device=device)
    each = [torch.autograd.grad(loss, model, upstream, retain_graph=True) for upstream in upstreams]
    many = torch.autograd.grad(loss, model, upstreams, is_grads_batched=True, retain_graph=True)
    same(many, [torch.stack(pair) for pair in zip(*each)])
    with pytest.raises(RuntimeError, match="second derivatives are not provided"):
        torch.autograd.grad(loss, model, create_graph=True)


def test_autocast(device, case):
    """fp32 master weights: the products in bf16, gradients in fp32; backward outside of the block."""
    model, target, reference = problem(device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss, aux = run(case, model, target, reference)
    low = [t.detach().bfloat16().requires_grad_() for t in model]
    right, others = run(case, low, target, [t.bfloat16() for t in reference])
    assert torch.equal(loss, right)
    found = torch.autograd.grad(loss, model)
    assert all(g.dtype is torch.float32 for g in found)
    about(found, torch.autograd.grad(right, low), 1, torch.bfloat16)


@pytest.mark.parametrize(("beta", "upstream"), [(1e-6, 2.0**-3), (1e-6, 2.0**18), (1.0, 1.0), (1e5, 2.0**-12)])
@pytest.mark.parametrize("autocast", [False, True])
def test_float16_is_rounded_once_what_comes_from_above_is_known(device, beta, upstream, autocast):
    """A gradient scaler keeps small gradients in float16's range, which those formed in forward must not have left before;
    nor may large ones that it takes back."""
    hinge = lambda c, r: torch.clamp(1 - beta * (c - r), min=0)  # noqa: E731
    case = paired(*OF_DPO, hinge, loss_type="hinge", compute_nll_loss=False, use_ref_model=False, beta=beta)
    model, target, reference = problem(device, torch.float16)
    right = exact(case, model, target, reference, torch.float16)
    if autocast:
        model = [t.detach().float().requires_grad_() for t in model]
    with torch.autocast(device.type, dtype=torch.float16, enabled=autocast):
        loss, _ = run(case, model, target, reference)
    for _ in range(2):
        found = torch.autograd.grad(loss, model, torch.tensor(upstream, device=device), retain_graph=True)
        for ours, wanted in zip(found, right.gradients):
            roundings = 8 + 4 + right.factor_error / unit(torch.float16)
            kept = torch.float32 if autocast else torch.float16
            assert ours.dtype is kept
            wanted = upstream * wanted.flatten()
            step = torch.finfo(kept).smallest_normal * torch.finfo(kept).eps  # what float16 itself cannot hold
            excess = (ours.cpu().double().flatten() - wanted).abs() - step
            assert excess.max() <= roundings * unit(torch.float16) * wanted.abs().max()


@pytest.mark.parametrize("context", ["checkpoint", "on_cpu"])
def test_inside_of_others_hooks(device, context, case):
    """Activation checkpointing and offloading see what is saved for backward, and not the formula's own graph."""
    model, target, reference = problem(device, torch.float32)
    right = result(case, model, target, reference)
    packed = []

    def call(x):
        return run(case, [x, *model[1:]], target, reference)

    if context == "checkpoint":
        loss, aux = torch.utils.checkpoint.checkpoint(call, model[0], use_reentrant=False)
    else:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
            loss, aux = call(model[0])
        assert len(packed) == 4  # the gradients and the labels
    same((*flat(loss, aux), *torch.autograd.grad(loss, model)), right)


# ---- torch looks at the call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_composed_form(device, dtype, case, monkeypatch):
    args = problem(device, dtype)
    monkeypatch.setattr(_token_loss, "is_one_pass", lambda *tensors: False)
    check(case, *args, dtype, *run(case, *args))


@pytest.mark.parametrize("name", ["cpo", "orpo", "dpo discopop", "kto"])
def test_compiled(device, name):
    torch._dynamo.reset()
    case = CASES[name]
    model, target, reference = problem(device, torch.float32)
    compiled = torch.compile(lambda *m: run(case, m, target, reference), fullgraph=True, backend="aot_eager")
    loss, aux = compiled(*model)
    check(case, model, target, reference, torch.float32, loss, aux)


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_once_for_all_lengths(device, case):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda target, reference, *m: run(case, m, target, reference), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for tokens in (TOKENS, 9, 12):
        model, target, reference = problem(device, torch.float32, tokens=tokens)
        check(case, model, target, reference, torch.float32, *compiled(target, reference, *model))


@pytest.mark.parametrize("name", ["dpo with nll", "kto"])
def test_compiled_modules_by_inductor(device, name):
    torch._dynamo.reset()
    case = CASES[name]
    model, target, reference = problem(device, torch.float32)
    (x, weight, bias), options = model, given(case, model, target, reference)
    if name == "kto":
        module = case.module(beta=BETA, use_ref_model=True)
        rest = (x, weight, target, bias, options["preference_labels"], *reference, options["kl"])
    else:
        module = case.module(beta=BETA, compute_nll_loss=True, alpha=0.7, average_log_prob=True)
        rest = (weight, x, target, bias, *reference)
    loss, aux = torch.compile(module, fullgraph=True)(*rest)
    check(case, model, target, reference, torch.float32, loss, aux)


def test_transformed(device, case):
    """torch.func, forward mode and tracing differentiate the formula."""
    model, target, reference = problem(device, torch.float32)
    right = result(case, model, target, reference)
    tensors = [t.detach() for t in model]
    loss_of = lambda *m: run(case, list(m), target, reference)[0]  # noqa: E731
    about(torch.func.grad(loss_of, argnums=(0, 1, 2))(*tensors), right[-3:], 32)
    tangents = [torch.randn_like(t) for t in tensors]
    _, moved = torch.func.jvp(loss_of, tuple(tensors), tuple(tangents))
    wanted = sum((g * t).sum() for g, t in zip(right[-3:], tangents))
    assert moved.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-4)
    many = torch.stack([tensors[0], 0.5 * tensors[0]])
    both = torch.func.vmap(lambda x: loss_of(x, *tensors[1:]))(many)
    about(both, torch.stack([loss_of(x, *tensors[1:]) for x in many]), 32)


def test_tracing_and_counting(case):
    """torch.jit.trace has the formula; a counter sees the products, a profiler the loss by its name."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    model, target, reference = problem("cpu", torch.float32)
    loss, aux = run(case, model, target, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(
            lambda *m: run(case, list(m), target, reference)[0], [t.detach() for t in model], check_trace=False
        )
    check(case, model, target, reference, torch.float32, traced(*model), aux)
    with FlopCounterMode(display=False) as counter:
        run(case, model, target, reference)[0].backward()
    products = 2 * target.numel() * VOCAB * (4 * HIDDEN + (HIDDEN - 5 if case.has_reference else 0))
    assert counter.get_total_flops() == products
    for grads in (True, False):
        with torch.set_grad_enabled(grads), profile(activities=[ProfilerActivity.CPU]) as seen:
            run(case, model, target, reference)
        assert f"liger::{case.function.__name__}" in {event.name for event in seen.events()}


@pytest.mark.parametrize("wide", [0, 1])
def test_mixed_dtypes(device, wide, case):
    """16-bit hidden states on a float32 head, and the reverse: products in float32, gradients in each tensor's dtype."""
    model, target, reference = problem(device, torch.bfloat16)
    right = result(case, [t.detach().float().requires_grad_() for t in model], target, reference)
    mixed = [t.detach().float().requires_grad_() if i == wide else t for i, t in enumerate(model)]
    found = result(case, mixed, target, reference)
    same(found[:-3], right[:-3])
    for i, (ours, wanted) in enumerate(zip(found[-3:], right[-3:])):
        assert ours.dtype is mixed[i].dtype and torch.equal(ours, wanted.to(ours.dtype))


def test_without_memory(case):
    model, target, reference = problem("cpu", torch.float32)
    meta = [t.detach().to("meta").requires_grad_() for t in model]
    options = {k: v.to("meta") for k, v in case.options.items() if isinstance(v, torch.Tensor)}
    loss, aux = run(case, meta, target.to("meta"), [t.to("meta") for t in reference], **options)
    right, others = run(case, model, target, reference)
    assert [t.shape for t in flat(loss, aux)] == [t.shape for t in flat(right, others)]
    loss.backward()
    assert all(t.grad.shape == t.shape for t in meta)


def test_disabled_kernels(case, monkeypatch):
    args = problem("cpu", torch.float32)
    monkeypatch.setattr(_token_loss.LigerLinearLogProbFunction, "_plain_torch", True)
    monkeypatch.setattr(linear_logprob, "_forward", None)
    check(case, *args, torch.float32, *run(case, *args))


# ---- losses of others --------------------------------------------------------------------------------------------------


class Margin(LigerFusedLinearPreferenceBase):
    """A hinge on pairs, as users write one: the public form is theirs."""

    @staticmethod
    def preference_loss_fn(chosen_logps, rejected_logps, full_target, ref_chosen_logps=None, ref_rejected_logps=None,
                           beta=0.1, margin=1.0):  # fmt: skip
        if ref_chosen_logps is not None:
            chosen_logps, rejected_logps = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
        losses = torch.relu(margin - beta * (chosen_logps - rejected_logps))
        return losses.sum() / (full_target.shape[0] // 2), losses, losses.max()

    @classmethod
    def forward(cls, ctx, _input, weight, target, bias=None, beta=0.1, margin=1.0, reference=(None, None, None)):
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, beta=beta, alpha=0.5,
            average_log_prob=False, use_ref_model=reference[0] is not None, ref_input=reference[0],
            ref_weight=reference[1], ref_bias=reference[2], margin=margin, chunk_size=4,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, *grad_output):
        grads = LigerFusedLinearPreferenceBase.backward(ctx, grad_output)[:4]
        return *grads, None, None, None


class Plain(LigerFusedLinearUnpairedPreferenceBase):
    @staticmethod
    def preference_loss_fn(log_prob_chunk, preference_labels_chunk, full_target, ref_log_prob_chunk=None, scale=1.0):
        signs = torch.where(preference_labels_chunk, -1.0, 1.0)
        return scale * (signs * (log_prob_chunk - ref_log_prob_chunk).square()).sum() / full_target.shape[0]

    @classmethod
    def forward(cls, ctx, _input, weight, target, preference_labels, bias, ref_input, ref_weight, ref_bias, scale):
        return super().forward(
            cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, preference_labels=preference_labels, bias=bias,
            use_ref_model=True, ref_input=ref_input, ref_weight=ref_weight, ref_bias=ref_bias, scale=scale,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, *grad_output):
        return *LigerFusedLinearUnpairedPreferenceBase.backward(ctx, *grad_output)[:5], None, None, None, None


def of_others(kind, model, target, reference):
    """Ours and float64: loss, aux behind the base's own, gradients."""
    wide = twins(*model)
    tokens, _ = token_log_probs(*wide, target.cpu())
    ref_tokens, _ = token_log_probs(*twins(*reference), target.cpu())
    ratios = (tokens - ref_tokens).sum(-1)
    if kind == "paired":
        call = lambda *m: Margin.apply(*m[:2], target, m[2], 0.4, 2.0, tuple(reference))  # noqa: E731
        losses = torch.relu(2.0 - 0.4 * (ratios[:PAIRS] - ratios[PAIRS:]))
        nll = -tokens[:PAIRS].sum() / (target[:PAIRS] != -100).sum().cpu()
        right, others = losses.mean() + 0.5 * nll, (losses, losses.max())
    else:
        labels = DESIRABLE.to(target.device)
        call = lambda *m: Plain.apply(*m[:2], target, labels, m[2], *reference, 0.3)  # noqa: E731
        right, others = 0.3 * (torch.where(DESIRABLE, -1, 1) * ratios.square()).mean(), ()
    return call, (right, *others), torch.autograd.grad(right, wide)


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_losses_of_others(device, kind, compiles):
    torch._dynamo.reset()
    model, target, reference = problem(device, torch.float32)
    call, right, wanted = of_others(kind, model, target, reference)
    if compiles:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    loss, aux = call(*model)
    own = 5 if kind == "paired" else 4
    about((loss, *aux[own:]), right, 64)
    about(torch.autograd.grad(loss, model, retain_graph=True), wanted, 64)
    about(torch.autograd.grad(2 * loss, model), [2 * w for w in wanted], 64)


def test_a_subclass_without_a_formula(device):
    (x, weight, bias), target, _ = problem(device, torch.float32)

    class Nothing(LigerFusedLinearPreferenceBase):
        @classmethod
        def forward(cls, ctx, _input, weight, target):
            return super().forward(cls=cls, ctx=ctx, _input=_input, weight=weight, target=target)

    with pytest.raises(NotImplementedError, match="preference_loss_fn"):
        Nothing.apply(x, weight, target)


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(loss_type="ipo"), "Unsupported loss_type"),
        (dict(loss_type="sigmoids"), "Unsupported loss_type"),
        (dict(loss_type="exo_pair"), "label_smoothing must be > 0 for loss_type='exo_pair'"),
        (dict(loss_type="exo_pair", label_smoothing=1.0), "less than 1"),
        (
            dict(loss_type="robust", label_smoothing=0.5),
            r"label_smoothing must lie in \[0.0, 0.5\) for loss_type='robust'",
        ),
        (
            dict(loss_type="robust", label_smoothing=-0.1),
            r"label_smoothing must lie in \[0.0, 0.5\) for loss_type='robust'",
        ),
    ],
)
def test_options_of_dpo(device, options, words):
    with pytest.raises(ValueError, match=words):
        chunked_loss.LigerFusedLinearDPOLoss(**options)
    kind = NotImplementedError if options["loss_type"] == "ipo" else ValueError
    args = problem(device, torch.float32)
    with pytest.raises(kind, match="ipo" if kind is NotImplementedError else words):
        run(CASES["dpo sigmoid"], *args, **options)


def changed(name, change):
    return lambda given: given | {name: change(given[name])}


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("dpo sigmoid", changed("ref_input", lambda t: None), ValueError, "ref_input"),
        ("dpo sigmoid", changed("ref_weight", lambda t: None), ValueError, "ref_weight is None"),
        ("dpo sigmoid", changed("ref_bias", lambda t: t[1:]), ValueError, r"ref_bias has shape \(60,\), but must have \(61,\)"),
        ("dpo sigmoid", changed("ref_input", lambda t: t[1:]), ValueError, "ref_input has shape"),
        ("cpo", changed("_input", lambda t: t[:, 1:]), ValueError, "_input has shape"),
        ("cpo", changed("_input", lambda t: t[0]), ValueError, "_input has 2 dimensions, but must have 3"),
        ("cpo", changed("weight", lambda t: t[0]), ValueError, "weight has 1 dimensions"),
        ("cpo", changed("weight", lambda t: t.double()), ValueError, "weight is torch.float64"),
        ("cpo", changed("target", lambda t: t.float()), ValueError, "target is torch.float32"),
        ("cpo", changed("bias", lambda t: t[1:]), ValueError, "bias has shape"),
        ("cpo", lambda g: g | {k: g[k][:5] for k in ("_input", "target")}, ValueError, "target has 5 rows"),
        ("cpo", changed("_input", lambda t: None), TypeError, "_input must be a torch.Tensor"),
        ("cpo", changed("target", lambda t: None), TypeError, "target must be a torch.Tensor"),
        ("orpo", lambda g: g | {"nll_target": g["target"][:, 1:]}, ValueError, "nll_target has shape"),
        ("orpo", lambda g: g | {"nll_target": g["target"][:2]}, ValueError, "nll_target has 2 rows"),
        ("kto", changed("preference_labels", lambda t: None), AssertionError, "preference_labels"),
        ("kto", changed("preference_labels", lambda t: t[1:]), ValueError, "preference_labels has shape"),
        ("kto", changed("kl", lambda t: t.expand(6)), ValueError, r"kl has shape \(6,\), but must have \(\) or \(1,\)"),
        ("kto", changed("ref_input", lambda t: None), ValueError, "ref_input"),
        ("kto", changed("preference_labels", lambda t: t.tolist()), TypeError, "preference_labels must be"),
        ("kto", changed("preference_labels", lambda t: t.to("meta")), ValueError, "preference_labels is on meta"),
        ("kto", changed("kl", lambda t: "0"), TypeError, "kl must be a number"),
        ("kto", changed("kl", lambda t: t.to("meta")), ValueError, "kl is on meta"),
        ("kto", lambda g: g | {"ref_input": (torch.ones(6, device="meta"),)}, ValueError, "ref_logps is on meta"),
        ("orpo", lambda g: g | {"nll_target": g["target"].float()}, ValueError, "nll_target is torch.float32"),
        ("orpo", lambda g: g | {"nll_target": g["target"].tolist()}, TypeError, "nll_target must be"),
        ("orpo", lambda g: g | {"target": g["target"].int(), "nll_target": torch.full_like(g["target"], 2**32)},
         ValueError, rf"target\[\d+\] is {2**32}"),
        ("dpo sigmoid", lambda g: g | {n: g[n][:1] for n in ("ref_weight", "ref_bias")}, ValueError,
         r"^LigerFusedLinearDPOFunction: target\[\d+\] is \d+, .* in \[0, 1\) or ignore_index"),
        ("cpo", changed("_input", lambda t: t.to_sparse()), ValueError, "_input is torch.sparse_coo"),
    ],
)  # fmt: skip
def test_arguments(device, name, change, error, words, one_pass, monkeypatch):
    monkeypatch.setenv("LIGER_DEBUG", "1")
    if not one_pass:
        monkeypatch.setattr(_token_loss, "is_one_pass", lambda *tensors: False)
    case = CASES[name]
    arguments = change(given(case, *problem(device, torch.float32)))
    with pytest.raises(error, match=words):
        case.function.apply(*case.positional(**arguments))
