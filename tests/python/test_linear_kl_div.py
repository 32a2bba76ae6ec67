"""Fused linear KL divergence against float64, as it is defined in Hinton et al., arXiv 1503.02531, and in the contract's header."""

from __future__ import annotations

import distillation
import peak_memory
import pytest
import torch
from distillation import sizes, subnormal_steps, within
from operator_case import HIDDEN as OWED_HIDDEN
from operator_case import Case
from reference import DTYPES, unit

import liger_kernel.ops.fused_linear_kl_div as module
from liger_kernel.ops import (
    LigerFusedLinearKLDivFunction,
    fused_linear_kl_div_backward,
    fused_linear_kl_div_forward,
)
from liger_kernel.transformers import LigerFusedLinearKLDivLoss
from liger_kernel.transformers.functional import liger_fused_linear_kl_div

ROWS, HIDDEN, VOCAB = 37, 24, 131
EPS = 1e-10


def _owed(n):
    q = torch.randn(n, 40).softmax(-1)
    labels = torch.where(torch.arange(n) % 3 == 1, -100, 1)
    return [torch.randn(n, OWED_HIDDEN), torch.randn(40, OWED_HIDDEN), q, labels, "batchmean", -100, 2.0]


OWED = [Case("linear_kl_div", LigerFusedLinearKLDivFunction, _owed, (0, 1))]


def problem(device, dtype, rows=ROWS, target_dtype=None):
    x = torch.randn(rows, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    q = torch.randn(rows, VOCAB, device=device).mul(2).softmax(-1)
    q[:, ::6] = 0
    if rows > 2:
        q[1] = torch.nn.functional.one_hot(torch.tensor(5, device=device), VOCAB)
    labels = torch.randint(0, VOCAB, (rows,), device=device)
    labels[1::7] = -100
    return x, weight, q.to(target_dtype or dtype), labels


def exact(x, weight, q, labels=None, reduction="batchmean", ignore_index=-100, temperature=1.0, eps=EPS):
    """The loss, dx and dweight, and what the last two are sums of in magnitude; row by row."""
    x, weight, q = (t.detach().cpu().double() for t in (x, weight, q))
    rows, vocab = q.shape
    counts = [labels is None or int(labels[i]) != ignore_index for i in range(rows)]
    share = {"sum": 1.0, "batchmean": 1 / max(sum(counts), 1), "mean": 1 / max(sum(counts), 1) / vocab}[reduction]
    loss, g, size = torch.zeros((), dtype=torch.float64), torch.zeros_like(q), torch.zeros_like(q)
    for i in range(rows):
        if not counts[i]:
            continue
        z = weight @ x[i] / temperature
        log_p = z - torch.logsumexp(z, 0)
        for j in range(vocab):
            if q[i, j] != 0:
                loss += share * q[i, j] * (torch.log(q[i, j].clamp(min=eps)) - log_p[j])
        p = log_p.exp() * q[i].sum()
        g[i], size[i] = share * (p - q[i]) / temperature, share * (p + q[i]) / abs(temperature)
    return loss, g @ weight, g.t() @ x, *sizes(size, x, weight)


def check(x, weight, q, labels, loss, dtype, upstream=1.0, **options):
    """Logits of size L, rounded once, have errors of L u, and their softmax, which is relative to a sum of such, twice as
    much; it is rounded once more."""
    expected, dx, dweight, size_dx, size_dweight = exact(x, weight, q, labels, **options)
    temperature, counts = abs(options.get("temperature", 1.0)), ROWS if labels is None else int((labels != -100).sum())
    largest = (x.detach().cpu().double() @ weight.detach().cpu().double().t()).abs().max().item() / temperature
    roundings, reduction = 2 * largest + 3, options.get("reduction", "batchmean")
    share = {"sum": 1.0, "batchmean": 1.0, "mean": 1.0 / VOCAB}[reduction] * (counts if reduction == "sum" else 1)
    budget = share * (2 * largest * unit(dtype) + (16 + VOCAB**0.5) * (1 + largest) * unit(torch.float32))
    assert loss.dtype is torch.float32 and loss.dim() == 0
    assert (loss.detach().cpu().double() - expected).abs() <= budget
    divisor = 1 if reduction == "sum" else counts * (VOCAB if reduction == "mean" else 1)
    floors = subnormal_steps(dtype, divisor, weight.detach().cpu().double(), x.detach().cpu().double())
    scale = abs(upstream)
    found = [(x.grad, dx, size_dx, VOCAB, floors[0]), (weight.grad, dweight, size_dweight, ROWS, floors[1])]
    for gradient, value, size, terms, floor in found:
        if gradient is not None:
            within(gradient, upstream * value, scale * size, roundings, dtype, terms, scale * floor)
            within(gradient, upstream * value, scale * size, roundings, dtype, terms, scale * floor)


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5, -0.8])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, reduction, temperature, labeled):
    x, weight, q, labels = problem(device, dtype)
    labels = labels if labeled else None
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels, reduction, -100, temperature)
    loss.backward(torch.tensor(1.5, device=device))
    check(x, weight, q, labels, loss, dtype, 1.5, reduction=reduction, temperature=temperature)
    for t in (x, weight):
        assert t.grad.dtype is dtype
    if labels is not None:
        assert not x.grad[labels == -100].any()


@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_of_another_dtype(device, dtype, target_dtype):
    x, weight, q, labels = problem(device, dtype, target_dtype=target_dtype)
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)
    loss.backward()
    check(x, weight, q, labels, loss, dtype)


def test_layouts(device):
    """Views of larger tensors, transposed ones, and labels of 32 bits."""
    x, weight, q, labels = problem(device, torch.float32)
    expected = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)
    wide = torch.full((ROWS, VOCAB + 9), float("nan"), device=device)
    wide[:, 3 : VOCAB + 3] = q
    for target in (wide[:, 3 : VOCAB + 3], q.t().contiguous().t()):
        for hidden in (x.t().contiguous().t(), torch.cat((x, x), 1)[:, :HIDDEN]):
            found = LigerFusedLinearKLDivFunction.apply(hidden, weight.t().contiguous().t(), target, labels.int())
            assert torch.equal(found, expected)


def test_labels_are_no_indices(device):
    x, weight, q, labels = problem(device, torch.float32)
    expected = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)
    far = torch.where(labels == -100, labels, torch.where(labels % 2 == 0, -7, 10**12))
    assert torch.equal(LigerFusedLinearKLDivFunction.apply(x, weight, q, far), expected)
    other = torch.where(labels == -100, 3, torch.where(labels == 3, 4, labels))
    assert torch.equal(LigerFusedLinearKLDivFunction.apply(x, weight, q, other, "batchmean", 3), expected)


@pytest.mark.parametrize("upstream", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_counts(device, dtype, rows, reduction, upstream):
    """No rows, or all of them ignored: zeros, whatever comes from above."""
    x, weight, q, _ = problem(device, dtype, rows=rows)
    labels = torch.full((rows,), -100, device=device)
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels, reduction)
    (loss * upstream).backward()
    assert loss == 0
    for t in (x, weight):
        assert torch.equal(t.grad, torch.zeros_like(t))


def test_no_rows_and_no_labels(device):
    x, weight, q, _ = problem(device, torch.float32, rows=0)
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q)
    loss.backward()
    assert loss == 0 and x.grad.shape == x.shape and not weight.grad.any()


def test_what_is_not_finite(device):
    """A logit of -inf where q is 0 changes nothing; elsewhere the loss is +inf. NaN in a row that does not count stays there."""
    x, weight, q, labels = problem(device, torch.float32, rows=5)
    with torch.no_grad():
        x[:, 0], weight[:, 0], weight[6, 0] = 1.0, 0.0, float("-inf")  # column 6 of the target is 0
    finite = LigerFusedLinearKLDivFunction.apply(x, weight, q)
    (dx,) = torch.autograd.grad(finite, x)
    assert finite.isfinite() and dx[:, 1:].isfinite().all()
    q[2, 6] = 0.25
    assert LigerFusedLinearKLDivFunction.apply(x, weight, q) == float("inf")
    x, weight, q, labels = problem(device, torch.float32)
    expected = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)
    q[labels == -100] = float("nan")
    assert torch.equal(LigerFusedLinearKLDivFunction.apply(x, weight, q, labels), expected)


def test_eps_bounds_the_logarithm_alone(device):
    x, weight, q, _ = problem(device, torch.float32)
    q = q * 1e-3
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, None, "batchmean", -100, 1.0, 1e-4)
    loss.backward()
    check(x, weight, q, None, loss, torch.float32, eps=1e-4)


def test_what_is_trained(device):
    x, weight, q, labels = problem(device, torch.float32)

    def apply(x, weight):
        return LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)

    distillation.what_is_trained(apply, module, "linear_kl_div", x, weight, (6, 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_backwards(device, dtype):
    x, weight, q, labels = problem(device, dtype)
    distillation.several_backwards(LigerFusedLinearKLDivFunction.apply(x, weight, q, labels), (x, weight))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast(device, autocast):
    """fp32 master weights and an fp32 teacher, products in 16 bits."""
    x, weight, q, labels = problem(device, torch.float32)
    with torch.autocast(device.type, dtype=autocast):
        loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)
    loss.backward()
    low = [t.detach().to(autocast).float().requires_grad_() for t in (x, weight)]
    for t, given in zip(low, (x, weight)):
        t.grad = given.grad
        assert given.grad.dtype is torch.float32
    check(*low, q, labels, loss, autocast)


def test_small_gradients_of_many_tokens_survive_float16(device):
    """Divided by 4096 rows and 500 columns a gradient of the logits of 1e-3 would be below float16's subnormals."""
    rows, vocab = 4096, 500
    x = torch.full((rows, 8), 0.5, device=device).half().requires_grad_()
    weight = torch.zeros(vocab, 8, device=device).half().requires_grad_()
    q = torch.zeros(rows, vocab, device=device).half()
    q[:, 0] = 1
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, None, "mean")
    loss.backward(torch.tensor(2.0**16, device=device))
    expected = 2.0**16 * 0.5 / vocab / vocab
    assert (weight.grad[1:].double() / expected - 1).abs().max() <= 3 * unit(torch.float16)


@pytest.mark.parametrize("accum_dtype", [None, torch.float32, torch.bfloat16])
def test_accum_dtype(device, accum_dtype):
    x, weight, q, labels = problem(device, torch.bfloat16)
    options = ("batchmean", -100, 1.0, EPS, accum_dtype)
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels, *options)
    loss.backward()
    check(x, weight, q, labels, loss, torch.bfloat16)


def test_compiled(device):
    x, weight, q, labels = problem(device, torch.float32)
    expected = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels)
    gradients = torch.autograd.grad(expected, (x, weight))
    torch._dynamo.reset()
    found = torch.compile(liger_fused_linear_kl_div, fullgraph=True, backend="aot_eager")(x, weight, q, labels)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, torch.autograd.grad(found, (x, weight)), gradients))


def test_no_worse_than_torch_in_bf16(device):
    """Both round logits and their gradient to bf16; torch's own evaluation rounds more."""
    x, weight, q, labels = problem(device, torch.bfloat16)
    loss = LigerFusedLinearKLDivFunction.apply(x, weight, q)
    gradients = torch.autograd.grad(loss, (x, weight))
    log_p = torch.nn.functional.linear(x, weight).log_softmax(-1)
    eager = torch.nn.functional.kl_div(log_p, q, reduction="batchmean")
    others = torch.autograd.grad(eager, (x, weight))
    expected, dx, dweight, *_ = exact(x, weight, q)
    for ours, theirs, value in zip((loss, *gradients), (eager, *others), (expected, dx, dweight)):
        errors = [(t.detach().cpu().double() - value).pow(2).mean().sqrt() for t in (ours, theirs)]
        assert errors[0] <= errors[1]


CHUNKS = """
import distillation, torch
from liger_kernel.ops import LigerFusedLinearKLDivFunction as F
import liger_kernel.ops.fused_linear_kl_div as m
def others(x):
    q = torch.randn(700, 2051, device=x.device).softmax(-1).to(x.dtype)
    y = torch.ones(700, dtype=torch.int64, device=x.device); y[::9] = -100
    return q, y
x, w = distillation.save_each(lambda x, w: F.apply(x, w, *others(x), "batchmean", -100, 2.0))
print(m._native.linear_kl_div_chunk_rows(x, w, *others(x), None, None, None, None, -100, 1.0, 1e-10, 0, 0))
"""


def test_several_chunks(device, tmp_path):
    distillation.chunks_of_any_size(CHUNKS, device, tmp_path)


MEMORY = """
import peak_memory, sys, torch
from liger_kernel.ops import LigerFusedLinearKLDivFunction as F
V, H, N = 32768, 64, 2048
x = torch.randn(N, H, device=sys.argv[1]).bfloat16().requires_grad_()
w = (.2 * torch.randn(V, H, device=sys.argv[1])).bfloat16().requires_grad_()
q = torch.full((N, V), 1 / V, dtype=torch.bfloat16, device=sys.argv[1])
F.apply(x[:8], w[:64], q[:8, :64]).backward()
x.grad = w.grad = None
peak_memory.tell(sys.argv[1], lambda: F.apply(x, w, q).backward())
"""


def test_memory(device):
    """The logits of all rows would be 128 MB; what is made is the weight's gradient, its f32 sum, and the budget."""
    peak = peak_memory.told(MEMORY, device.type, LIGER_LOSS_WORKSPACE_MB="16")
    head = 32768 * 64 / 2**20
    assert peak < 2 * head + 4 * head + 16 + 32 * (device.type == "cuda") + 8


def test_helpers(device):
    x, weight, q, labels = problem(device, torch.float32)
    given = (x, weight, q, labels, "batchmean", -100)
    loss, *gradients = fused_linear_kl_div_forward(*given, True, 2.0, EPS)
    expected = LigerFusedLinearKLDivFunction.apply(*given, 2.0)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, gradients, torch.autograd.grad(expected, (x, weight))))
    scaled = fused_linear_kl_div_backward(torch.tensor(2.0, device=device), *gradients)
    assert all(torch.equal(s, 2 * g) for s, g in zip(scaled, gradients))
    unlabeled = fused_linear_kl_div_forward(*given, False, 2.0, EPS)[0]
    assert torch.equal(unlabeled, LigerFusedLinearKLDivFunction.apply(x, weight, q, None, "batchmean", -100, 2.0))
    frozen = fused_linear_kl_div_forward(x.detach(), weight, *given[2:], True, 2.0, EPS)
    assert frozen[1] is None and torch.equal(frozen[2], gradients[1])


def test_module(device):
    x, weight, q, labels = problem(device, torch.float32)
    loss = LigerFusedLinearKLDivLoss("mean", 3, 2.0, 1e-6)
    assert repr(loss) == (
        "LigerFusedLinearKLDivLoss(reduction=mean, ignore_index=3, temperature=2.0, eps=1e-06, accum_dtype=None)"
    )
    expected = LigerFusedLinearKLDivFunction.apply(x, weight, q, labels, "mean", 3, 2.0, 1e-6)
    assert torch.equal(loss(x, weight, q, labels), expected)
    assert torch.equal(liger_fused_linear_kl_div(x, weight, q, labels, "mean", 3, 2.0, 1e-6), expected)
    target = q.clone().requires_grad_()
    loss(x, weight, target, labels).backward()
    assert target.grad is None
    LigerFusedLinearKLDivLoss("none")  # refused by the call
    with pytest.raises(AssertionError, match="temperature cannot be 0."):
        LigerFusedLinearKLDivLoss(temperature=0.0)


def test_errors(device):
    x, weight, q, labels = problem(device, torch.float32)
    apply = LigerFusedLinearKLDivFunction.apply
    for call, message in (
        (lambda: apply(x, weight, q, labels, "none"), "reduction must be one of.*'none'"),
        (lambda: apply(x, weight, q, labels, "mean", -100, 0.0), "temperature cannot be 0."),
        (lambda: apply(x, weight, q, labels[:30]), r"the shape of shift_labels must be \(BT,\)"),
        (lambda: apply(x, weight, q[:, :100]), r"target.*\(37, 100\).*\(37, 131\)"),
        (lambda: apply(x[:, :20], weight, q), "20.*24|24.*20"),
        (lambda: apply(x, weight, q.double()), "target.*float64.*float32, float16 and bfloat16"),
        (lambda: apply(x, weight, q, labels.float()), "labels"),
        (lambda: apply(x, weight, q, None, "mean", -100, 1.0, 1e-10, torch.float64), "accum_dtype.*float64"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_another_default_dtype(default):
    """From float16 operands the gradients meet the number of rows as float32, whatever torch makes of a division."""
    x, weight = torch.randn(4, 8).half().requires_grad_(), torch.randn(11, 8).half().requires_grad_()
    target, labels = torch.rand(4, 11), torch.tensor([0, -100, 1, 2])
    right = torch.autograd.grad(LigerFusedLinearKLDivFunction.apply(x, weight, target, labels), (x, weight))
    torch.set_default_dtype(default)
    try:
        found = torch.autograd.grad(LigerFusedLinearKLDivFunction.apply(x, weight, target, labels), (x, weight))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, right))


def test_a_target_that_is_no_number_where_nothing_counts():
    """Transformed, too."""
    x, weight, target = torch.randn(4, 8), torch.randn(11, 8), torch.rand(4, 11)
    target[1], labels = torch.nan, torch.tensor([0, -100, 1, 2])
    gradient = torch.func.grad(lambda x: LigerFusedLinearKLDivFunction.apply(x, weight, target, labels))(x)
    assert gradient.isfinite().all() and not gradient[1].any()
