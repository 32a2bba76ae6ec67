"""Divergence from a teacher's most probable ids, on a head: against float64, as the contract's header has it."""

from __future__ import annotations

import math

import distillation
import peak_memory
import pytest
import torch
from distillation import sizes, subnormal_steps, within
from operator_case import HIDDEN as OWED_HIDDEN
from operator_case import Case
from reference import DTYPES, unit

import liger_kernel.ops.topk_kl as module
from liger_kernel.ops import LigerFusedLinearKLDivFunction, LigerTopKKLFunction
from liger_kernel.transformers import LigerTopKKLLoss
from liger_kernel.transformers.functional import liger_topk_kl

ROWS, HIDDEN, VOCAB, K = 37, 24, 131, 9
INF, NAN = math.inf, math.nan


def _owed(n):
    logprobs, ids = torch.randn(n, 40).log_softmax(-1).topk(6)
    ids[:, 3] = -1
    mask = torch.arange(n) % 3 == 1
    return [
        torch.randn(n, OWED_HIDDEN),
        torch.randn(40, OWED_HIDDEN),
        ids,
        logprobs,
        torch.randn(40),
        mask,
        "mean",
        2.0,
    ]


OWED = [Case("linear_topk_kl", LigerTopKKLFunction, _owed, (0, 1, 4))]


def problem(device, dtype, rows=ROWS, k=K, logprob_dtype=torch.float32):
    """Teachers of all kinds: of a broad list, one who is nearly sure, one whose list is all, one who knows what is not."""
    x = torch.randn(rows, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    bias = torch.randn(VOCAB, device=device).to(dtype).requires_grad_()
    logprobs, ids = torch.randn(rows, VOCAB, device=device).mul(2).log_softmax(-1).topk(k)
    if rows > 4 and k > 2:
        logprobs[1], logprobs[1, 0] = -30.0, -1e-6
        logprobs[2] = logprobs[2].log_softmax(-1)
        logprobs[3, 1] = -INF
        ids[4, 2] = -1
    mask = torch.zeros(rows, dtype=torch.bool, device=device)
    mask[5::7] = True
    return x, weight, bias, ids, logprobs.to(logprob_dtype), mask


def exact_row(z, ids, log_q, slack=0.0):
    """The divergence, its gradient, what an element of that is a difference of, and what the loss is a sum of."""
    here = [(int(i), lq) for i, lq in zip(ids, log_q) if i >= 0]
    p, lse = z.softmax(0), torch.logsumexp(z, 0)
    outside = torch.ones(len(z), dtype=torch.bool)
    outside[[i for i, _ in here]] = False
    mass = sum(lq.exp() for _, lq in here)
    first, *others = sorted((lq for _, lq in here), reverse=True)  # 1 less a q near it has no digits in float64 either
    rest = (-first.expm1() - sum(lq.exp() for lq in others)).clamp(min=0) if outside.any() else 0 * mass
    loss, terms = torch.zeros((), dtype=torch.float64), 1.0
    d, size = p * (mass + rest), p.clone()
    for i, lq in here:
        q = lq.exp()
        d[i] -= q
        size[i] += q
        if q > 0:
            loss += q * (lq - (z[i] - lse))
            terms += q * (abs(lq) + abs(z[i]) + abs(lse))
    if outside.any():
        log_s = torch.logsumexp(z[outside], 0) - lse
        of_rest = torch.where(outside, (z - lse - log_s).exp(), 0)
        d -= rest * of_rest
        size += (rest + slack) * of_rest
        if rest > 0:
            loss += rest * (rest.log() - log_s)
        terms += (rest + slack) * (abs(math.log(max(rest, 1e-8))) + abs(log_s))
    return loss, d, size, float(terms)


def exact(x, weight, bias, ids, logprobs, mask=None, reduction="batchmean", temperature=1.0):
    """The loss, dx, dweight and dbias; of each what it is a sum of in magnitude."""
    x, weight, logprobs, ids = (t.detach().cpu().double() for t in (x, weight, logprobs, ids))
    bias = torch.zeros(len(weight)) if bias is None else bias.detach().cpu().double()
    rows, vocab = len(x), len(weight)
    counts = [mask is None or not bool(mask[i]) for i in range(rows)]
    share = {"sum": 1.0, "batchmean": 1 / max(sum(counts), 1), "mean": 1 / max(sum(counts), 1) / vocab}[reduction]
    loss, terms = torch.zeros((), dtype=torch.float64), 0.0
    g, size = torch.zeros(2, rows, vocab, dtype=torch.float64)
    for i in range(rows):
        if counts[i]:
            z = (weight @ x[i] + bias) / temperature
            row, d, magnitude, of_row = exact_row(z, ids[i], logprobs[i], 32 * unit(torch.float32))
            loss += share * row
            g[i], size[i] = share * d / temperature, share * magnitude / temperature
            terms += share * of_row
    return (loss, terms), (g @ weight, g.t() @ x, g.sum(0)), (*sizes(size, x, weight), size.sum(0))


def check(tensors, loss, dtype, upstream=1.0, **options):
    """Logits of size L, rounded once, have errors of L u, and their softmax, which is relative to a sum of such, twice as
    much; so have a softmax over the rest and a log p or log s; a gradient is rounded once more."""
    x, weight, bias, *_ = tensors
    (expected, terms), gradients, magnitudes = exact(*tensors, **options)
    mask, temperature, reduction = tensors[5], options.get("temperature", 1.0), options.get("reduction", "batchmean")
    wide = [t.detach().cpu().double() for t in (x, weight)]
    shift = 0.0 if bias is None else bias.detach().cpu().double().abs().max()
    largest = float((wide[0] @ wide[1].t()).abs().max() + shift) / temperature
    counts = len(x) if mask is None else int((~mask).sum())
    divisor = {"sum": 1.0, "batchmean": counts, "mean": counts * VOCAB}[reduction]
    budget = counts / divisor * 2 * largest * unit(dtype) + (16 + VOCAB**0.5) * unit(torch.float32) * terms
    assert loss.dtype is torch.float32 and loss.dim() == 0
    assert (loss.detach().cpu().double() - expected).abs() <= budget
    floors = (*subnormal_steps(dtype, divisor, wide[1], wide[0]), 2.0**-25 * counts / divisor)
    sums = (VOCAB, len(x), len(x))
    scale = abs(upstream)
    for t, value, size, count, floor in zip((x, weight, bias), gradients, magnitudes, sums, floors):
        if t is not None and t.grad is not None:
            assert t.grad.dtype is t.dtype
            within(t.grad, upstream * value, scale * size, 2 * largest + 3, dtype, count, scale * floor)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, reduction, temperature, biased):
    x, weight, bias, ids, logprobs, mask = problem(device, dtype)
    bias, mask = (bias, mask) if biased else (None, None)
    loss = liger_topk_kl(x, weight, ids, logprobs, bias, temperature=temperature, ignore_mask=mask, reduction=reduction)
    loss.backward(torch.tensor(1.5, device=device))
    check((x, weight, bias, ids, logprobs, mask), loss, dtype, 1.5, reduction=reduction, temperature=temperature)
    if mask is not None:
        assert not x.grad[mask].any()


@pytest.mark.parametrize("k", [1, 2, 33, VOCAB])
@pytest.mark.parametrize("logprob_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lists_of_any_length(device, dtype, logprob_dtype, k):
    """Of all ids too, where what roundings have left of 1 is not held against the student."""
    x, weight, bias, ids, logprobs, mask = problem(device, dtype, k=k, logprob_dtype=logprob_dtype)
    if k == VOCAB:
        ids = torch.where(ids < 0, 0, ids)
        logprobs[4] = torch.randn(VOCAB, device=device).log_softmax(0).to(logprob_dtype)
        logprobs[3, 1], ids[4] = -INF, torch.arange(VOCAB, device=device)
        mask[3] = True  # its list is not all
    loss = liger_topk_kl(x, weight, ids.int(), logprobs, bias, ignore_mask=mask)
    loss.backward()
    check((x, weight, bias, ids, logprobs, mask), loss, dtype)
    assert loss >= -(2.0**-7)


def test_all_ids_are_the_whole_divergence(device):
    """It is that of probabilities of all ids then."""
    x, weight, _, ids, logprobs, _ = problem(device, torch.float32, k=VOCAB)
    ids = torch.arange(VOCAB, device=device).expand(ROWS, VOCAB)
    logprobs = torch.randn(ROWS, VOCAB, device=device).log_softmax(-1)
    loss = liger_topk_kl(x, weight, ids, logprobs)
    found = torch.autograd.grad(loss, (x, weight))
    other = LigerFusedLinearKLDivFunction.apply(x, weight, logprobs.exp())
    bound = 64 * unit(torch.float32) * (1 + logprobs.abs().max() + x.detach().matmul(weight.detach().t()).abs().max())
    assert (loss - other).abs() <= bound
    for a, b in zip(found, torch.autograd.grad(other, (x, weight))):
        assert (a - b).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_who_agrees(device, dtype):
    """The student's own logits, listed from both ends: 0, never below it but by roundings, and no gradient."""
    x, weight, *_ = problem(device, torch.float32)
    log_p = (x.detach().to(dtype) @ weight.detach().to(dtype).t()).log_softmax(-1)
    for largest in (True, False):
        logprobs, ids = log_p.topk(K, largest=largest)
        loss = liger_topk_kl(x, weight, ids, logprobs.float())
        found = torch.autograd.grad(loss, (x, weight))
        bound = 16 * unit(torch.float32) * (1 + log_p.abs().max())
        assert loss.abs() <= bound
        for g, factor in zip(found, (weight, x)):
            assert g.abs().max() <= bound * factor.abs().max()


@pytest.mark.parametrize("far", [40.0, 90.0, 3000.0])
def test_a_student_who_knows_nothing_but_the_list(device, far):
    """s is e^-far and less than f32 has: log s and p/s keep their digits."""
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    ids = torch.arange(K, device=device).expand(ROWS, K)
    bias = torch.where(torch.arange(VOCAB, device=device) < K, bias.detach(), bias.detach() - far).requires_grad_()
    loss = liger_topk_kl(x, weight, ids, logprobs, bias, ignore_mask=mask)
    loss.backward()
    assert loss > far / 10
    check((x, weight, bias, ids, logprobs, mask), loss, torch.float32)


@pytest.mark.parametrize("far", [18.0, 60.0])
@pytest.mark.parametrize("rest", [1e-3, 1e-9, 1e-12])
def test_both_are_nearly_sure(device, rest, far):
    """r, which a logprob near 0 leaves, and s, some e^-far, keep their digits: 1 less what is listed would have none."""
    x, weight, *_ = problem(device, torch.float32)
    ids, logprobs = torch.zeros(ROWS, 1, dtype=torch.int64, device=device), torch.full((ROWS, 1), -rest, device=device)
    bias = torch.full((VOCAB,), -far, device=device)
    bias[0] = 0.0
    bias.requires_grad_()
    liger_topk_kl(x.detach(), weight.detach(), ids, logprobs, bias, reduction="sum").backward()
    _, (_, _, dbias), _ = exact(x, weight, bias, ids, logprobs, reduction="sum")
    logits = far + (x.detach() @ weight.detach().t()).abs().max()
    bound = (8 + ROWS + 4 * logits) * unit(torch.float32)  # of each row's softmax over the rest, and their sum
    assert ((bias.grad[1:].cpu().double() - dbias[1:]) / dbias[1:]).abs().max() <= bound


def test_layouts(device):
    """Views of larger tensors, transposed ones, ids of 32 bits, masks with strides."""
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    expected = liger_topk_kl(x, weight, ids, logprobs, bias, ignore_mask=mask)
    wide_ids = torch.full((ROWS, K + 5), 10**6, device=device)
    wide_ids[:, 2 : K + 2] = ids
    wide = torch.full((ROWS, K + 3), NAN, device=device)
    wide[:, 3:] = logprobs
    for some_ids in (wide_ids[:, 2 : K + 2], ids.int(), ids.t().contiguous().t()):
        for some in (wide[:, 3:], logprobs.t().contiguous().t()):
            every_other = torch.stack((mask, ~mask), 1)[:, 0]
            hidden = torch.cat((x, x), 1)[:, :HIDDEN]
            found = liger_topk_kl(hidden, weight, some_ids, some, bias, ignore_mask=every_other)
            assert torch.equal(found, expected)


def test_empty_places(device):
    x, weight, bias, ids, logprobs, _ = problem(device, torch.float32, k=7)
    expected = liger_topk_kl(x, weight, ids, logprobs, bias)
    none = torch.full((ROWS, 2), -1, device=device)
    padded = torch.cat((none[:, :1], ids, none), 1)
    for value in (0.0, -INF, NAN):
        more = torch.full((ROWS, 2), value, device=device)
        found = liger_topk_kl(x, weight, padded, torch.cat((more[:, :1], logprobs, more), 1), bias)
        assert (found - expected).abs() <= 16 * unit(torch.float32) * (1 + expected)
    nothing = liger_topk_kl(x, weight, none, torch.zeros(ROWS, 2, device=device), bias)
    nothing.backward()
    assert nothing == 0 and not x.grad.any() and not weight.grad.any() and not bias.grad.any()


def broken(device, spoil, row=6):
    """What becomes of a problem one of whose lists is spoilt: the loss, and which rows of dx are NaN."""
    x, weight, bias, ids, logprobs, _ = problem(device, torch.float32)
    spoil(ids[row], logprobs[row])
    loss = liger_topk_kl(x, weight, ids, logprobs, bias)
    loss.backward()
    nan = x.grad.isnan()
    assert torch.equal(nan.all(1), nan.any(1)) and weight.grad.isnan().all() == nan.any()
    return loss, nan.all(1).nonzero().flatten().tolist()


SPOILS = {
    "twice": lambda ids, logprobs: ids.__setitem__(3, ids[0]),
    "twice, of no probability": lambda ids, logprobs: (ids.__setitem__(3, ids[0]), logprobs.__setitem__(3, -INF)),
    "probabilities": lambda ids, logprobs: logprobs.copy_(logprobs.exp()),
    "logits": lambda ids, logprobs: logprobs.add_(30),
    "infinite": lambda ids, logprobs: logprobs.__setitem__(0, INF),
    "above 1": lambda ids, logprobs: logprobs.sub_(logprobs.logsumexp(0) - math.log(1.002)),
    "NaN": lambda ids, logprobs: logprobs.__setitem__(1, NAN),
}


@pytest.mark.parametrize("how", list(SPOILS))
def test_a_list_that_is_no_distribution(device, how):
    """Its row is NaN, compiled and transformed too, and no other."""
    loss, rows = broken(device, SPOILS[how])
    assert loss.isnan() and rows == [6]
    x, weight, bias, ids, logprobs, _ = problem(device, torch.float32)
    SPOILS[how](ids[6], logprobs[6])
    plain = torch.func.grad(lambda x: LigerTopKKLFunction.apply(x, weight.detach(), ids, logprobs))(x.detach())
    assert plain.isnan().all(1).nonzero().flatten().tolist() == [6]


def test_a_sum_above_1_by_rounding(device):
    def spoil(ids, logprobs):
        logprobs.sub_(logprobs.logsumexp(0) - math.log(1.0005))

    loss, rows = broken(device, spoil)
    assert loss.isfinite() and rows == []


def test_ids_out_of_range(device):
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    for wrong in (VOCAB, -2, 2**31 - 1):
        ids[6, 1] = wrong
        if device.type == "cpu":
            for call in (liger_topk_kl, torch.func.grad(liger_topk_kl)):
                with pytest.raises(
                    ValueError, match=r"topk_ids\[6, 1\] is .*out of bounds: it must be in \[0, 131\) or -1"
                ):
                    call(x.detach(), weight, ids, logprobs)
        else:
            (dx,) = torch.autograd.grad(liger_topk_kl(x, weight, ids, logprobs), x)
            assert dx.isnan().all(1).nonzero().flatten().tolist() == [6]
        skipped = mask.clone()
        skipped[6] = True
        assert liger_topk_kl(x, weight, ids, logprobs, ignore_mask=skipped).isfinite()


def test_ids_are_looked_at_where_one_debugs(device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("the CPU always looks")
    monkeypatch.setitem(module.is_debugging.__globals__["_environment"], b"LIGER_DEBUG", b"1")
    x, weight, _, ids, logprobs, _ = problem(device, torch.float32)
    ids[6, 1] = VOCAB
    with pytest.raises(ValueError, match=r"topk_ids\[6, 1\] is 131"):
        liger_topk_kl(x, weight, ids, logprobs)


def test_what_is_not_finite(device):
    """A student's probability of 0: nothing where the teacher's is 0 too, else an infinite loss."""
    x, weight, _, ids, logprobs, _ = problem(device, torch.float32, rows=5)
    ids, logprobs = ids[:1].expand(5, K).clone(), logprobs[:1].expand(5, K).clone()
    bias = torch.zeros(VOCAB, device=device)
    bias[ids[0, 1]] = -INF
    assert liger_topk_kl(x, weight, ids, logprobs, bias) == INF
    logprobs[:, 1] = -INF
    loss = liger_topk_kl(x, weight, ids, logprobs, bias)
    assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()
    twice = torch.cat((ids, ids[:, 1:2]), 1)
    assert liger_topk_kl(x, weight, twice, torch.cat((logprobs, logprobs[:, 1:2]), 1), bias).isnan()
    everything = torch.full((VOCAB,), -INF, device=device)
    everything[ids[0]] = 0.0
    assert liger_topk_kl(x, weight, ids, logprobs, everything) == INF  # a rest, and no id for it
    whole = logprobs.log_softmax(-1)
    loss = liger_topk_kl(x, weight, ids, whole, everything)
    plain = torch.func.grad(lambda x: liger_topk_kl(x, weight.detach(), ids, whole, everything))(x.detach())
    (dx,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and dx.isfinite().all() and (plain - dx).abs().max() <= 64 * unit(torch.float32)


@pytest.mark.parametrize("upstream", [1.0, INF, NAN])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_counts(device, dtype, rows, reduction, upstream):
    """No rows, or all of them ignored: zeros, whatever comes from above and whatever they hold."""
    x, weight, bias, ids, logprobs, _ = problem(device, dtype, rows=rows)
    ids, logprobs = ids + 10**6, logprobs * NAN
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    loss = liger_topk_kl(x, weight, ids, logprobs, bias, ignore_mask=mask, reduction=reduction)
    (loss * upstream).backward()
    assert loss == 0
    for t in (x, weight, bias):
        assert torch.equal(t.grad, torch.zeros_like(t))


def test_what_is_trained(device):
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)

    def apply(x, weight):
        return liger_topk_kl(x, weight, ids, logprobs, bias.detach(), ignore_mask=mask)

    distillation.what_is_trained(apply, module, "linear_topk_kl", x, weight, (8, 9))
    full = torch.autograd.grad(liger_topk_kl(x, weight, ids, logprobs, bias), bias)[0]
    alone = torch.autograd.grad(liger_topk_kl(x.detach(), weight.detach(), ids, logprobs, bias), bias)[0]
    assert torch.equal(full, alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_backwards(device, dtype):
    x, weight, bias, ids, logprobs, mask = problem(device, dtype)
    loss = liger_topk_kl(x, weight, ids, logprobs, bias, ignore_mask=mask)
    distillation.several_backwards(loss, (x, weight, bias))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast(device, autocast):
    """fp32 master weights and an fp32 teacher, products in 16 bits."""
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    with torch.autocast(device.type, dtype=autocast):
        loss = liger_topk_kl(x, weight, ids, logprobs, bias, ignore_mask=mask)
    loss.backward()
    low = [t.detach().to(autocast).float().requires_grad_() for t in (x, weight, bias)]
    for t, given in zip(low, (x, weight, bias)):
        t.grad = given.grad
        assert given.grad.dtype is torch.float32
    check((*low, ids, logprobs, mask), loss, autocast)


def test_small_gradients_of_many_tokens_survive_float16(device):
    """Divided by 4096 rows and 500 columns a gradient of the logits of 1e-3 would be below float16's subnormals."""
    rows, vocab = 4096, 500
    x = torch.full((rows, 8), 0.5, device=device).half().requires_grad_()
    weight = torch.zeros(vocab, 8, device=device).half().requires_grad_()
    ids, logprobs = torch.zeros(rows, 1, dtype=torch.int64, device=device), torch.zeros(rows, 1, device=device)
    loss = liger_topk_kl(x, weight, ids, logprobs, reduction="mean")
    loss.backward(torch.tensor(2.0**16, device=device))
    expected = 2.0**16 * 0.5 / vocab / vocab
    assert (weight.grad[1:].double() / expected - 1).abs().max() <= 3 * unit(torch.float16)


def test_the_plain_formula(device):
    """What runs under transforms: the same values and gradients."""
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    for reduction in ("batchmean", "mean", "sum"):
        given = (ids, logprobs, bias, mask, reduction, 2.0)
        loss = LigerTopKKLFunction.apply(x, weight, *given)
        plain = LigerTopKKLFunction.torch_forward(x, weight, *given)
        scale = unit(torch.float32) * 64 * (ROWS if reduction == "sum" else 1)
        assert (loss - plain).abs() <= scale * (1 + loss.abs())
        for a, b in zip(*(torch.autograd.grad(t, (x, weight, bias)) for t in (loss, plain))):
            assert (a - b).abs().max() <= scale * (1 + b.abs().max())


def test_compiled(device):
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    expected = liger_topk_kl(x, weight, ids, logprobs, bias, ignore_mask=mask)
    gradients = torch.autograd.grad(expected, (x, weight, bias))
    torch._dynamo.reset()
    compiled = torch.compile(liger_topk_kl, fullgraph=True, backend="aot_eager")
    found = compiled(x, weight, ids, logprobs, bias, ignore_mask=mask)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, torch.autograd.grad(found, (x, weight, bias)), gradients))


CHUNKS = """
import distillation, sys, torch
from liger_kernel.ops import LigerTopKKLFunction as F
import liger_kernel.ops.topk_kl as m
def others(x):
    lp, ids = torch.randn(700, 2051, device=x.device).log_softmax(-1).topk(70)
    return ids, lp
mask = torch.arange(700, device=sys.argv[1]) % 9 == 0
x, w = distillation.save_each(lambda x, w: F.apply(x, w, *others(x), None, mask, "batchmean", 2.0))
print(m._native.linear_topk_kl_chunk_rows(x, w, None, *others(x), *(None,) * 6, -100, 1.0, 0, 0))
"""


def test_several_chunks(device, tmp_path):
    distillation.chunks_of_any_size(CHUNKS, device, tmp_path)


MEMORY = """
import peak_memory, sys, torch
from liger_kernel.ops import LigerTopKKLFunction as F
V, H, N, K = 32768, 64, 2048, 64
x = torch.randn(N, H, device=sys.argv[1]).bfloat16().requires_grad_()
w = (.2 * torch.randn(V, H, device=sys.argv[1])).bfloat16().requires_grad_()
ids = torch.arange(K, device=sys.argv[1]).expand(N, K).contiguous()
lp = torch.full((N, K), -5.0, device=sys.argv[1])
F.apply(x[:8], w[:64], ids[:8], lp[:8]).backward()
x.grad = w.grad = None
peak_memory.tell(sys.argv[1], lambda: F.apply(x, w, ids, lp).backward())
"""


def test_memory(device):
    """The logits of all rows would be 128 MB; what is made is the weight's gradient, its f32 sum, and the budget."""
    peak = peak_memory.told(MEMORY, device.type, LIGER_LOSS_WORKSPACE_MB="16")
    head = 32768 * 64 / 2**20
    assert peak < 2 * head + 4 * head + 16 + 32 * (device.type == "cuda") + 8


def test_module(device):
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    loss = LigerTopKKLLoss(2.0, "sum")
    assert repr(loss) == "LigerTopKKLLoss(temperature=2.0, reduction=sum)"
    expected = LigerTopKKLFunction.apply(x, weight, ids, logprobs, bias, mask, "sum", 2.0)
    assert torch.equal(loss(x, weight, ids, logprobs, bias, ignore_mask=mask), expected)
    teacher = logprobs.clone().requires_grad_()
    loss(x, weight, ids, teacher, bias, ignore_mask=mask).backward()
    assert teacher.grad is None and x.grad is not None


def test_what_is_refused(device):
    x, weight, bias, ids, logprobs, mask = problem(device, torch.float32)
    wrong = {
        "temperature is 0": dict(temperature=0.0),
        "temperature is -1": dict(temperature=-1.0),
        "temperature is nan": dict(temperature=NAN),
        "reduction must be one of": dict(reduction="none"),
        "ignore_mask is torch.int64": dict(ignore_mask=mask.long()),
        "ignore_mask has shape": dict(ignore_mask=mask[1:]),
        "topk_ids is torch.int16": dict(topk_ids=ids.short()),
        "topk_ids has shape": dict(topk_ids=ids[1:]),
        r"topk_ids has shape \(37, 0\), but must have 1 id or more": dict(
            topk_ids=ids[:, :0], topk_logprobs=logprobs[:, :0]
        ),
        "topk_ids has 1 dimensions": dict(topk_ids=ids[0]),
        "topk_logprobs has shape": dict(topk_logprobs=logprobs[:, 1:]),
        "topk_logprobs is torch.float64": dict(topk_logprobs=logprobs.double()),
        "weight has shape": dict(weight=weight[:, 1:]),
        "bias has shape": dict(bias=bias[1:]),
    }
    given = dict(hidden=x, weight=weight, topk_ids=ids, topk_logprobs=logprobs, bias=bias)
    for words, change in wrong.items():
        for call in (
            liger_topk_kl,
            lambda **given: torch.func.grad(lambda x: liger_topk_kl(x, **given))(given.pop("hidden")),
        ):
            with pytest.raises(ValueError, match=words):
                call(**{**given, **change})
    for options in (dict(temperature=0), dict(reduction="none")):
        with pytest.raises(ValueError):
            LigerTopKKLLoss(**options)


@pytest.mark.parametrize("logprob", [-95.0, -1e4, -3e38, -INF])
@pytest.mark.parametrize("by_torch", [False, True])
def test_what_a_teacher_masks_by_a_large_number(device, monkeypatch, logprob, by_torch):
    """Its q is 0, and so is what the student's probability of 0 is multiplied by."""
    monkeypatch.setattr(LigerTopKKLFunction, "_plain_torch", by_torch)
    x, weight = torch.ones(1, 1, device=device), torch.tensor([[1.0], [2.0], [3.0], [0.5]], device=device)
    bias = torch.tensor([-INF, 0.0, 0.0, 0.0], device=device)
    ids, logprobs = torch.tensor([[0, 2]], device=device), torch.tensor([[logprob, -0.1]], device=device)
    q, p = math.exp(-0.1), torch.tensor([1.0, 2.0, 3.0, 0.5]).add(bias.cpu()).double().softmax(0)
    exact = q * (-0.1 - p[2].log()) + (1 - q) * ((1 - q) / (p[1] + p[3])).log()
    assert liger_topk_kl(x, weight, ids, logprobs, bias).item() == pytest.approx(exact.item(), rel=1e-5)
