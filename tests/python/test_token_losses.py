"""What every loss on the tokens of a linear head owes its callers, whatever its formula: one table of losses, each check once.

Values are held to float64 by the losses' own files; here preference losses are too, in every form in which a call may run, and
policy losses, whose clipped weights jump, are compared with their plain call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import policy_formulas as policy
import preference_formulas as preference
import pytest
import torch
from reference import DTYPES
from token_losses import HIDDEN, LOGITS, OPERANDS, VOCAB, about, arguments, call, compiled, operands, results, same

from liger_kernel.chunked_loss import _token_loss
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction
from liger_kernel.ops import linear_logprob


@dataclass(frozen=True)
class Loss:
    """`make(device, dtype, tokens=...)`: the arguments by name. `check(given, right, loss, *aux)`, where `right` are the results
    of a plain call. `labels`: what its callers call the tokens."""

    function: type
    labels: str
    make: Callable
    check: Callable

    def __call__(self, given):
        return call(self.function, given)

    def results(self, given):
        return results(self.function, given)


def preference_loss(name):
    case = preference.CASES[name]

    def check(given, right, loss, *aux):
        model, reference = ([given.get(n) for n in names] for names in (OPERANDS, preference.REFERENCE))
        preference.check(case, model, given["target"], reference, model[0].dtype, loss, aux)

    def make(device, dtype, **sizes):
        return preference.given(case, *preference.problem(device, dtype, **sizes))

    return Loss(case.function, "target", make, check)


def policy_loss(kind, level, variant, bounded=False):
    def check(given, right, loss, *aux):
        found = loss, *aux, *torch.autograd.grad(loss, operands(given))
        about(found, right, 2 * LOGITS, given["_input"].dtype)

    def make(device, dtype, **sizes):
        given = policy.make_case(device, dtype, kind, level, variant, **sizes)
        return given | {"valid_rows": int(given["attention_mask"].sum())} if bounded else given

    return Loss(LigerFusedLinearGRPOFunction, "selected_token_ids", make, check)


WITH_ALL = policy.VARIANTS["reference head"] | dict(old=True, ratio=(policy.BATCH,))
LOSSES = {
    **{name: preference_loss(name) for name in ("cpo", "dpo with nll", "orpo", "kto")},
    "dapo": policy_loss("dapo", "token", policy.VARIANTS["kl"]),
    "grpo": policy_loss("grpo", "token", WITH_ALL),
}
COMPILED = {
    **{name: preference_loss(name) for name in ("cpo", "orpo", "dpo discopop", "kto")},
    **{
        f"{kind} {level}, {name}": policy_loss(kind, level, policy.VARIANTS[name], bounded=True)
        for kind, level in policy.KINDS if kind in ("grpo", "luspo", "cispo", "vespo")
        for name in ("clip", "reference head", "ratio [B, 1], kl")
    },
}  # fmt: skip


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param


def composed(monkeypatch):
    """The form that torch differentiates."""
    monkeypatch.setattr(_token_loss, "is_one_pass", lambda *tensors: False)


def by_operands(loss, given):
    """The loss, and nothing else of what it answers, as a function of what has a gradient."""
    return lambda *tensors: loss(given | dict(zip(OPERANDS, tensors)))[0]


# ---- forms of the call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [VOCAB, 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_made_again(device, dtype, slices, loss, monkeypatch):
    """So many rows that they are not kept: in one slice of the vocabulary and in several."""
    given = loss.make(device, dtype)
    kept = loss.results(given)
    forward = linear_logprob.kernel_forward
    monkeypatch.setattr(linear_logprob, "kernel_forward", lambda *a, **_: (forward(*a), None)[1])
    monkeypatch.setattr(linear_logprob, "_slice_cols", lambda head, numbers, dx: slices)
    again = loss.results(given)
    same(again[:-3], kept[:-3])
    about(again[-3:], kept[-3:], 4, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_composed_form(device, dtype, loss, monkeypatch):
    given = loss.make(device, dtype)
    right = loss.results(given)
    composed(monkeypatch)
    loss.check(given, right, *loss(given))


@pytest.mark.parametrize("loss", COMPILED.values(), ids=COMPILED)
def test_compiled(device, loss):
    given = loss.make(device, torch.float32)
    right = loss.results(given)
    found, aux = compiled(loss.function.apply)(*arguments(loss.function, given))
    loss.check(given, right, found, *aux)


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_once_for_all_lengths(device, loss):
    function = compiled(loss.function.apply, dynamic=True)
    for tokens in (7, 9, 12):
        given = loss.make(device, torch.float32, tokens=tokens)
        right = loss.results(given)
        found, aux = function(*arguments(loss.function, given))
        loss.check(given, right, found, *aux)


def test_transformed(device, loss):
    """torch.func, forward mode and vmap differentiate the formula."""
    given = loss.make(device, torch.float32)
    right = loss.results(given)[-3:]
    tensors = [t.detach() for t in operands(given)]
    loss_of = by_operands(loss, given)
    about(torch.func.grad(loss_of, argnums=(0, 1, 2))(*tensors), right, 2 * LOGITS)
    tangents = [torch.randn_like(t) for t in tensors]
    _, moved = torch.func.jvp(loss_of, tuple(tensors), tuple(tangents))
    wanted = sum((g * t).sum() for g, t in zip(right, tangents))
    assert moved.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-4)
    many = torch.stack([tensors[0], 0.5 * tensors[0]])
    both = torch.func.vmap(lambda x: loss_of(x, *tensors[1:]))(many)
    about(both, torch.stack([loss_of(x, *tensors[1:]) for x in many]), 2 * LOGITS)


def test_tracing_and_counting(loss):
    """torch.jit.trace has the formula; a counter sees the products, a profiler the loss by its name."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    given = loss.make("cpu", torch.float32)
    right = loss.results(given)
    tensors = operands(given)
    with warnings.catch_warnings():
        if "vllm_is_ratio" not in given:  # whose shape decides what it multiplies, which a trace fixes, as torch says
            warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(by_operands(loss, given), [t.detach() for t in tensors], check_trace=False)
    loss.check(given, right, traced(*tensors), *right[1:-3])
    with FlopCounterMode(display=False) as counter:
        loss(given)[0].backward()
    widths = 4 * HIDDEN + (given["ref_input"].shape[-1] if "ref_input" in given else 0)
    assert counter.get_total_flops() == 2 * given[loss.labels].numel() * VOCAB * widths
    for grads in (True, False):
        with torch.set_grad_enabled(grads), profile(activities=[ProfilerActivity.CPU]) as seen:
            loss(given)
        assert f"liger::{loss.function.__name__}" in {event.name for event in seen.events()}


def test_without_memory(loss):
    given = loss.make("cpu", torch.float32)
    right = loss(given)
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    meta |= {name: meta[name].detach().requires_grad_() for name in OPERANDS}
    found = loss(meta)
    assert all(t.is_meta for t in found) and [t.shape for t in found] == [t.shape for t in right]
    found[0].backward()
    assert all(t.grad.shape == t.shape for t in operands(meta))


def test_disabled_kernels(loss, monkeypatch):
    given = loss.make("cpu", torch.float32)
    right = loss.results(given)
    monkeypatch.setattr(_token_loss.LigerLinearLogProbFunction, "_plain_torch", True)
    monkeypatch.setattr(linear_logprob, "kernel_forward", None)
    loss.check(given, right, *loss(given))


# ---- arguments ---------------------------------------------------------------------------------------------------------


def test_arguments_by_name(device, loss):
    given = loss.make(device, torch.float32)
    right = loss.results(given)
    found, aux = loss.function.apply(**given)
    same((found, *aux, *torch.autograd.grad(found, operands(given))), right)


def test_what_changes_nothing(device, loss):
    given = loss.make(device, torch.float32)
    right = loss.results(given)
    for options in ({"chunk_size": 2}, {"chunk_size": 1000}, {"compiled": False}):
        same(loss.results(given | options), right)


def test_hidden_states_without_the_last_token(device, loss):
    """A view of a longer sequence, as trainers give it."""
    given = loss.make(device, torch.float32)
    right = loss.results(given)
    x, *rest = operands(given)
    outside = torch.full_like(x[:, :1], torch.nan)
    longer = torch.cat((outside, x.detach(), outside), 1).requires_grad_()
    found = loss(given | {"_input": longer[:, 1:-1]})
    dx, *gradients = torch.autograd.grad(found[0], (longer, *rest))
    same((*found, dx[:, 1:-1], *gradients), right)
    assert not dx[:, 0].any() and not dx[:, -1].any()


@pytest.mark.parametrize("wide", [0, 1])
def test_mixed_dtypes(device, wide, loss):
    """16-bit hidden states on a float32 head, and the reverse: products in float32, gradients in each tensor's dtype."""
    given = loss.make(device, torch.bfloat16)
    widened = {name: given[name].detach().float().requires_grad_() for name in OPERANDS}
    right = loss.results(given | widened)
    mixed = given | {OPERANDS[wide]: widened[OPERANDS[wide]]}
    found = loss.results(mixed)
    same(found[:-3], right[:-3])
    for ours, wanted, tensor in zip(found[-3:], right[-3:], operands(mixed)):
        assert ours.dtype is tensor.dtype and torch.equal(ours, wanted.to(ours.dtype))


def test_without_bias(device, loss):
    given = loss.make(device, torch.float32)
    right = loss.results(given | {"bias": torch.zeros_like(given["bias"]).requires_grad_()})[:-1]
    found = loss.results(given | {"bias": None})
    if device.type == "cuda":  # where a product that adds a bias may be another kernel's
        about(found, right, 2 * LOGITS)
    else:
        same(found, right)


@pytest.mark.parametrize("one_pass", [True, False])
def test_what_was_made_in_inference_mode(device, loss, one_pass, monkeypatch):
    """As samplers make labels, rewards, and log-probabilities, and reference models hidden states."""
    if not one_pass:
        composed(monkeypatch)
    given = loss.make(device, torch.float32)
    right = loss.results(given)
    with torch.inference_mode():
        others = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor) and k not in OPERANDS}
    same(loss.results(given | others), right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_left_alone(device, dtype, loss):
    given = loss.make(device, dtype)
    before = {k: v.detach().clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    loss(given)[0].backward()
    assert all(torch.equal(given[k], v) for k, v in before.items())


@pytest.mark.parametrize("one_pass", [True, False])
def test_labels_out_of_range(device, one_pass, loss, monkeypatch):
    given = loss.make(device, torch.float32)
    given[loss.labels][0, -1] = VOCAB  # it counts
    if not one_pass:
        composed(monkeypatch)
    monkeypatch.setenv("LIGER_DEBUG", "1")
    with pytest.raises(ValueError, match="61"):
        loss(given)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("_input", lambda t: t[:, 1:], ValueError, "_input has shape"),
        ("_input", lambda t: t[..., 1:], ValueError, "_input has shape"),
        ("_input", lambda t: t[0], ValueError, "_input has 2 dimensions, but must have 3"),
        ("_input", lambda t: t.double(), ValueError, "_input is torch.float64"),
        ("_input", lambda t: None, TypeError, "_input must be a torch.Tensor"),
        ("weight", lambda t: t[0], ValueError, "weight has 1 dimensions"),
        ("weight", lambda t: t.double(), ValueError, "weight is torch.float64"),
        ("bias", lambda t: t[1:], ValueError, "bias has shape"),
        ("labels", lambda t: t.float(), ValueError, "{labels} is torch.float32"),
        ("labels", lambda t: None, TypeError, "{labels} must be a torch.Tensor"),
    ],
)
def test_what_is_refused(device, loss, name, change, error, words, one_pass, monkeypatch):
    if not one_pass:
        composed(monkeypatch)
    name = loss.labels if name == "labels" else name
    given = loss.make(device, torch.float32)
    with pytest.raises(error, match=words.format(labels=loss.labels)):
        loss(given | {name: change(given[name])})


# ---- autograd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_what_is_trained(device, dtype, trained, loss):
    given = loss.make(device, dtype)
    right = loss.results(given)
    tensors = [t.detach().requires_grad_(i in trained) for i, t in enumerate(operands(given))]
    found = loss(given | dict(zip(OPERANDS, tensors)))
    assert found[0].requires_grad is bool(trained) and not any(aux.requires_grad for aux in found[1:])
    same(found, right[:-3])
    if trained:
        found[0].backward()
    for i, (tensor, wanted) in enumerate(zip(tensors, right[-3:])):
        assert tensor.grad is None if i not in trained else torch.equal(tensor.grad, wanted)


@pytest.mark.parametrize(
    ("name", "compiles"), [*((name, False) for name in LOSSES), ("dpo with nll", True), ("grpo", True)]
)
def test_nothing_else_has_a_gradient(device, name, compiles):
    """Not references and other policies, nor advantages and ratios, also where they ask for one."""
    loss = LOSSES[name]
    given = loss.make(device, torch.float32)
    others = [
        k for k, v in given.items() if k not in OPERANDS and isinstance(v, torch.Tensor) and v.is_floating_point()
    ]
    given |= {k: given[k].detach().requires_grad_() for k in others}
    apply = compiled(loss.function.apply) if compiles else loss.function.apply
    apply(*arguments(loss.function, given))[0].backward()
    assert all(given[k].grad is None for k in others) and all(t.grad is not None for t in operands(given))


def test_without_gradients(device, loss):
    given = loss.make(device, torch.float32)
    right = loss.results(given)[:-3]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = loss(given)
        assert not found[0].requires_grad
        same(found, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward(device, dtype, loss):
    given = loss.make(device, dtype)
    found, gradients = loss(given)[0], partial(torch.autograd.grad, inputs=operands(given))
    first, again = (gradients(3 * found, retain_graph=True) for _ in range(2))
    kept = [g.clone() for g in first]
    once, quarter = (gradients(found * factor, retain_graph=True) for factor in (1, -0.25))
    last = gradients(3 * found)
    for others in (again, last, kept):
        same(first, others)
    if dtype is not torch.float16:  # powers of two round nothing but its smallest numbers
        same(quarter, [-0.25 * g for g in once])
    assert all(one.data_ptr() != other.data_ptr() for one, other in zip(first, again))


@pytest.mark.parametrize("upstream", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_that_do_not_count_are_zero_whatever_comes_from_above(device, dtype, upstream, loss):
    given = loss.make(device, dtype)
    above = torch.tensor(upstream, device=device)
    policies = "attention_mask" in given
    counts = given["attention_mask"].bool() if policies else given["target"] != -100
    dx, *_ = torch.autograd.grad(loss(given)[0], operands(given), above)
    assert not dx[~counts].any() and not dx[counts].isfinite().all(-1).any()
    nothing = {"attention_mask": torch.zeros_like(given["attention_mask"])} if policies else {
        "target": torch.full_like(given["target"], -100)
    }  # fmt: skip
    for gradient in torch.autograd.grad(loss(given | nothing)[0], operands(given), above):
        assert not gradient.any()


@pytest.mark.parametrize("form", ["one pass", "composed", "compiled", "disabled", "transformed"])
def test_hidden_states_that_are_no_number_where_nothing_counts(device, loss, form, monkeypatch):
    """As attention makes them of padding. They are part of no gradient, of the weight neither."""
    if device.type == "cuda" and form in ("one pass", "composed", "compiled"):
        pytest.skip("a GPU's products hold all rows, as torch's do, and 0 times NaN is NaN in the weight's gradient")
    given = loss.make(device, torch.float32)
    policies = "attention_mask" in given
    counts = given["attention_mask"].bool() if policies else given["target"] != -100
    if form == "composed":
        composed(monkeypatch)
    monkeypatch.setattr(_token_loss.LigerLinearLogProbFunction, "_plain_torch", form == "disabled")
    names = [name for name in ("_input", "ref_input") if isinstance(given.get(name), torch.Tensor)]
    assert not counts.all()

    def gradients(nothing):
        model = [t.detach() for t in operands(given)]
        filled = {n: given[n].detach().masked_fill(~counts.unsqueeze(-1), nothing) for n in names}
        model[0] = filled["_input"]
        loss_of = by_operands(loss, given | filled)
        if form == "transformed":
            return torch.func.grad(loss_of, argnums=(0, 1, 2))(*model)
        model = [t.requires_grad_() for t in model]
        run = compiled(loss_of) if form == "compiled" else loss_of
        return torch.autograd.grad(run(*model), model)

    same(gradients(math.nan), gradients(0.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_upstreams_at_once(device, dtype, loss):
    given = loss.make(device, dtype)
    found, model = loss(given)[0], operands(given)
    upstreams = torch.tensor([1.0, -2.0], device=device)
    each = [torch.autograd.grad(found, model, upstream, retain_graph=True) for upstream in upstreams]
    many = torch.autograd.grad(found, model, upstreams, is_grads_batched=True, retain_graph=True)
    same(many, [torch.stack(pair) for pair in zip(*each)])
    with pytest.raises(RuntimeError, match="second derivatives are not provided"):
        torch.autograd.grad(found, model, create_graph=True)


def test_autocast(device, loss):
    """fp32 master weights: the products in bf16, gradients in fp32; backward outside of the block."""
    given = loss.make(device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = loss(given)[0]
    names = [n for n in (*OPERANDS, *preference.REFERENCE) if n in given]
    low = given | {n: given[n].detach().bfloat16().requires_grad_(n in OPERANDS) for n in names}
    right = loss(low)[0]
    assert torch.equal(found, right)
    gradients = torch.autograd.grad(found, operands(given))
    assert all(g.dtype is torch.float32 for g in gradients)
    about(gradients, torch.autograd.grad(right, operands(low)), 1, torch.bfloat16)


@pytest.mark.parametrize("context", ["checkpoint", "on_cpu"])
def test_inside_of_others_hooks(device, context, loss):
    """Activation checkpointing and offloading see what is saved for backward, and not the formula's own graph."""
    given = loss.make(device, torch.float32)
    right = loss.results(given)
    packed = []

    def call_with(x):
        return loss(given | {"_input": x})

    if context == "checkpoint":
        found = torch.utils.checkpoint.checkpoint(call_with, given["_input"], use_reentrant=False)
    else:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
            found = call_with(given["_input"])
        assert len(packed) == 4  # the gradients, and which rows count
    same((*found, *torch.autograd.grad(found[0], operands(given))), right)
