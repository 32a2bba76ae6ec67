"""Losses of a policy on given logits against the float64 formulas of policy_formulas.py, and what the helpers owe."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from policy_formulas import BATCH, CISPO, HIGH, KINDS, LOW, TOKENS, VARIANTS, Exact, cases, near, problem
from reference import DTYPES, assert_close
from token_losses import VOCAB

from liger_kernel.ops import GrpoLossFunction
from liger_kernel.ops import grpo_loss as module
from liger_kernel.ops.grpo_loss import fused_selective_log_softmax
from liger_kernel.transformers import grpo_loss as public
from liger_kernel.transformers.grpo_loss import triton_grpo_loss

DEFAULTS = {n: p.default for n, p in inspect.signature(triton_grpo_loss).parameters.items() if p.default is not p.empty}
ON_LOGITS = {name: v for name, v in VARIANTS.items() if v.get("reference") != "head" and "use_ref_model" not in v}


def make_case(device, dtype, kind, level, variant):
    _, _, _, ids, mask, advantages = problem(device, dtype)
    logits = (2 * torch.randn(BATCH, TOKENS + 1, VOCAB, device=device)).to(dtype).requires_grad_()
    variant = dict(variant)
    given = dict(
        logits=logits, old_logp=None, ref_logp=None, completion_ids=ids, advantages=advantages, completion_mask=mask,
        loss_type=kind, importance_sampling_level=level, eps_low=LOW, temperature=0.7,
        eps_high=CISPO if kind == "cispo" else HIGH,
    )  # fmt: skip
    p = log_probs64(logits, ids, 0.7)[0]
    if variant.pop("old", False):
        given["old_logp"] = near(p, 0.35 if level == "token" else 0.8).to(device)
    if variant.pop("reference", None):
        given["ref_logp"] = near(p, 0.5).to(device)
    shape = variant.pop("ratio", None)
    if shape is not None:
        given["vllm_is_ratio"] = (0.2 * torch.randn(shape)).exp().to(device)
    return given | variant


def log_probs64(logits, ids, temperature):
    twin = logits.detach().cpu().double().requires_grad_()
    log_p = (twin[:, :-1] / temperature).log_softmax(-1)
    return log_p.gather(-1, ids.cpu()[..., None])[..., 0], twin


def formula(given, leaf):
    full = DEFAULTS | given
    full["max_completion_length"] = full["max_completion_length"] or TOKENS
    return Exact(leaf, given["completion_mask"], given["advantages"], given["old_logp"], given["ref_logp"],
                 full["vllm_is_ratio"], full, skips_masked=True)  # fmt: skip


def one_bit(values):
    return values * torch.finfo(torch.float32).eps / 2


@pytest.mark.parametrize("pieces", [1 << 24, 3 * VOCAB])
@pytest.mark.parametrize(("kind", "level", "name"), cases(ON_LOGITS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_formula(device, dtype, kind, level, name, pieces, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", pieces)
    given = make_case(device, dtype, kind, level, ON_LOGITS[name])
    before = given["logits"].detach().clone()
    loss, metrics = triton_grpo_loss(**given, reduce=True)
    loss.backward()
    assert torch.equal(given["logits"], before)
    p = fused_selective_log_softmax(before, given["completion_ids"], 0.7, given["completion_mask"])
    counts = given["completion_mask"].cpu()
    p64, twin = log_probs64(before, given["completion_ids"], 0.7)
    assert_close(p.cpu()[counts], p64[counts], torch.float32, 4, VOCAB)
    leaf = p.cpu().double().requires_grad_()
    right = formula(given, leaf)
    roundings = 32 + counts.numel()
    assert abs(loss.item() - right.loss.item()) <= roundings * one_bit(right.size)
    *kl, clipped = metrics
    assert abs(clipped.item() - right.clipped) <= one_bit(2)
    assert len(kl) == bool(given["beta"])
    if kl:
        assert abs(kl[0].item() - right.kl) <= roundings * one_bit(max(right.kl, right.size))
    (by_token,) = torch.autograd.grad(right.loss, leaf)
    (p64 * by_token).sum().backward()
    assert given["logits"].grad.dtype is dtype
    assert_close(given["logits"].grad.flatten(), twin.grad.flatten(), dtype, 1, VOCAB)
    assert not given["logits"].grad[:, -1].any()


@pytest.mark.parametrize(("kind", "level"), KINDS)
def test_numbers_of_tokens(device, kind, level):
    """reduce=False, reduced by the helper, is reduce=True, gradient included."""
    given = make_case(device, torch.float32, kind, level, VARIANTS["kl corrected"])
    (loss, (kl, clipped)), tokens = triton_grpo_loss(**given, reduce=True), triton_grpo_loss(**given)
    mask = given["completion_mask"]
    assert all(t.shape == mask.shape and t.dtype is torch.float32 and not t[~mask].any() for t in tokens)
    reduced = public._reduce_grpo_loss(tokens[0], mask.long(), kind, None)
    assert torch.equal(reduced, loss)
    assert torch.equal(public._masked_mean(tokens[1], mask), kl)
    assert torch.equal(public._masked_mean(tokens[2], mask), clipped)
    (one,), (other,) = (torch.autograd.grad(value, given["logits"]) for value in (reduced, loss))
    assert_close(one.flatten(), other.flatten().double(), torch.float32, 4, VOCAB)


def test_nothing_at_masked_positions_spreads(device):
    for kind in ("grpo", "luspo", "cispo", "vespo"):
        clean = make_case(device, torch.float32, kind, "token", VARIANTS["kl"])
        mask = clean["completion_mask"]
        hidden = torch.nn.functional.pad(~mask, (0, 1), value=True)[..., None]
        dirty = clean | dict(
            logits=clean["logits"].detach().masked_fill(hidden, torch.nan).requires_grad_(),
            completion_ids=clean["completion_ids"].masked_fill(~mask, 10**6),
        )
        for name in ("old_logp", "ref_logp"):
            dirty[name] = clean[name].masked_fill(~mask, torch.nan)
        found = []
        for given in (clean, dirty):
            loss, metrics = triton_grpo_loss(**given, reduce=True)
            found.append((loss, *metrics, *torch.autograd.grad(loss, given["logits"])))
        assert all(map(torch.equal, *found))
        logits, others = dirty["logits"], {name: value for name, value in dirty.items() if name != "logits"}
        loss_of = functools.partial(triton_grpo_loss, reduce=True, **others)
        composed, _ = torch.func.grad(loss_of, has_aux=True)(logits)
        assert_close(composed.flatten(), found[0][-1].flatten().double(), torch.float32, 8, VOCAB)


@pytest.mark.parametrize("reduce", [True, False])
def test_many_upstreams_at_once(device, reduce):
    given = make_case(device, torch.float32, "dapo", "token", VARIANTS["kl"])
    loss, logits = triton_grpo_loss(**given, reduce=reduce)[0], given["logits"]
    upstreams = torch.randn(3, *loss.shape, device=device)
    (together,) = torch.autograd.grad(loss, logits, upstreams, retain_graph=True, is_grads_batched=True)
    for one, upstream in zip(together, upstreams):
        (alone,) = torch.autograd.grad(loss, logits, upstream, retain_graph=True)
        assert_close(one.flatten(), alone.flatten().double(), torch.float32, 4, VOCAB)


@pytest.mark.parametrize("disabled", [False, True])
def test_what_was_made_in_inference_mode(device, disabled, monkeypatch):
    if disabled:
        monkeypatch.setattr(module, "_DISABLED", {"grpo_loss"})
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    names = "completion_ids", "completion_mask", "advantages", "old_logp", "ref_logp"
    with torch.inference_mode():
        others = {name: given[name].clone() for name in names}
    losses = [triton_grpo_loss(**tensors, reduce=True)[0] for tensors in (given, given | others)]
    assert torch.equal(*(torch.autograd.grad(loss, given["logits"])[0] for loss in losses))


def test_no_sequences_at_all(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    names = "logits", "completion_ids", "completion_mask", "advantages", "old_logp", "ref_logp"
    given |= {name: given[name].detach()[:0] for name in names}
    given["logits"].requires_grad_()
    loss, metrics = triton_grpo_loss(**given, reduce=True)
    loss.backward()
    assert loss == 0 and metrics == [0, 0] and given["logits"].grad.shape == given["logits"].shape
    assert fused_selective_log_softmax(given["logits"], given["completion_ids"]).shape == (0, TOKENS)


def test_logits_of_any_strides(device):
    """The Function takes what `triton_grpo_loss` refuses."""
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["on policy"])
    others = given["completion_ids"], given["advantages"], given["completion_mask"], 0.7, 0.0, LOW, HIGH, True
    found = []
    for logits in (given["logits"], given["logits"].detach().mT.contiguous().mT.requires_grad_()):
        loss, *_ = GrpoLossFunction.apply(logits, None, None, *others)
        found.append((loss, *torch.autograd.grad(loss, logits)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("inplace", [True, False])
def test_the_memory_of_logits(device, inplace):
    """It is taken when nobody else can see it, and then holds the gradient; else, and for a graph that stays, it is not."""
    given = make_case(device, torch.bfloat16, "grpo", "token", VARIANTS["clip"]) | dict(inplace=inplace)
    leaf, places = given.pop("logits"), []
    leaf.register_hook(lambda gradient: places.append(gradient.data_ptr()))

    def loss_of(keep=None):
        logits = leaf * 1
        if keep is not None:
            keep.append(logits)
        places.append(logits.data_ptr())
        return triton_grpo_loss(logits, **given, reduce=True)[0]

    loss_of().backward()
    once = leaf.grad.clone()
    held = []
    loss = loss_of(held)
    before = held[0].clone()
    (again,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (last,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(again, once) and torch.equal(last, once) and torch.equal(held[0], before)


def test_positional_call_of_the_function(device):
    given = make_case(device, torch.float32, "grpo", "token", VARIANTS["kl"])
    tensors = [given[n] for n in ("logits", "old_logp", "ref_logp", "completion_ids", "advantages", "completion_mask")]
    loss, kl, clipped = GrpoLossFunction.apply(*tensors, 0.7, 0.3, LOW, HIGH, False)
    wanted, metrics = triton_grpo_loss(**given, reduce=True)
    assert torch.equal(loss, wanted) and torch.equal(kl, metrics[0]) and torch.equal(clipped, metrics[1])
    assert not kl.requires_grad and not clipped.requires_grad
    with torch.no_grad():
        other, *_ = GrpoLossFunction.apply(*tensors, 0.7, 0.3, LOW, HIGH, False)
    assert torch.equal(other, loss) and not other.requires_grad
    loss, kl, _ = GrpoLossFunction.apply(*tensors[:5], None, 0.7, 0.0, LOW, HIGH, True)
    assert kl is None
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(loss, given["logits"], create_graph=True)


@pytest.mark.parametrize("kind", ["grpo", "vespo"])
def test_compiled(device, kind):
    given = make_case(device, torch.float32, kind, "token", VARIANTS["kl"])
    results = []
    for function in (triton_grpo_loss, torch.compile(triton_grpo_loss, fullgraph=True, backend="aot_eager")):
        loss, metrics = function(**given, reduce=True)
        results.append((loss, *metrics, *torch.autograd.grad(loss, given["logits"])))
    size = formula(given, log_probs64(given["logits"], given["completion_ids"], 0.7)[0]).size
    assert abs(results[0][0] - results[1][0]) <= 2 * (32 + BATCH * TOKENS) * one_bit(size)
    for one, other in zip(results[0][1:], results[1][1:]):
        assert_close(other.flatten(), one.flatten().double(), torch.float32, 8, VOCAB)


def test_log_softmax_of_chosen_tokens(device):
    """The last L of longer ids and masks, whatever their strides."""
    _, _, _, ids, mask, _ = problem(device, torch.float32)
    logits = torch.randn(BATCH, TOKENS + 1, VOCAB, device=device, requires_grad=True)
    longer = torch.nn.functional.pad(ids, (3, 0), value=-1)
    masks = torch.nn.functional.pad(mask.long(), (2, 0), value=7).t().contiguous().t()
    found = fused_selective_log_softmax(logits, longer, 1.3, masks)
    assert not found.requires_grad and found.dtype is torch.float32 and not found[~mask].any()
    wanted, _ = log_probs64(logits, ids, 1.3)
    assert_close(found.cpu()[mask.cpu()], wanted[mask.cpu()], torch.float32, 4, VOCAB)
    assert_close(fused_selective_log_softmax(logits, ids), log_probs64(logits, ids, 0.9)[0], torch.float32, 4, VOCAB)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(loss_type="ppo"), ValueError, "loss_type"),
        (dict(loss_type="sapo", delta=1.2), ValueError, "delta"),
        (dict(loss_type="vespo", importance_sampling_level="sequence"), ValueError, "Sequence-level importance"),
        (dict(loss_type="sapo", sapo_temperature_neg=0.0), ValueError, "sapo_temperature_neg"),
        (dict(importance_sampling_level="batch"), AssertionError, "importance_sampling_level"),
        (dict(beta=0.1), AssertionError, "ref_logp"),
        (dict(advantages=None), AssertionError, "advantages"),
        (dict(vllm_is_ratio=torch.ones(BATCH, 2)), AssertionError, "vllm_is_ratio"),
        (dict(completion_ids=torch.zeros(TOKENS, BATCH, dtype=torch.int64).t()), AssertionError, "contiguous"),
        (dict(logits=torch.zeros(VOCAB, TOKENS + 1, BATCH).permute(2, 1, 0)), AssertionError, "contiguous"),
        (dict(completion_mask=torch.ones(TOKENS, BATCH).t()), AssertionError, "contiguous"),
        (
            dict(completion_ids=torch.full((BATCH, TOKENS), VOCAB)),
            ValueError,
            rf"completion_ids\[0, 0\] is {VOCAB}, .*\)$",
        ),
        (dict(completion_ids=torch.zeros(BATCH, TOKENS)), ValueError, "completion_ids is torch.float32"),
        (dict(vllm_is_ratio=[1.0]), TypeError, "vllm_is_ratio must be a torch.Tensor"),
        (dict(vllm_is_ratio=torch.ones(BATCH, device="meta")), ValueError, "vllm_is_ratio is on meta"),
        (dict(completion_ids=[[1]]), TypeError, "completion_ids must be a torch.Tensor"),
        (dict(completion_mask=torch.ones(BATCH, 1)), ValueError, rf"completion_mask has shape \({BATCH}, 1\)"),
        (dict(old_logp=torch.ones(BATCH, 1)), ValueError, "old_logp has shape"),
        (dict(ref_logp=torch.ones(TOKENS)), ValueError, "ref_logp has shape"),
        (dict(advantages=torch.ones(1)), ValueError, "advantages has shape"),
        (dict(advantages=torch.ones(BATCH, TOKENS)), ValueError, "advantages has shape"),
        (dict(advantages=torch.ones(BATCH, device="meta")), ValueError, "advantages is on meta"),
        (dict(logits=torch.zeros(BATCH, VOCAB)), ValueError, "logits has shape"),
        (dict(temperature=0.0), ValueError, "temperature"),
    ],
)
def test_what_is_refused(change, error, words):
    given = make_case(torch.device("cpu"), torch.float32, "grpo", "token", VARIANTS["on policy"])
    with pytest.raises(error, match=words):
        triton_grpo_loss(**given | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(input_ids=torch.zeros(BATCH, 2, dtype=torch.int64)), "input_ids has shape"),
        (dict(input_ids=torch.full((BATCH, TOKENS), VOCAB)), rf"input_ids\[0, 0\] is {VOCAB}"),
        (dict(input_ids=torch.zeros(BATCH, TOKENS)), "input_ids is torch.float32"),
        (dict(mask=torch.ones(BATCH, 2)), "mask has shape"),
        (dict(logits=torch.zeros(BATCH, TOKENS + 1, VOCAB, dtype=torch.float64)), "logits is torch.float64"),
        (dict(temperature=-1.0), "temperature"),
    ],
)
def test_what_the_log_softmax_refuses(change, words):
    logits, ids = torch.zeros(BATCH, TOKENS + 1, VOCAB), torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        fused_selective_log_softmax(**dict(logits=logits, input_ids=ids) | change)
