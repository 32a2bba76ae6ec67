"""Fused linear JSD against float64, as it is defined by Lin (1991) and in GKD, arXiv 2306.13649."""

from __future__ import annotations

import distillation
import peak_memory
import pytest
import torch
from distillation import sizes, subnormal_steps, within
from operator_case import HIDDEN as OWED_HIDDEN
from operator_case import Case
from reference import DTYPES, SKEW, jensen_shannon, unit, unit_of_mixture

import liger_kernel.ops.fused_linear_jsd as module
from liger_kernel.ops import (
    LigerFusedLinearJSDFunction,
    fused_linear_jsd_backward,
    fused_linear_jsd_forward,
)
from liger_kernel.transformers import LigerFusedLinearJSD
from liger_kernel.transformers.functional import liger_fused_linear_jsd

ROWS, HIDDEN, TEACHER, VOCAB = 37, 24, 40, 131


def _owed(n):
    labels = torch.where(torch.arange(n) % 3 == 1, -100, 1)
    teacher = [torch.randn(n, 16), torch.randn(40, 16)]
    return [torch.randn(n, OWED_HIDDEN), torch.randn(40, OWED_HIDDEN), *teacher, labels, 0.3, -100, 2.0]


OWED = [Case("linear_jsd", LigerFusedLinearJSDFunction, _owed, (0, 1))]


def problem(device, dtype, rows=ROWS, teacher_dtype=None):
    x = torch.randn(rows, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    teacher_x = torch.randn(rows, TEACHER, device=device).to(teacher_dtype or dtype)
    teacher_weight = (0.25 * torch.randn(VOCAB, TEACHER, device=device)).to(teacher_dtype or dtype)
    labels = torch.randint(0, VOCAB, (rows,), device=device)
    labels[1::7] = -100
    return x, weight, teacher_x, teacher_weight, labels


def apply(x, weight, teacher_x, teacher_weight, labels=None, beta=0.5, temperature=1.0, accum_dtype=None):
    heads = (x, weight, teacher_x, teacher_weight)
    return LigerFusedLinearJSDFunction.apply(*heads, labels, beta, -100, temperature, accum_dtype)


def exact(x, weight, teacher_x, teacher_weight, labels=None, beta=0.5, temperature=1.0):
    """The loss, dx and dweight by autograd, and what an element of the gradient of the logits is the difference of."""
    x, weight, teacher_x, teacher_weight = (
        t.detach().cpu().double().requires_grad_() for t in (x, weight, teacher_x, teacher_weight)
    )
    counts = [i for i in range(x.shape[0]) if labels is None or int(labels[i]) != -100]
    size, share = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64), 1 / max(len(counts), 1)
    loss = (x * 0).sum() + (weight * 0).sum()
    for i in counts:
        log_q = torch.log_softmax(weight @ x[i] / temperature, 0)
        log_p = torch.log_softmax(teacher_weight @ teacher_x[i] / temperature, 0)
        row = jensen_shannon(log_q, log_p, beta).sum()
        loss = loss + row * share
        with torch.no_grad():
            each = unit_of_mixture(beta) * (log_p.exp() + log_q.exp()) * (1 + log_p.abs() + log_q.abs())
            size[i] = (each + log_q.exp() * each.sum()) * share / abs(temperature)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight)), size, x.detach(), weight.detach()


def check(given, loss, dtype, upstream=1.0, **options):
    """Logits are sums in f32 of HIDDEN products: nothing but the gradient of the logits is rounded to dtype."""
    x, weight = given[:2]
    expected, dx, dweight, size, wide_x, wide_weight = exact(*given, **options)
    labels, temperature = given[4] if len(given) > 4 else None, abs(options.get("temperature", 1.0))
    counts = given[0].shape[0] if labels is None else int((labels != -100).sum())
    products = (wide_x.abs() @ wide_weight.abs().t()).max().item() / temperature
    f32 = (32 + 8 * (1 + products) + VOCAB**0.5) * unit(torch.float32)
    assert loss.dtype is torch.float32 and loss.dim() == 0
    assert (loss.detach().cpu().double() - expected).abs() <= f32 * size.sum() * temperature
    of_dx, of_dweight = sizes(size, wide_x, wide_weight)
    floors = subnormal_steps(dtype, counts, wide_weight, wide_x)
    rounded = sizes(rounded_gradient(given, **options), wide_x, wide_weight)
    found = ((x, dx, of_dx, rounded[0], VOCAB, floors[0]), (weight, dweight, of_dweight, rounded[1], ROWS, floors[1]))
    scale = abs(upstream)
    for given_, value, of_f32, of_dtype, terms, floor in found:
        slack = scale * (floor + f32 * of_f32)
        within(given_.grad, upstream * value, scale * of_dtype, 1.1, dtype, terms, slack)


def rounded_gradient(given, **options):
    """The magnitudes of the exact gradient of the logits."""
    x, weight, *rest = (t.detach().cpu().double() if t.is_floating_point() else t for t in given)
    logits = (x @ weight.t()).requires_grad_()
    eye = torch.eye(weight.shape[0], dtype=torch.float64)
    return exact_of_logits(logits, eye, *rest, **options).abs()


def exact_of_logits(logits, eye, *rest, **options):
    return exact(logits, eye, *rest, **options)[1]


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5, -0.8])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, beta, temperature, labeled):
    given = problem(device, dtype)
    given = given if labeled else given[:4]
    loss = apply(*given, beta=beta, temperature=temperature)
    loss.backward(torch.tensor(1.5, device=device))
    check(given, loss, dtype, 1.5, beta=beta, temperature=temperature)
    for t in given[:2]:
        assert t.grad.dtype is dtype
    if labeled:
        assert not given[0].grad[given[4] == -100].any()


@pytest.mark.parametrize("plain_torch", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("beta", SKEW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_digits_of_a_skew_mixture(device, monkeypatch, dtype, beta, temperature, plain_torch):
    monkeypatch.setattr(LigerFusedLinearJSDFunction, "_plain_torch", plain_torch)
    given = problem(device, dtype, rows=9)
    loss = apply(*given, beta=beta, temperature=temperature)
    loss.backward()
    check(given, loss, dtype, beta=beta, temperature=temperature)


@pytest.mark.parametrize("teacher_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_teacher_of_another_dtype(device, dtype, teacher_dtype):
    given = problem(device, dtype, teacher_dtype=teacher_dtype)
    loss = apply(*given)
    loss.backward()
    check(given, loss, dtype)


def test_layouts(device):
    given = problem(device, torch.float32)
    expected = apply(*given)
    columns = [t.t().contiguous().t() for t in given[:4]]
    assert torch.equal(apply(*columns, given[4].int()), expected)
    rows = [torch.cat((t, t), 1)[:, : t.shape[1]] for t in (given[0], given[2])]
    assert torch.equal(apply(rows[0], given[1], rows[1], given[3], given[4]), expected)


def test_a_student_that_is_its_teacher(device):
    """Nothing apart: no loss and no gradient, but for roundings; with beta 1/2 the two may change places."""
    x, weight, teacher_x, teacher_weight, labels = problem(device, torch.float32)
    for beta in (0.0, 0.3, 1.0, *SKEW):
        loss, x.grad = apply(x, weight, x.detach(), weight.detach(), labels, beta), None
        loss.backward()
        assert abs(loss) < 1e-6 * unit_of_mixture(beta) and x.grad.abs().max() < 1e-6 * unit_of_mixture(beta)
    one = apply(x.detach(), weight.detach(), teacher_x, teacher_weight, labels)
    other = apply(teacher_x, teacher_weight, x.detach(), weight.detach(), labels)
    assert abs(one - other) < 1e-6 and 0 < one < 0.6932


@pytest.mark.parametrize("upstream", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_counts(device, dtype, rows, upstream):
    x, weight, teacher_x, teacher_weight, _ = problem(device, dtype, rows=rows)
    loss = apply(x, weight, teacher_x, teacher_weight, torch.full((rows,), -100, device=device))
    (loss * upstream).backward()
    assert loss == 0
    for t in (x, weight):
        assert torch.equal(t.grad, torch.zeros_like(t))


def test_no_rows_and_no_labels(device):
    x, weight, *teacher, _ = problem(device, torch.float32, rows=0)
    loss = apply(x, weight, *teacher)
    loss.backward()
    assert loss == 0 and x.grad.shape == x.shape and not weight.grad.any()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_what_is_not_finite(device, beta):
    """Column 6 has logits of -inf in both models, which is nothing; then in one of them."""
    x, weight, teacher_x, teacher_weight, _ = problem(device, torch.float32, rows=5)
    with torch.no_grad():
        for hidden, head in ((x, weight), (teacher_x, teacher_weight)):
            hidden[:, 0], head[:, 0], head[6, 0] = 1.0, 0.0, float("-inf")
    left = [i for i in range(VOCAB) if i != 6]
    loss = apply(x, weight, teacher_x, teacher_weight, None, beta)
    (dx,) = torch.autograd.grad(loss, x)
    without = apply(x, weight[left], teacher_x, teacher_weight[left], None, beta)
    assert abs(loss - without) <= 1e-6 * abs(without) + 1e-7 and dx[:, 1:].isfinite().all()
    with torch.no_grad():
        teacher_weight[6, 0] = 0.0  # now the teacher believes in it
    loss = apply(x, weight, teacher_x, teacher_weight, None, beta)
    assert loss == float("inf") if beta == 0 else loss.isfinite()


def test_far_apart(device):
    """Where both probabilities underflow the logarithm of their mixture does not."""
    x = torch.tensor([[400.0, -300.0]], device=device).requires_grad_()
    weight = torch.eye(2, device=device)
    loss = apply(x, weight, torch.tensor([[-300.0, 400.0]], device=device), weight)
    loss.backward()
    assert abs(loss - torch.log(torch.tensor(2.0))) < 1e-6 and not x.grad.any()


def test_what_is_trained(device):
    x, weight, *others = problem(device, torch.float32)
    distillation.what_is_trained(lambda x, w: apply(x, w, *others), module, "linear_jsd", x, weight, (7, 8))


def test_the_teacher_gets_no_gradient(device):
    x, weight, teacher_x, teacher_weight, labels = problem(device, torch.float32)
    teacher_x.requires_grad_(), teacher_weight.requires_grad_()
    apply(x, weight, teacher_x, teacher_weight, labels).backward()
    assert teacher_x.grad is None and teacher_weight.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_backwards(device, dtype):
    given = problem(device, dtype)
    distillation.several_backwards(apply(*given), given[:2])


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast(device, autocast):
    """fp32 master weights, products in 16 bits whose results are not rounded to them."""
    given = problem(device, torch.float32)
    with torch.autocast(device.type, dtype=autocast):
        loss = apply(*given)
    loss.backward()
    low = [t.detach().to(autocast).float().requires_grad_() for t in given[:4]]
    for t, leaf in zip(low, given[:2]):
        t.grad = leaf.grad
        assert leaf.grad.dtype is torch.float32
    check((*low, given[4]), loss, autocast)


def test_small_gradients_of_many_tokens_survive_float16(device):
    """Divided by 8192 rows a gradient of the logits of 1e-4 would be below float16's subnormals."""
    rows, vocab = 8192, 2000
    x = torch.full((rows, 8), 0.5, device=device).half().requires_grad_()
    weight = torch.zeros(vocab, 8, device=device).half().requires_grad_()
    teacher_weight = torch.zeros(vocab, 1, device=device).half()
    teacher_weight[0] = 100.0
    loss = apply(x, weight, torch.ones(rows, 1, device=device).half(), teacher_weight, beta=0.0)
    loss.backward()
    expected = 0.5 / vocab
    assert (weight.grad[1:].double() / expected - 1).abs().max() <= 3 * unit(torch.float16)


@pytest.mark.parametrize("accum_dtype", [None, torch.float32, torch.bfloat16])
def test_accum_dtype(device, accum_dtype):
    given = problem(device, torch.bfloat16)
    loss = apply(*given, accum_dtype=accum_dtype)
    loss.backward()
    check(given, loss, torch.bfloat16)


def test_compiled(device):
    given = problem(device, torch.float32)
    expected = apply(*given)
    gradients = torch.autograd.grad(expected, given[:2])
    torch._dynamo.reset()
    found = torch.compile(liger_fused_linear_jsd, fullgraph=True, backend="aot_eager")(*given)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, torch.autograd.grad(found, given[:2]), gradients))


def test_no_worse_than_torch_in_bf16(device):
    """torch's own evaluation rounds logits to bf16, ours only their gradient."""
    given = problem(device, torch.bfloat16)[:4]
    loss = apply(*given)
    gradients = torch.autograd.grad(loss, given[:2])
    log_q, log_p = (torch.nn.functional.linear(*head).log_softmax(-1) for head in (given[:2], given[2:]))
    log_m = torch.logaddexp(log_q, log_p) - torch.log(torch.tensor(2.0))
    halves = [torch.nn.functional.kl_div(log_m, p, reduction="batchmean", log_target=True) for p in (log_p, log_q)]
    eager = 0.5 * sum(halves)
    others = torch.autograd.grad(eager, given[:2])
    expected, dx, dweight, *_ = exact(*given)
    for ours, theirs, value in zip((loss, *gradients), (eager, *others), (expected, dx, dweight)):
        errors = [(t.detach().cpu().double() - value).pow(2).mean().sqrt() for t in (ours, theirs)]
        assert errors[0] <= errors[1]


CHUNKS = """
import distillation, torch
from liger_kernel.ops import LigerFusedLinearJSDFunction as F
import liger_kernel.ops.fused_linear_jsd as m
def others(x):
    tx = torch.randn(700, 8, device=x.device).to(x.dtype)
    tw = (.3 * torch.randn(2051, 8, device=x.device)).to(x.dtype)
    y = torch.ones(700, dtype=torch.int64, device=x.device); y[::9] = -100
    return tx, tw, y
x, w = distillation.save_each(lambda x, w: F.apply(x, w, *others(x), .5, -100, 2.0))
print(m._native.linear_jsd_chunk_rows(x, w, *others(x), None, None, None, None, -100, .5, 1.0, 0))
"""


def test_several_chunks(device, tmp_path):
    distillation.chunks_of_any_size(CHUNKS, device, tmp_path)


MEMORY = """
import peak_memory, sys, torch
from liger_kernel.ops import LigerFusedLinearJSDFunction as F
V, H, N = 32768, 64, 2048
x = torch.randn(N, H, device=sys.argv[1]).bfloat16().requires_grad_()
w = (.2 * torch.randn(V, H, device=sys.argv[1])).bfloat16().requires_grad_()
tx, tw = x.detach().clone(), w.detach().clone()
F.apply(x[:8], w[:64], tx[:8], tw[:64]).backward()
x.grad = w.grad = None
peak_memory.tell(sys.argv[1], lambda: F.apply(x, w, tx, tw).backward())
"""


def test_memory(device):
    """The f32 logits of all rows of one model would be 256 MB; what is made is the weight's gradient, its f32 sum, the budget,
    and a quarter of it, or of 128 rows on a GPU, for tiles."""
    cuda = device.type == "cuda"
    peak = peak_memory.told(MEMORY, device.type, LIGER_LOSS_WORKSPACE_MB="16")
    head, tiles = 32768 * 64 / 2**20, 128 * 32768 * 8 / 2**20 if cuda else 4
    assert peak < 2 * head + 4 * head + 16 + tiles + 32 * cuda + 8


def test_helpers(device):
    given = problem(device, torch.float32)
    heads, labels = given[:4], given[4]
    loss, *gradients = fused_linear_jsd_forward(*heads, labels, 0.3, -100, True, 2.0)
    expected = apply(*given, beta=0.3, temperature=2.0)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, gradients, torch.autograd.grad(expected, heads[:2])))
    scaled = fused_linear_jsd_backward(torch.tensor(2.0, device=device), *gradients)
    assert all(torch.equal(s, 2 * g) for s, g in zip(scaled, gradients))
    unlabeled = fused_linear_jsd_forward(*heads, labels, 0.3, -100, False, 2.0)[0]
    assert torch.equal(unlabeled, apply(*heads, beta=0.3, temperature=2.0))
    frozen = fused_linear_jsd_forward(heads[0].detach(), *heads[1:], labels, 0.3, -100, True, 2.0)
    assert frozen[1] is None and torch.equal(frozen[2], gradients[1])


def test_module(device):
    given = problem(device, torch.float32)
    loss = LigerFusedLinearJSD(0.3, 3, 2.0)
    expected = LigerFusedLinearJSDFunction.apply(*given, 0.3, 3, 2.0)
    assert torch.equal(loss(*given), expected) and torch.equal(
        loss(*given[:4], None), apply(*given[:4], None, 0.3, 2.0)
    )
    assert torch.equal(liger_fused_linear_jsd(*given, 0.3, 3, 2.0), expected)
    named = LigerFusedLinearJSDFunction.apply(*given, 0.3, 3, 2.0, None, "liger-c", "default")
    assert torch.equal(named, expected)
    with pytest.raises(AssertionError, match="temperature cannot be 0."):
        LigerFusedLinearJSD(temperature=0.0)


def test_errors(device):
    x, weight, teacher_x, teacher_weight, labels = problem(device, torch.float32)
    for call, message in (
        (lambda: apply(x, weight, teacher_x, teacher_weight, labels, 0.5, 0.0), "temperature cannot be 0."),
        (lambda: apply(x, weight, teacher_x, teacher_weight, labels, 1.5), r"jsd_beta is 1.5.*\[0, 1\]"),
        (
            lambda: apply(x, weight, teacher_x, teacher_weight, labels[:30]),
            r"the shape of shift_labels must be \(BT,\)",
        ),
        (lambda: apply(x, weight, teacher_x[:30], teacher_weight), r"teacher_input.*\(30, 40\).*\(37, 40\)"),
        (lambda: apply(x, weight, teacher_x, teacher_weight[:100]), r"teacher_weight.*\(100, 40\).*\(131, 40\)"),
        (lambda: apply(x[:, :20], weight, teacher_x, teacher_weight), "20.*24|24.*20"),
        (lambda: apply(x, weight, teacher_x.double(), teacher_weight), "teacher_input.*float64"),
        (lambda: apply(x, weight, teacher_x, teacher_weight, None, 0.5, 1.0, torch.float64), "accum_dtype.*float64"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("beta", (1 - 1e-4, 1 - 1e-9))
def test_a_small_weight_keeps_its_digits(device, beta):
    """The whole gradient is a multiple of 1 - beta, which a beta rounded to float32 has few digits of, or none."""
    torch.manual_seed(0)
    given = problem(device, torch.float32)
    apply(*given, beta=beta).backward()
    for tensor, expected in zip(given, exact(*given, beta=beta)[1:3]):
        error = (tensor.grad.cpu().double() - expected).norm() / expected.norm()
        assert error < 1e-5  # a hundred roundings; 3e-5 and 1 if beta is rounded
