"""Losses of a policy on a head against the float64 formulas of policy_formulas.py, and what they are called with."""

from __future__ import annotations

import inspect
import math
import pathlib
import warnings

import own_process
import pytest
import torch
from policy_formulas import (
    BATCH,
    DEFAULTS,
    HIGH,
    ITEMS,
    KINDS,
    LOW,
    TOKENS,
    VARIANTS,
    Exact,
    cases,
    log_probs64,
    make_case,
    near,
    problem,
)
from reference import assert_close, unit
from token_losses import HIDDEN, LOGITS, VOCAB, arguments, compiled

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import functional, grpo_loss
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction, LigerFusedLinearGRPOLoss
from liger_kernel.ops import _policy_loss

DTYPES = (torch.float32, torch.bfloat16)


def apply(given):
    return LigerFusedLinearGRPOFunction.apply(*arguments(LigerFusedLinearGRPOFunction, given))


def spied(monkeypatch):
    """The tensors that the formula is given in a call: it is compared on the same log-probabilities, float32."""
    seen = {}
    original = LigerFusedLinearGRPOFunction.ppo_loss_fn

    def spy(**given):
        seen.update(p=given["per_token_logps"].detach().cpu(), reference=given["ref_per_token_logps"])
        return original(**given)

    monkeypatch.setattr(LigerFusedLinearGRPOFunction, "ppo_loss_fn", staticmethod(spy))
    return seen


def check_against_formula(given, loss, metrics, seen):
    """Three steps, each to its own rounding: log-probabilities to that of logits, the formula on them to float32's, and the
    gradients of the formula's derivatives to that of logits again."""
    full = DEFAULTS | given
    x, weight, bias = given["_input"], given["weight"], given["bias"]
    dtype = x.dtype
    p64, others = log_probs64(x, weight, bias, given["selected_token_ids"], full["temperature"])
    counts = (given["attention_mask"] != 0).cpu()
    read = torch.ones_like(counts) if seen["p"][~counts].any() else counts
    assert_close(seen["p"][read].float(), p64[read], dtype, LOGITS / min(full["temperature"], 1), VOCAB)
    if "ref_input" in given:
        operands = given["ref_input"], given["ref_weight"], given["ref_bias"], given["selected_token_ids"]
        wanted, _ = log_probs64(*operands, full["temperature"])
        allowed = LOGITS / min(full["temperature"], 1)
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
        assert_close(ours.grad.flatten(), twin.grad.flatten(), dtype, 2 * LOGITS, VOCAB)


# ---- values and gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "level", "name"), cases(VARIANTS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_formula(device, dtype, kind, level, name, monkeypatch):
    given = make_case(device, dtype, kind, level, VARIANTS[name])
    seen = spied(monkeypatch)
    loss, metrics = apply(given)
    loss.backward()
    check_against_formula(given, loss, metrics, seen)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", _policy_loss.LOSS_TYPES)
def test_masks_of_any_dtype(device, kind, mask_dtype):
    """The same bits; and another number than 1 says no more than 1."""
    given = make_case(device, torch.float32, kind, "token", VARIANTS["kl"])
    loss, metrics = apply(given)
    mask = given["attention_mask"].to(mask_dtype)
    for factor in (1,) if mask_dtype is torch.bool else (1, 2):
        other, others = apply(given | dict(attention_mask=mask * factor))
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
        loss, metrics = apply(given)
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
        loss, metrics = apply(given | extra)
        results.append((loss, *metrics, *torch.autograd.grad(loss, tensors)))
    for one, other in zip(*results):  # a product of fewer rows may add up in another order
        assert_close(other.flatten(), one.flatten().double(), torch.float32, 2 * LOGITS, VOCAB)
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
            apply(given)
        return
    loss, _ = apply(given)
    assert loss.isnan()


def test_as_many_gradients_as_arguments(device):
    given = arguments(LigerFusedLinearGRPOFunction, make_case(device, torch.float32, "grpo", "token", VARIANTS["clip"]))
    names = list(inspect.signature(LigerFusedLinearGRPOFunction.forward).parameters)[1:]
    assert names.index("num_items_in_batch") == 30 and names[31:] == ["valid_rows"]
    loss, _ = LigerFusedLinearGRPOFunction.apply(*given[:31])
    with torch.no_grad():
        gradients = LigerFusedLinearGRPOFunction.backward(loss.grad_fn, torch.ones_like(loss), None)
    assert len(gradients) == 31 and [i for i, g in enumerate(gradients) if g is not None] == [0, 1, 5]


def test_it_waits_for_no_device(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    for kind, level in KINDS:
        given = make_case(device, torch.bfloat16, kind, level, VARIANTS["reference head"] | dict(old=True))
        args = arguments(LigerFusedLinearGRPOFunction, given | dict(num_items_in_batch=31))
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
        *arguments(
            LigerFusedLinearGRPOFunction, given | numbers | dict(bias=None, vllm_is_ratio=ratio, num_items_in_batch=40)
        )
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
        loss, _ = apply(given | dict(num_items_in_batch=items))
        results.append((loss, *torch.autograd.grad(loss, tensors)))
    for same in results[1:4]:
        assert all(map(torch.equal, results[0], same))
    for whole, half in zip(results[0], results[4]):
        assert torch.equal(whole / 2, half)


def test_two_references_are_one_too_many(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    with warnings.catch_warnings(record=True) as none:
        warnings.simplefilter("always")
        loss, _ = apply(given)
    assert not none
    both = given | dict(ref_input=torch.full_like(given["_input"], torch.nan), ref_weight=given["weight"])
    with pytest.warns(UserWarning, match="ref_per_token_logps and ref_input are both given"):
        other, _ = apply(both)
    assert torch.equal(loss, other)
    other, _ = compiled(LigerFusedLinearGRPOFunction.apply)(*arguments(LigerFusedLinearGRPOFunction, both))
    assert_close(other, loss.double(), torch.float32, 2 * LOGITS, VOCAB)
    unused = both | dict(use_ref_model=False)
    _, metrics = apply(unused)
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
    (dict(loss_type="dapo", num_items_in_batch=torch.ones(2)), ValueError, r"num_items_in_batch has shape \(2,\)"),
    (dict(vllm_is_ratio=[1.0]), TypeError, "vllm_is_ratio"),
    (
        dict(use_ref_model=True, beta=0.1, ref_input=torch.ones(BATCH, TOKENS, 3), ref_weight=torch.ones(1, 3)),
        ValueError,
        r"^LigerFusedLinearGRPOFunction: selected_token_ids\[\d+\] is \d+, .* in \[0, 1\)$",
    ),
    (dict(selected_token_ids=torch.full((BATCH, TOKENS), VOCAB)), ValueError, str(VOCAB)),
    (dict(selected_token_ids=torch.full((BATCH, TOKENS), -100)), ValueError, "-100"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_what_is_refused(change, error, words):
    given = make_case(torch.device("cpu"), torch.float32, "grpo", "token", VARIANTS["on policy"])
    with pytest.raises(error, match=words):
        apply(given | change)


def test_a_token_that_is_refused_goes_by_the_callers_word():
    given = make_case(torch.device("cpu"), torch.float32, "grpo", "token", VARIANTS["on policy"])
    vocab = given["weight"].shape[0]
    args = list(arguments(LigerFusedLinearGRPOFunction, given))
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
    apply(given | dict(sapo_temperature_neg=False))


# ---- pieces ------------------------------------------------------------------------------------------------------------


def test_k3_keeps_its_digits():
    """Close to one policy the estimate is d²/2; the difference of its terms would have no digit of it."""
    log_q = torch.tensor([-1.0, -2.0, -3.0])
    d = torch.tensor([2.0**-10, -(2.0**-9), 0.5])
    exact = torch.expm1(d.double()) - d.double()
    found = grpo_loss.k3_loss_fn(log_q + d, log_q)
    assert (found.double() / exact - 1).abs().max() < 2.0**-22 * 2**11
    assert (torch.exp(d) - d - 1)[0] != found[0]


@pytest.mark.parametrize(("level", "mask"), [("token", [[1, 1, 0]]), ("sequence", [[0, 1, 0]])])
@pytest.mark.parametrize("x", [0.5, 15.0, 25.0, 95.0, -40.0])
def test_the_corrected_kl_keeps_its_digits(x, level, mask):
    """With w = exp(p - o) and x = q - p the derivative of w·(exp(x) - x - 1) by p is -x·w. exp(95) is no float32 number, its
    product with the weight is."""
    p = torch.full((1, 3), -100.0, requires_grad=True)
    old, mask = p.detach() + min(x, 90.0), torch.tensor(mask)
    formula = _policy_loss.PolicyLoss("bnpo", level, 1.0, corrects_kl=True)
    _, kl, _ = formula.terms(p, mask, torch.zeros(1), old, p.detach() + x)
    (gradient,) = torch.autograd.grad(kl, p, mask.float())
    log_w = -min(x, 90.0)
    value, slope = math.exp(log_w + x) - math.exp(log_w) * (1 + x), -x * math.exp(log_w)
    counts = mask.bool()
    assert (kl[counts].double() / value - 1).abs().max() <= 2.0**-20  # one exponential of up to 40, and a sum near 1
    assert (gradient[counts].double() / slope - 1).abs().max() <= 2.0**-20


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
    assert_close(found, wanted[1:3], dtype, LOGITS / 0.8, VOCAB)
    found.sum().backward()
    wanted[1:3].sum().backward()
    for ours, twin in zip((x, weight, bias), others):
        assert_close(ours.grad.flatten(), twin.grad.flatten(), dtype, 2 * LOGITS / 0.8, VOCAB)


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
@pytest.mark.parametrize("compiles", [False, True])
def test_a_subclass_brings_its_formula(device, function, compiles):
    x, weight, bias, ids, mask, advantages = problem(device, torch.float32)
    p, others = log_probs64(x, weight, bias, ids)
    old = near(p, 0.3).to(device)
    loss, (mean, three) = (compiled(function.apply) if compiles else function.apply)(
        x, weight, ids, mask, advantages, bias, old
    )
    if function is Reinforce:
        assert_close(mean, p.mean(), torch.float32, 4, VOCAB)
    assert three == 3 and not mean.requires_grad
    (2 * loss).backward()
    terms = -advantages.cpu()[:, None] * p + 0.1 * (p - old.cpu().double()) ** 2
    right = (terms * mask.cpu()).sum() / mask.sum().item()
    (2 * right).backward()
    assert_close(loss, right, torch.float32, 16, VOCAB)
    for ours, twin in zip((x, weight, bias), others):
        assert_close(ours.grad.flatten(), twin.grad.flatten(), torch.float32, 2 * LOGITS, VOCAB)


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
