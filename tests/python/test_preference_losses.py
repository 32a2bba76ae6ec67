"""Preference losses on a head against the float64 formulas of preference_formulas.py, and losses that users derive."""

from __future__ import annotations

import inspect

import pytest
import torch
from preference_formulas import (
    BETA,
    CASES,
    DESIRABLE,
    DPO,
    KL,
    OF_DPO,
    OF_ORPO,
    OF_SIMPO,
    PAIRS,
    TOKENS,
    UnpairedCase,
    check,
    exact,
    given,
    log_sigmoid,
    odds_ratio,
    of_sequences,
    paired,
    problem,
    run,
    token_errors,
    token_log_probs,
)
from reference import DTYPES, assert_close, twins, unit
from token_losses import HIDDEN, LOGITS, VOCAB, about, arguments, compiled, results, same

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import _token_loss, functional
from liger_kernel.chunked_loss.dpo_loss import LOSSES, LigerFusedLinearDPOFunction
from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase
from liger_kernel.chunked_loss.fused_linear_unpaired_preference import LigerFusedLinearUnpairedPreferenceBase
from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction

SOME = ["cpo", "dpo with nll", "orpo", "kto"]


@pytest.fixture(params=SOME)
def case(request):
    return CASES[request.param]


def flat(loss, aux):
    return loss, *aux


def result(case, *args, **options):
    """(loss, aux...) and gradients, one after the other."""
    return results(case.function, given(case, *args) | options)


# ---- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, name):
    case = CASES[name]
    model, target, reference = problem(device, dtype)
    check(case, model, target, reference, dtype, *run(case, model, target, reference), upstream=1.75)


def test_every_loss_type_is_here():
    assert DPO.keys() == LOSSES.keys()


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


def test_gradients_that_float32_hardly_holds(device):
    """There is no power of two in float32 that would bring them to 1."""
    args = problem(device, torch.float16)
    loss, _ = run(CASES["cpo alone"], *args, beta=1e-39)
    for gradient in torch.autograd.grad(loss, args[0]):
        assert not gradient.any()


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
        assert_close(ours.flatten(), wanted.flatten(), dtype, 2 * LOGITS, VOCAB)


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
    right, others = call(*arguments(case.function, given(case, model, target, reference)))
    same(flat(loss, aux), flat(right, others))
    same(torch.autograd.grad(loss, model), torch.autograd.grad(right, model))


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


# ---- autograd ----------------------------------------------------------------------------------------------------------


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
            roundings = LOGITS + right.factor_error / unit(torch.float16)
            kept = torch.float32 if autocast else torch.float16
            assert ours.dtype is kept
            wanted = upstream * wanted.flatten()
            step = torch.finfo(kept).smallest_normal * torch.finfo(kept).eps  # what float16 itself cannot hold
            excess = (ours.cpu().double().flatten() - wanted).abs() - step
            assert excess.max() <= roundings * unit(torch.float16) * wanted.abs().max()


# ---- torch looks at the call -------------------------------------------------------------------------------------------


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
    model, target, reference = problem(device, torch.float32)
    call, right, wanted = of_others(kind, model, target, reference)
    if compiles:
        call = compiled(call)
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
        ("cpo", lambda g: g | {k: g[k][:5] for k in ("_input", "target")}, ValueError, "target has 5 rows"),
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
    changes = change(given(case, *problem(device, torch.float32)))
    with pytest.raises(error, match=words):
        case.function.apply(*arguments(case.function, changes))
