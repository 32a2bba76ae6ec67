"""Distillation losses on two heads against the float64 formulas of distillation_formulas.py, and a loss that a user derives."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from distillation_formulas import (
    MORE,
    STUDENT,
    TEACHER,
    TOKENS,
    VOCAB,
    MeanSquares,
    call,
    check,
    exact,
    operands,
    problem,
    results,
)
from reference import DTYPES, assert_close
from token_losses import LOGITS, about, compiled, same

from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import _distillation, functional
from liger_kernel.chunked_loss.cosine_similarity_loss import LigerFusedLinearCosineSimilarityFunction
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

JSD, COSINE = LigerFusedLinearJSDFunction, LigerFusedLinearCosineSimilarityFunction
ALL = [JSD, COSINE, MeanSquares]


@pytest.fixture(params=ALL, ids=lambda function: function.__name__)
def function(request):
    return request.param


def composed(monkeypatch):
    """The form that torch differentiates."""
    monkeypatch.setattr(LigerFusedLinearDistillationBase, "forms_gradients", staticmethod(lambda *tensors: False))


# ---- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence(device, dtype, beta):
    given = problem(device, dtype, beta=beta, temperature=1.7, weight_hard_loss=0.3, weight_soft_loss=0.8)
    check(JSD, given, results(JSD, given, 1.75), dtype, 1.75)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, function):
    given = problem(device, dtype)
    check(function, given, results(function, given, -2.5), dtype, -2.5)


@pytest.mark.parametrize("teacher_vocab", [VOCAB, MORE])
@pytest.mark.parametrize("shape", [(TOKENS,), (3, 7), (2, 3, 4), (1,)])
def test_any_leading_shape_and_larger_teachers(device, function, shape, teacher_vocab):
    given = problem(device, shape=shape, teacher_vocab=teacher_vocab, temperature=0.5, chunk_size=5)
    if shape == (1,):
        given["true_labels"][0] = 3
    check(function, given, results(function, given), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, TOKENS - 1, TOKENS, 1000])
def test_chunks_change_nothing(device, dtype, size, function):
    """But roundings: of sums over tokens in another order, and of the hidden states' gradients none."""
    given = problem(device, dtype)
    whole, parts = results(function, given), results(function, given | {"chunk_size": size})
    check(function, given, parts, dtype)
    for one, other in zip(parts, whole):
        assert_close(one.flatten(), other.double().flatten(), dtype, 2 if dtype is not torch.float32 else 8, TOKENS)


def test_gradients_of_parameters_are_summed_in_float32(device):
    """Many chunks of one token: sums in 16 bits would lose what a token adds to the sum of the others."""
    tokens = 400
    given = problem(device, torch.bfloat16, shape=(tokens,), chunk_size=1)
    given["true_labels"][:] = 3
    given["student_input"] = torch.ones_like(given["student_input"]).requires_grad_()
    given["teacher_input"] = torch.ones_like(given["teacher_input"])
    one = {n: given[n][:1].detach().requires_grad_(n in STUDENT) for n in ("student_input", "teacher_input")}
    once = results(JSD, given | one | {"true_labels": given["true_labels"][:1]})
    for found, wanted in zip(results(JSD, given)[4:], once[4:]):
        assert_close(found.flatten(), wanted.double().flatten(), torch.bfloat16, 4, tokens)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_errors_in_bfloat16_are_not_above_plain_torchs(function, beta):
    """Over some problems, root mean square, against float64 formulas of logits that are not rounded."""
    ours, theirs = torch.zeros(4), torch.zeros(4)
    options = {} if function is MeanSquares else {"beta": beta}
    for _ in range(12):
        given = problem("cpu", torch.bfloat16, **options)
        right = exact(function, given, torch.float32)
        found = results(function, given)
        z, zt = (F.linear(*(given[n] for n in names)) for names in (STUDENT, TEACHER))
        labels = given["true_labels"]
        soft = function.distillation_loss_fn(z, zt, target=labels, ignore_index=-100, **options)
        loss = 0.5 * soft / (labels != -100).sum() + 0.5 * F.cross_entropy(z, labels)
        plain = [loss, *torch.autograd.grad(loss, operands(given))]
        for errors, values in ((ours, [found[0], *found[3:]]), (theirs, plain)):
            errors += torch.tensor([
                ((v.detach().double() - w).norm() / w.norm()).square() for v, w in zip(values, [right[0], *right[3:]])
            ])  # fmt: skip
    assert (ours.sqrt() <= 1.05 * theirs.sqrt()).all(), (ours.sqrt(), theirs.sqrt())


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("both", [True, False])
def test_losses_without_weight(device, function, weights, both, monkeypatch):
    """Nobody makes one that is not returned either."""
    given = problem(device, weight_hard_loss=weights[0], weight_soft_loss=weights[1])
    if not both:
        if not weights[0]:
            monkeypatch.setattr(_distillation, "_hard_loss", None)
        if not weights[1]:
            monkeypatch.setattr(function, "distillation_loss_fn", None)
    found = call(function, given | {"return_soft_hard_loss": both})
    loss = found[0] if both else found
    monkeypatch.undo()
    right = exact(function, given, torch.float32)
    gradients = torch.autograd.grad(loss, operands(given))
    check(function, given, (loss, *(found[1:] if both else [w.float() for w in right[1:3]]), *gradients), torch.float32)


def test_a_hard_loss_without_weight_may_be_infinite(device):
    given = problem(device, weight_hard_loss=0.0, weight_soft_loss=1.0)
    given["student_bias"] = torch.where(torch.arange(VOCAB, device=device) == 5, -math.inf, 0.0).requires_grad_()
    given["true_labels"] = torch.full_like(given["true_labels"], 5)
    for both in (True, False):
        found = call(COSINE if not both else JSD, given | {"beta": 1.0, "return_soft_hard_loss": both})
        loss = found[0] if both else found
        if both:
            assert loss.isfinite() and found[2] == math.inf
    loss, _, _, *gradients = results(JSD, given | {"beta": 1.0})
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)


def test_all_ignored_and_no_tokens(device, function):
    given = problem(device)
    given["true_labels"].fill_(-100)
    none = problem(device, shape=(0,))
    for each in (given, none):
        found = results(function, each)
        assert all(not t.any() for t in found) and [t.shape for t in found[3:]] == [t.shape for t in operands(each)]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_another_ignored_label(device, function, kind):
    given = problem(device)
    right = results(function, given)
    labels = given["true_labels"].masked_fill(given["true_labels"] == -100, 7).to(kind)
    given["true_labels"] = torch.where(given["true_labels"] == 7, -1, labels).to(kind)
    given = problem(device) | given | {"ignore_index": 7}
    labels = given["true_labels"]
    labels[labels == -1] = 8
    check(function, given, results(function, given), torch.float32)
    assert right[0].isfinite()


# ---- forms of the call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_composed_form(device, dtype, function, monkeypatch):
    given = problem(device, dtype, temperature=2.0, teacher_vocab=MORE)
    composed(monkeypatch)
    found = results(function, given)
    assert not found[1].requires_grad and not found[2].requires_grad
    check(function, given, found, dtype)


@pytest.mark.parametrize("both", [False, True])
def test_compiled(device, function, both):
    given = problem(device, temperature=2.0, teacher_vocab=MORE, return_soft_hard_loss=both)
    found = compiled(lambda: call(function, given))()
    loss, *others = found if both else (found,)
    right = exact(function, given, torch.float32)
    gradients = torch.autograd.grad(loss, operands(given))
    check(function, given, (loss, *(others or [w.float() for w in right[1:3]]), *gradients), torch.float32)


@torch._dynamo.config.patch(error_on_recompile=True)
def test_a_compiled_model_that_contains_the_module(device):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(16, VOCAB)
            self.loss = chunked_loss.LigerFusedLinearJSDLoss(temperature=2.0)

        def forward(self, x, teacher, teacher_weight, labels):
            return self.loss(torch.tanh(x), self.head.weight, teacher, teacher_weight, labels, self.head.bias)

    model = Model().to(device)
    function = compiled(model, dynamic=True)
    for tokens in (9, 12, 17):
        given = problem(device, shape=(tokens,))
        args = given["student_input"].detach(), given["teacher_input"], given["teacher_weight"], given["true_labels"]
        found, right = function(*args), model(*args)
        assert found.item() == pytest.approx(right.item(), rel=1e-5)
        parameters = list(model.head.parameters())
        about(torch.autograd.grad(found, parameters), torch.autograd.grad(right, parameters), 2 * LOGITS)


def test_transformed(device, function):
    """torch.func, forward mode and vmap differentiate the formula."""
    given = problem(device)
    right = results(function, given)[3:]
    tensors = [t.detach() for t in operands(given)]
    loss_of = lambda *t: call(function, given | dict(zip(STUDENT, t)))  # noqa: E731
    about(torch.func.grad(loss_of, argnums=(0, 1, 2))(*tensors), right, 2 * LOGITS)
    tangents = [torch.randn_like(t) for t in tensors]
    _, moved = torch.func.jvp(loss_of, tuple(tensors), tuple(tangents))
    wanted = sum((g * t).sum() for g, t in zip(right, tangents))
    assert moved.item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-3)
    many = torch.stack([tensors[0], 0.5 * tensors[0]])
    both = torch.func.vmap(lambda x: loss_of(x, *tensors[1:]))(many)
    about(both, torch.stack([loss_of(x, *tensors[1:]) for x in many]), 2 * LOGITS)


def test_tracing_and_profiling(function):
    from torch.profiler import ProfilerActivity, profile

    given = problem("cpu")
    tensors = [t.detach() for t in operands(given)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        loss_of = lambda *t: call(function, given | dict(zip(STUDENT, t)))  # noqa: E731
        traced = torch.jit.trace(loss_of, tensors, check_trace=False)
    assert traced(*tensors).item() == pytest.approx(call(function, given).item(), rel=1e-5)
    for grads in (True, False):
        with torch.set_grad_enabled(grads), profile(activities=[ProfilerActivity.CPU]) as seen:
            call(function, given)
        assert f"liger::{function.__name__}" in {event.name for event in seen.events()}


def test_without_memory(function):
    given = problem("cpu")
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    meta |= {name: meta[name].detach().requires_grad_() for name in STUDENT}
    loss = call(function, meta)
    assert loss.is_meta and loss.shape == ()
    loss.backward()
    assert all(t.grad.shape == t.shape for t in operands(meta))


def test_autocast(device, function):
    """fp32 master weights: the products in bf16, gradients in fp32; backward outside of the block."""
    given = problem(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = call(function, given)
    low = given | {n: given[n].detach().bfloat16().requires_grad_(n in STUDENT) for n in (*STUDENT, *TEACHER)}
    right = call(function, low)
    assert_close(found, right.double(), torch.float32, 8)
    gradients = torch.autograd.grad(found, operands(given))
    assert all(g.dtype is torch.float32 for g in gradients)
    about([g.flatten() for g in gradients], torch.autograd.grad(right, operands(low)), 2, torch.bfloat16)


# ---- autograd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("size", [5, 1000])
def test_what_is_trained(device, dtype, trained, size, function):
    given = problem(device, dtype, chunk_size=size)
    right = results(function, given)
    tensors = [t.detach().requires_grad_(i in trained) for i, t in enumerate(operands(given))]
    found = call(function, given | dict(zip(STUDENT, tensors)) | {"return_soft_hard_loss": True})
    assert found[0].requires_grad is bool(trained) and not any(aux.requires_grad for aux in found[1:])
    same(found, right[:3])
    if trained:
        found[0].backward()
    for i, (tensor, wanted) in enumerate(zip(tensors, right[3:])):
        assert tensor.grad is None if i not in trained else torch.equal(tensor.grad, wanted)


@pytest.mark.parametrize("form", ["chunks", "composed"])
def test_the_teacher_has_no_gradient(device, function, form, monkeypatch):
    given = problem(device)
    given |= {n: given[n].requires_grad_() for n in TEACHER}
    if form == "composed":
        composed(monkeypatch)
    call(function, given).backward()
    assert all(given[n].grad is None for n in TEACHER) and all(given[n].grad is not None for n in STUDENT)


def test_without_gradients(device, function):
    given = problem(device)
    right = results(function, given)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = call(function, given)
        assert not found.requires_grad and torch.equal(found, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward(device, dtype, function):
    given = problem(device, dtype)
    loss = call(function, given)
    grad = lambda factor, keep=True: torch.autograd.grad(  # noqa: E731
        factor * loss, operands(given), retain_graph=keep
    )
    first, again = grad(3), grad(3)
    kept = [g.clone() for g in first]
    once, quarter = grad(1), grad(-0.25)
    for others in (again, grad(3, False), kept):
        same(first, others)
    if dtype is not torch.float16:
        same(quarter, [-0.25 * g for g in once])
    assert all(one.data_ptr() != other.data_ptr() for one, other in zip(first, again))
    with pytest.raises(RuntimeError, match="second derivatives are not provided"):
        torch.autograd.grad(call(function, given), operands(given), create_graph=True)


@pytest.mark.parametrize("upstream", [math.inf, math.nan])
def test_ignored_tokens_are_zero_whatever_comes_from_above(device, upstream, function):
    given = problem(device)
    dx, *_ = torch.autograd.grad(call(function, given), operands(given), torch.tensor(upstream, device=device))
    ignored = given["true_labels"] == -100
    assert not dx[ignored].any() and not dx[~ignored].isfinite().all(-1).any()


@pytest.mark.parametrize("dtype", [torch.float16])
def test_small_gradients_survive_float16(device, dtype):
    """A mean over many tokens, scaled as a loss scaler does it: gradients are of sums until the upstream meets them."""
    given = problem(device, dtype, shape=(40000,), chunk_size=20000)
    found = results(JSD, given, 40000.0)
    check(JSD, given, found, dtype, 40000.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_left_alone(device, dtype, function):
    given = problem(device, dtype)
    before = {k: v.detach().clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    call(function, given).backward()
    assert all(torch.equal(given[k], v) for k, v in before.items())


def test_views(device, function):
    """Hidden states without the last token, transposed weights."""
    given = problem(device, shape=(3, 7))
    right = results(function, given)
    x = given["student_input"]
    longer = torch.cat((x.detach(), torch.full_like(x[:, :1], torch.nan)), 1)[:, :-1].requires_grad_()
    turned = given["student_weight"].detach().t().contiguous().t().requires_grad_()
    teacher = given["teacher_weight"].t().contiguous().t()
    found = results(function, given | {"student_input": longer, "student_weight": turned, "teacher_weight": teacher})
    about([f.flatten() for f in found], right, 8)


def test_memory_is_bounded():
    """By chunks: a peak far below one set of float32 logits of all tokens."""
    tokens, vocab = 2048, 4096
    x, w = torch.randn(tokens, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    labels = torch.randint(vocab, (tokens,))
    loss = chunked_loss.LigerFusedLinearJSDLoss(chunk_size=64)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, kind, types, args=(), kwargs=None):
            out = kind(*args, **(kwargs or {}))
            sizes.extend(
                t.nbytes for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, torch.Tensor)
            )
            return out

    forms = LigerFusedLinearDistillationBase.forms_gradients
    try:
        LigerFusedLinearDistillationBase.forms_gradients = staticmethod(lambda *tensors: True)
        with Watch():
            loss(x, w, x.detach(), w.detach(), labels).backward()
    finally:
        LigerFusedLinearDistillationBase.forms_gradients = forms
    assert max(sizes) <= 64 * vocab * 4


# ---- modules, names, refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "function", "name"),
    [("LigerFusedLinearJSDLoss", JSD, "jsd"), ("LigerFusedLinearCosineSimilarityLoss", COSINE, "cosine")],
)
def test_modules_and_functions(device, module, function, name):
    options = dict(weight_hard_loss=0.2, weight_soft_loss=0.7, beta=0.25, ignore_index=-7, temperature=1.5,
                   compiled=False, chunk_size=4, return_soft_hard_loss=True)  # fmt: skip
    given = problem(device)
    given["true_labels"][given["true_labels"] == -100] = -7
    made = getattr(chunked_loss, module)(**options)
    assert {k: getattr(made, k) for k in options} == options
    tensors = [given[n] for n in (*STUDENT[:2], *TEACHER[:2], "true_labels", STUDENT[2], TEACHER[2])]
    found = made(*tensors)
    same(found, call(function, given | options))
    same(found, getattr(functional, f"liger_fused_linear_{name}")(*tensors, *options.values()))
    check(function, given | options, (*found, *torch.autograd.grad(found[0], operands(given))), torch.float32)
    without = getattr(chunked_loss, module)()(*tensors[:4], given["true_labels"].clamp(min=0))
    assert without.shape == ()
    with pytest.raises(AssertionError, match="Temperature cannot be 0"):
        getattr(chunked_loss, module)(temperature=0)


def test_gradients_for_every_argument(function):
    given = problem("cpu")
    parameters = list(inspect.signature(function.forward).parameters)[1:]

    class Context:
        needs_input_grad = (True, True, False, False, False, True) + (False,) * (len(parameters) - 6)

        def save_for_backward(self, *tensors):
            self.saved_tensors = tensors

        def mark_non_differentiable(self, *tensors): ...

    context = Context()
    full = {n: given.get(n) for n in parameters if n in given}
    function.forward(context, **full)
    with torch.no_grad():
        assert len(function.backward(context, torch.ones(()))) == len(parameters)


@pytest.mark.parametrize("form", ["chunks", "composed"])
@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("student_input", lambda t: t[1:], ValueError, "student_input has shape"),
        ("student_input", lambda t: t[..., 1:], ValueError, "student_input has shape"),
        ("student_input", lambda t: t.double(), ValueError, "student_input is torch.float64"),
        ("student_input", lambda t: None, TypeError, "student_input must be a torch.Tensor"),
        ("student_weight", lambda t: t[0], ValueError, "student_weight has 1 dimensions"),
        ("student_bias", lambda t: t[1:], ValueError, "student_bias has shape"),
        ("teacher_input", lambda t: t[1:], ValueError, "teacher_input has shape"),
        ("teacher_weight", lambda t: t[:-1], ValueError, "teacher_weight has 60 rows, but student_weight has 61"),
        ("teacher_weight", lambda t: None, TypeError, "teacher_weight must be a torch.Tensor"),
        ("true_labels", lambda t: t.float(), ValueError, "is torch.float32"),
        ("true_labels", lambda t: None, TypeError, "must be a torch.Tensor"),
        ("temperature", lambda t: 0.0, AssertionError, "Temperature cannot be 0"),
        ("chunk_size", lambda t: 0, ValueError, "chunk_size is 0"),
    ],
)
def test_what_is_refused(device, function, name, change, error, words, form, monkeypatch):
    if form == "composed":
        composed(monkeypatch)
    given = problem(device)
    if name == "teacher_weight":
        given["teacher_bias"] = None
    with pytest.raises(error, match=words):
        call(function, given | {name: change(given.get(name))})


@pytest.mark.parametrize("label", [VOCAB, -1])
def test_labels_out_of_range(device, function, label, monkeypatch):
    given = problem(device, chunk_size=1)
    given["true_labels"][1] = label
    if device.type == "cuda":
        loss, _, hard, *gradients = results(function, given)
        assert loss.isnan() and hard.isnan() and gradients[0][1].isnan().all() and gradients[0][2:].isfinite().all()
    monkeypatch.setenv("LIGER_DEBUG", "1")
    words = rf"^{function.labels}\[1\] is {label}, which is out of bounds: it must be in \[0, {VOCAB}\)"
    with pytest.raises(ValueError, match=words):
        call(function, given)


def test_a_base_without_a_distance():
    with pytest.raises(NotImplementedError, match="distillation_loss_fn"):
        LigerFusedLinearDistillationBase.distillation_loss_fn(None, None)


def test_what_else_a_distance_is_given(device):
    """A subclass's own arguments, and beta if it has such an argument."""
    seen = {}

    class Own(LigerFusedLinearDistillationBase):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None, beta=None, power=2):
            seen.update(beta=beta, power=power, ignore_index=ignore_index)
            return (student_logits - teacher_logits).abs().pow(power).sum()

        @classmethod
        def forward(cls, ctx, x, weight, teacher_x, teacher_weight, target, bias, teacher_bias, power):
            return super().forward(
                cls, ctx, x, weight, teacher_x, teacher_weight, target, bias, teacher_bias, beta=0.125, power=power
            )

        @staticmethod
        def backward(ctx, *grad_output):
            return LigerFusedLinearDistillationBase.backward(ctx, *grad_output)

    given = problem(device)
    tensors = [given[n] for n in (*STUDENT[:2], *TEACHER[:2], "true_labels", STUDENT[2], TEACHER[2])]
    loss = Own.apply(*tensors, 3)
    assert seen == {"beta": 0.125, "power": 3, "ignore_index": -100}
    dx, *_ = torch.autograd.grad(loss, operands(given))
    assert not dx[given["true_labels"] == -100].any()  # its sum has them, but they are no tokens to learn from


def test_a_forward_of_their_own(device):
    """A subclass may use nothing of the base but its name."""

    class Own(LigerFusedLinearDistillationBase):
        @classmethod
        def forward(cls, ctx, x, weight, labels, factor=2.0):
            ctx.save_for_backward(x, weight)
            ctx.factor = factor
            return factor * (x @ weight).sum()

        @staticmethod
        def backward(ctx, grad_output):
            x, weight = ctx.saved_tensors
            ones = grad_output * ctx.factor * torch.ones(x.shape[0], weight.shape[1], device=x.device)
            return ones @ weight.t(), x.t() @ ones, None, None

    x, weight = (torch.randn(3, 3, device=device, requires_grad=True) for _ in range(2))
    for arguments in ((x, weight, None), (x, weight, None, 3.0)):
        loss = Own.apply(*arguments)
        wanted = torch.autograd.grad(arguments[-1] * (x @ weight).sum() if len(arguments) > 3 else 2 * (x @ weight).sum(),
                                     (x, weight))  # fmt: skip
        about(torch.autograd.grad(loss, (x, weight)), wanted)
    with torch.no_grad():
        assert not Own.apply(x, weight, None).requires_grad
