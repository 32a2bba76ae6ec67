"""Heads on a CPU whose logits take the place of the weight's gradient: values, gradients, memory, and where they do not."""

from __future__ import annotations

import peak_memory
import pytest
import torch
import torch.nn.functional as F
from reference import assert_close, twins

from liger_kernel import _native
from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction, LigerFusedLinearKLDivFunction
from liger_kernel.ops import linear_logprob as logprob_module
from liger_kernel.ops.topk_kl import LigerTopKKLFunction
from liger_kernel.transformers.functional import liger_linear_logprob

ROWS, HIDDEN, VOCAB = 56, 64, 150000  # 34 MB in f32: three slices
NO_DIVISOR = 149993  # a prime number


def head(dtype=torch.float32, vocab=VOCAB, rows=ROWS):
    torch.manual_seed(0)
    x = torch.randn(rows, HIDDEN).to(dtype).requires_grad_()
    weight = (0.2 * torch.randn(vocab, HIDDEN)).to(dtype).requires_grad_()
    target = torch.randint(0, vocab, (rows,))
    target[1::7] = -100
    return x, weight, target


def cross_entropy(x, weight, target):
    return LigerFusedLinearCrossEntropyFunction.apply(x, weight, target)[0]


def plain_cross_entropy(x, weight, target):
    return F.cross_entropy(x @ weight.t(), target)


def teacher(x, weight, target):
    return torch.full((x.shape[0], weight.shape[0]), 1 / weight.shape[0]).to(x.dtype)


def kl(x, weight, target):
    return LigerFusedLinearKLDivFunction.apply(x, weight, teacher(x, weight, target), target)


def plain_kl(x, weight, target):
    counts = target != -100
    log_p = (x @ weight.t()).log_softmax(-1)[counts]
    return F.kl_div(log_p, torch.full_like(log_p, 1 / weight.shape[0]), reduction="sum") / counts.sum()


def top_ids(x):
    return torch.arange(5).repeat(x.shape[0], 1), torch.full((x.shape[0], 5), 0.1).log()


def topk(x, weight, target):
    return LigerTopKKLFunction.apply(x, weight, *top_ids(x), None, target == -100)


def plain_topk(x, weight, target):
    counts = target != -100
    log_p = (x @ weight.t()).log_softmax(-1)[counts]
    rest, of_rest = torch.tensor(0.5, dtype=x.dtype), torch.log1p(-log_p[:, :5].exp().sum(-1))
    listed = (0.1 * (torch.tensor(0.1, dtype=x.dtype).log() - log_p[:, :5])).sum(-1)
    return (listed + rest * (rest.log() - of_rest)).sum() / counts.sum()


LOSSES = {
    "linear_cross_entropy_forward": (cross_entropy, plain_cross_entropy),
    "linear_kl_div": (kl, plain_kl),
    "linear_topk_kl": (topk, plain_topk),
}


def advised(monkeypatch, name):
    """The chunks that are asked for from here on."""
    answers = []
    ask = getattr(_native, f"{name}_chunk_rows")
    monkeypatch.setattr(_native, f"{name}_chunk_rows", lambda *args: answers.append(ask(*args)) or answers[-1])
    return answers


@pytest.mark.parametrize("rows, vocab", [(ROWS, VOCAB), (HIDDEN, VOCAB), (ROWS, NO_DIVISOR)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, rows, vocab, monkeypatch):
    """As many rows as hidden: each slice of the gradient ends where the next one's logits begin."""
    chunks = advised(monkeypatch, name)
    loss, plain = LOSSES[name]
    x, weight, target = head(vocab=vocab, rows=rows)
    value = loss(x, weight, target)
    value.backward()
    assert (chunks == [0]) is (vocab == VOCAB)
    wide = twins(x, weight, target)
    expected = plain(*wide)
    expected.backward()
    assert_close(value, expected, torch.float32, 8, vocab)
    assert_close(x.grad.flatten(), wide[0].grad.flatten(), torch.float32, 8, vocab)
    assert_close(weight.grad.flatten(), wide[1].grad.flatten(), torch.float32, 8, HIDDEN + vocab)


def test_a_bias():
    x, weight, target = head()
    bias = torch.randn(VOCAB, requires_grad=True)
    LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, bias)[0].backward()
    wide = twins(x, weight, bias)
    F.cross_entropy(F.linear(*wide), target).backward()
    for found, expected in zip((x, weight, bias), wide):
        assert_close(found.grad.flatten(), expected.grad.flatten(), torch.float32, 8, HIDDEN + VOCAB)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_in_16_bits(name, dtype, monkeypatch):
    """In as many bits as with a buffer: a product is rounded to the same value wherever it lies."""
    loss, vocab, results = LOSSES[name][0], 2 * VOCAB, []
    for chunk in (0, ROWS):
        chunks = advised(monkeypatch, name) if chunk == 0 else None
        if chunk:
            monkeypatch.setattr(_native, f"{name}_chunk_rows", lambda *_: ROWS)
        x, weight, target = head(dtype, vocab)
        value = loss(x, weight, target)
        value.backward()
        results.append((value, x.grad, weight.grad))
        assert chunks is None or chunks == [0]
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize(
    "rows, vocab, frozen", [(HIDDEN + 1, VOCAB, False), (ROWS, 1000, False), (ROWS, VOCAB, True)],
    ids=["more rows than hidden", "few logits", "frozen"],
)  # fmt: skip
def test_where_there_is_a_buffer(rows, vocab, frozen, monkeypatch):
    chunks = advised(monkeypatch, "linear_cross_entropy_forward")
    x, weight, target = head(vocab=vocab, rows=rows)
    cross_entropy(x, weight.requires_grad_(not frozen), target).backward()
    assert chunks[0] > 0


def test_a_call_without_a_buffer_that_needs_one():
    """What the library says, to whoever calls it without asking."""
    x, weight, target = head(rows=HIDDEN + 1, vocab=100)
    x, weight = x.detach(), weight.detach()
    results = (_native.Wish.SCALAR, None, None, None, torch.empty_like(x), torch.empty_like(weight), None, None)
    options = (-100, 0.0, 0.0, 0.0, 1, 0, 0, _native.Wish.SCRATCH)
    with pytest.raises(ValueError, match="logits is required"):
        _native.linear_cross_entropy_forward(x, weight, None, target, None, None, None, *results, *options)


# ---- kept for backward -------------------------------------------------------------------------------------------------


def are_in_dweight(value) -> bool:
    return value.grad_fn.in_dweight


@pytest.mark.parametrize("rows, vocab", [(ROWS, VOCAB), (HIDDEN, VOCAB), (ROWS, NO_DIVISOR), (ROWS, 200)])
def test_log_probabilities(rows, vocab):
    x, weight, target = head(vocab=vocab, rows=rows)
    value = liger_linear_logprob(x, weight, target)
    assert are_in_dweight(value) is (vocab != NO_DIVISOR)
    up = torch.randn_like(value)
    value.backward(up)
    wide = twins(x, weight)
    log_p = (wide[0] @ wide[1].t()).log_softmax(-1)
    expected = torch.where(target >= 0, log_p.gather(-1, target.clamp(min=0)[:, None])[:, 0], 0)
    expected.backward(up.double())
    assert_close(value, expected, torch.float32, 8, vocab)
    assert_close(x.grad.flatten(), wide[0].grad.flatten(), torch.float32, 8, vocab)
    assert_close(weight.grad.flatten(), wide[1].grad.flatten(), torch.float32, 8, HIDDEN + vocab)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "temperature": 0.7}, {"valid_rows": HIDDEN}], ids=str)
def test_what_memory_of_their_own_gives(options, monkeypatch):
    """All outputs and a bias, to the bit."""
    results = []
    for in_dweight in (True, False):
        if not in_dweight:
            monkeypatch.setattr(logprob_module, "_fits_dweight", lambda *_: False)
        x, weight, target = head(rows=HIDDEN)
        bias = torch.linspace(-1, 1, VOCAB).requires_grad_()
        outputs = logprob_module.OUTPUTS[:4]
        found = liger_linear_logprob(
            x, weight, target, bias, selected_token_ids=torch.tensor([3, 70000, 149999]), outputs=outputs, **options
        )
        assert are_in_dweight(found[0]) is in_dweight
        sum(f.sum() for f in found).backward()
        results.append([*found, x.grad, weight.grad, bias.grad])
    assert all(map(torch.equal, *results))


def test_the_gradient_is_that_memory():
    x, weight, target = head(vocab=200)
    value = liger_linear_logprob(x, weight, target)
    kept = value.grad_fn.saved_tensors[-1].data_ptr()
    value.sum().backward()
    assert weight.grad.data_ptr() == kept and weight.grad.shape == weight.shape


def test_a_second_backward():
    """The first ones must leave the logits, and make them again; the last one may take them."""
    x, weight, target = head(vocab=200)
    value = liger_linear_logprob(x, weight, target)
    found = [torch.autograd.grad(value.sum(), (x, weight), retain_graph=again) for again in (True, True, False)]
    assert all(map(torch.equal, found[0], found[1]))
    for first, last in zip(found[0], found[2]):
        assert_close(last.flatten(), first.double().flatten(), torch.float32, 4, 200)


def test_no_row_that_counts():
    """The caller has bounded them from above, so memory waits."""
    x, weight, target = head(vocab=200)
    value = liger_linear_logprob(x, weight, torch.full_like(target, -100), valid_rows=40)
    assert are_in_dweight(value)
    value.sum().backward()
    assert x.grad.eq(0).all() and weight.grad.eq(0).all()


@pytest.mark.parametrize("rows, frozen", [(ROWS, True), (HIDDEN // 2 - 1, False)], ids=["frozen", "few rows"])
def test_logits_with_memory_of_their_own(rows, frozen):
    """Few logits would have memory of the weight's size wait for backward."""
    x, weight, target = head(vocab=200, rows=rows)
    target[:] = 1
    value = liger_linear_logprob(x, weight.requires_grad_(not frozen), target)
    assert not are_in_dweight(value) and value.grad_fn.saved_tensors[-1].shape == (rows, 200)


@pytest.mark.parametrize("where, given, says", [(1, False, "logits is required"), (2, True, "logits must be absent")])
def test_what_must_not_be_taken_for_logits(where, given, says):
    """logits_kept: neither a dweight that nobody filled, nor a buffer beside one that is named."""
    x, weight, target = (t.detach() for t in head(vocab=200))
    logits = torch.empty(ROWS, 200) if given else None
    known = (torch.zeros(ROWS), torch.zeros(ROWS, 2), None, None)
    upstreams = (torch.zeros(ROWS), *(None,) * 5)
    gradients = (None, torch.empty_like(weight), None)
    with pytest.raises(ValueError, match=says):
        _native.linear_logprob_backward(
            x, weight, None, target, None, logits, *known, *upstreams, *gradients, -100, -1, 1.0, 0.0, 1.0, where,
            _native.Wish.SCRATCH,
        )  # fmt: skip


# ---- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
import peak_memory, sys, torch
from liger_kernel.chunked_loss import LigerFusedLinearORPOLoss
from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction
from liger_kernel.transformers.functional import liger_linear_logprob
call, dtype = {"loss": (lambda *head: LigerFusedLinearCrossEntropyFunction.apply(*head)[0], torch.bfloat16),
               "log p": (lambda *head: liger_linear_logprob(*head).sum(), torch.float32),
               "ORPO": (lambda x, w, y: LigerFusedLinearORPOLoss()(w, x.view(2, -1, 256), y.view(2, -1))[0],
                        torch.float32)}[sys.argv[1]]
x, w = (torch.randn(n, 256, dtype=dtype, requires_grad=True) for n in (256, 131072))
y = torch.arange(256)
call(x[:8], w[:4096], y[:8]).backward()  # sets everything up
x.grad = w.grad = None
peak_memory.tell("cpu", lambda: call(x, w, y).backward())
"""


@pytest.mark.parametrize("what, weight", [("loss", 64), ("log p", 128), ("ORPO", 128)])
def test_memory(what, weight):
    """The logits would be as large as the weight. Beside its gradient there are a slice of 16 MB and what the products take."""
    assert weight < peak_memory.told(MEMORY, what) < weight + 16 + 28
