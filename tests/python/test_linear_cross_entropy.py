"""Fused linear cross entropy against float64: every option, every choice of what is trained, one chunk and several."""

from __future__ import annotations

import own_process
import peak_memory
import pytest
import reference
import torch
from reference import DTYPES, assert_close

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.ops.fused_linear_cross_entropy import (
    COMPUTE,
    LigerFusedLinearCrossEntropyFunction,
    fused_linear_cross_entropy_backward,
    fused_linear_cross_entropy_forward,
)

ROWS, HIDDEN, VOCAB = 37, 24, 131
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z": {"lse_square_scale": 1e-2},
    "softcap": {"softcap": 3.0},
    "class weights": {"ce_weight": True},
    "token scaling": {"use_token_scaling": True},
    "all": {"label_smoothing": 0.1, "lse_square_scale": 1e-2, "softcap": 3.0, "ce_weight": True,
            "use_token_scaling": True},
}  # fmt: skip


def problem(device, dtype, rows=ROWS, bias=True):
    x = torch.randn(rows, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    b = torch.randn(VOCAB, device=device).to(dtype).requires_grad_() if bias else None
    target = torch.randint(0, VOCAB, (rows,), device=device)
    target[1::7] = -100
    return x, weight, b, target


def apply(x, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0,
          reduction="mean", softcap=None, accum_dtype=None, use_token_scaling=False, extras=False):  # fmt: skip
    return LigerFusedLinearCrossEntropyFunction.apply(
        x, weight, target, bias, ce_weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap, extras,
        accum_dtype, use_token_scaling, extras, extras,
    )  # fmt: skip


def exact(x, weight, target, bias=None, ce_weight=None, use_token_scaling=False, **options):
    """Reference results, and the twins whose .grad will hold the reference gradients."""
    x, weight, bias, ce_weight = reference.twins(x, weight, bias, ce_weight)
    logits = x @ weight.t() if bias is None else x @ weight.t() + bias
    return reference.cross_entropy(logits, target, ce_weight, token_scaling=use_token_scaling, **options), (
        x,
        weight,
        bias,
    )


def logits_error(dtype: torch.dtype) -> float:
    """In units of dtype's rounding: logits of size up to 8 are rounded to dtype, and so are their gradients and bias. An
    absolute error of 8 u in a logit is a relative one of 8 u in its probability; the rest is for the roundings after it."""
    return 8 + 4


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, reduction, options):
    x, weight, bias, target = problem(device, dtype)
    options = dict(options, reduction=reduction)
    if options.get("ce_weight"):
        options["ce_weight"] = torch.rand(VOCAB, device=device) + 0.1
    results = apply(x, weight, target, bias, extras=True, **options)
    upstream = torch.randn_like(results[0])
    results[0].backward(upstream)
    expected, twins = exact(x, weight, target, bias, **options)
    expected[0].backward(upstream.cpu().double())
    allowed = logits_error(dtype)
    assert results[0].dtype is torch.float32 and results[1].dtype is dtype
    for result, value in zip(results[:2], expected[:2]):
        assert_close(result, value, dtype, allowed, HIDDEN)
    assert results[2].dtype is torch.float32 and results[3].dtype is torch.int64
    if dtype is torch.float32:
        assert_close(results[2], expected[2], dtype, 1)
        assert torch.equal(results[3].cpu(), expected[3])
    for given, twin in zip((x, weight, bias), twins):
        assert given.grad.dtype is dtype
        # a row of dweight is a sum over tokens whose terms cancel: measured against the largest of the whole matrix
        assert_close(given.grad.flatten(), twin.grad.flatten(), dtype, allowed, VOCAB)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), ()])
def test_what_is_trained(device, reduction, trained, monkeypatch):
    """A gradient that nobody asked for has no buffer; the others do not depend on it."""
    import liger_kernel.ops.fused_linear_cross_entropy as module

    x, weight, bias, target = problem(device, torch.float32)
    everything = apply(x, weight, target, bias, reduction=reduction)[0]
    upstream = torch.randn_like(everything)
    full = torch.autograd.grad(everything, (x, weight, bias), upstream)

    buffers = []
    native = module._native.linear_cross_entropy_forward

    def spy(*args):
        buffers.append([args[i] is not None and args[i] is not Wish.NOTHING for i in (11, 12, 13)])
        return native(*args)

    monkeypatch.setattr(module._native, "linear_cross_entropy_forward", spy)
    tensors = [t.detach().requires_grad_(i in trained) for i, t in enumerate((x, weight, bias))]
    loss = apply(tensors[0], tensors[1], target, tensors[2], reduction=reduction)[0]
    assert loss.requires_grad is bool(trained)
    if trained:
        loss.backward(upstream)
    wanted = [i in trained for i in range(3)]
    nothing = [False] * 3
    assert buffers == ([nothing, wanted] if reduction == "none" and trained else [wanted])
    for i, t in enumerate(tensors):
        assert (t.grad is None) if i not in trained else torch.equal(t.grad, full[i])
    with torch.no_grad():
        buffers.clear()
        assert not apply(x, weight, target, bias, reduction=reduction)[0].requires_grad
        assert buffers == [nothing]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accum_dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_accum_dtype(device, dtype, accum_dtype):
    x, weight, bias, target = problem(device, dtype)
    loss = apply(x, weight, target, bias, accum_dtype=accum_dtype)[0]
    loss.backward()
    expected, twins = exact(x, weight, target, bias)
    expected[0].backward()
    for given, twin in zip((x, weight, bias), twins):
        assert given.grad.dtype is dtype
        assert_close(given.grad.flatten(), twin.grad.flatten(), dtype, logits_error(dtype), VOCAB)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("accum_dtype", [None, torch.float32])
def test_autocast(device, autocast, bias, reduction, accum_dtype):
    """fp32 master weights; backward outside of the autocast block computes as forward did."""
    x, weight, b, target = problem(device, torch.float32, bias=bias)
    with torch.autocast(device.type, dtype=autocast):
        loss = apply(x, weight, target, b, reduction=reduction, accum_dtype=accum_dtype)[0]
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    low = [None if t is None else t.detach().to(autocast).float().requires_grad_() for t in (x, weight, b)]
    expected, twins = exact(low[0], low[1], target, low[2], reduction=reduction)
    expected[0].backward(upstream.cpu().double())
    for given, twin in zip((x, weight, b), twins):
        if given is not None:
            assert given.grad.dtype is torch.float32
            assert_close(given.grad.flatten(), twin.grad.flatten(), autocast, logits_error(autocast), VOCAB)


def test_small_probabilities_of_many_tokens_survive_float16(device):
    """1/rows of a probability of 1e-4 is below float16's subnormals for 2^17 rows; 2^11 rows lose all but two bits."""
    rows = 2048
    x = torch.full((rows, 8), 0.5, device=device).half().requires_grad_()
    weight = torch.zeros(5000, 8, device=device).half().requires_grad_()
    apply(x, weight, torch.zeros(rows, dtype=torch.int64, device=device))[0].backward()
    exact_element = 0.5 / 5000
    assert_close(weight.grad[1:], torch.full((4999, 8), exact_element), torch.float16, 2, rows)


@pytest.mark.parametrize("target_dtype", [torch.int32, torch.int64])
def test_ignored_targets_may_be_anything(device, target_dtype):
    x, weight, bias, target = problem(device, torch.float32)
    plain = apply(x, weight, target, bias)[0]
    far = torch.where(target == -100, 10**9, target).to(target_dtype)
    assert torch.equal(plain, apply(x, weight, far, bias, ignore_index=10**9)[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn(device, reduction, rows):
    """No rows, or all of them ignored: zero gradients of the right shape."""
    x, weight, bias, _ = problem(device, torch.float32, rows=rows)
    target = torch.full((rows,), -100, device=device)
    loss, z, accuracy, predicted = apply(x, weight, target, bias, reduction=reduction, extras=True)
    loss.sum().backward()
    assert loss.shape == ((rows,) if reduction == "none" else ()) and not loss.any() and not z.any()
    assert (predicted == -1).all() and (rows > 0 or not accuracy.any())
    for t in (x, weight, bias):
        assert t.grad.shape == t.shape and not t.grad.any()


@pytest.mark.parametrize("upstream", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("classes", [(0.0, 0.0, 1.0, 2.0), (1.0, -1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_factor_reaches_ignored_rows(device, dtype, classes, upstream):
    """Weights of the targets that add up to 0 leave a mean without a value; an upstream may be no number either."""
    x = torch.randn(6, 8, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(4, 8, dtype=dtype, device=device, requires_grad=True)
    target = torch.tensor([0, -100, 1, 0, -100, 1], device=device)
    class_weight = torch.tensor(classes, device=device)
    loss = LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, None, class_weight)[0]
    (loss * upstream).backward()
    finite = sum(classes[:2]) != 0 and upstream == 1.0
    assert (x.grad[target == -100] == 0).all()
    for gradient in (x.grad[target != -100], weight.grad):
        assert bool(gradient.isfinite().all()) is finite and bool(gradient.isfinite().any()) is finite


@pytest.mark.parametrize("way", ["eager", "compiled", "operator"])
@pytest.mark.parametrize("upstream", [float("inf"), float("-inf"), float("nan"), 3.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_upstream_reaches_a_batch_of_ignored_rows(device, dtype, reduction, upstream, way):
    """Nothing of the weight and the bias has a part in such a loss: their gradients are zeros, as x's are."""
    x = torch.randn(5, 16, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(9, 16, dtype=dtype, device=device, requires_grad=True)
    bias = torch.randn(9, dtype=dtype, device=device, requires_grad=True)
    given = (x, weight, torch.full((5,), -100, device=device), bias)
    factor = torch.tensor(upstream, device=device)
    options = (None, -100, 0.0, 0.0, reduction)
    if way == "operator":
        numbers = (-100, 0.0, 0.0, ["mean", "sum"].index(reduction) + 1, 0.0, False, COMPUTE.index(dtype), False)
        torch.ops.liger.linear_cross_entropy(
            x, weight, given[2], bias, None, None, *numbers, False, False, False, True, True, True
        )[0].backward(factor)
    elif way == "compiled":
        torch.compiler.reset()
        head = torch.compile(
            lambda *given: LigerFusedLinearCrossEntropyFunction.apply(*given, *options)[0], backend="aot_eager"
        )
        head(*given).backward(factor)
    else:
        LigerFusedLinearCrossEntropyFunction.apply(*given, *options)[0].backward(factor)
    for t in (x, weight, bias):
        assert torch.equal(t.grad, torch.zeros_like(t))


def test_out_of_range_target(device):
    x, weight, bias, target = problem(device, torch.float32)
    target[30] = VOCAB
    if device.type == "cpu":
        with pytest.raises(AssertionError, match=rf"30.*{VOCAB}.*out of bounds"):
            apply(x, weight, target, bias)
        return
    losses = apply(x, weight, target, bias, reduction="none")[0]
    losses.sum().backward()
    bad = torch.arange(ROWS, device=device) == 30
    assert torch.equal(losses.isnan(), bad) and torch.equal(x.grad.isnan().any(-1), bad)
    assert weight.grad.isnan().any() and bias.grad.isnan().any()


SEVERAL_CHUNKS = """
import os, sys, torch
from liger_kernel import _native
from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as F
torch.manual_seed(0)
device = sys.argv[1]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    x = torch.randn(700, 16, device=device).to(dtype).requires_grad_()
    w = (.2 * torch.randn(2051, 16, device=device)).to(dtype).requires_grad_()
    b = torch.randn(2051, device=device).to(dtype).requires_grad_()
    y = torch.randint(0, 2051, (700,), device=device); y[::9] = -100
    c = torch.rand(2051, device=device)
    for reduction in ("mean", "none"):
        loss = F.apply(x, w, y, b, c, -100, 1e-3, .1, reduction, 5.0)[0]
        up = torch.linspace(-1, 1, 700, device=device) if reduction == "none" else torch.tensor(.5, device=device)
        grads = torch.autograd.grad(loss, (x, w, b), up)
        torch.save([loss, *grads], f"{sys.argv[2]}/{str(dtype)[6:]}-{reduction}.pt")
import liger_kernel.ops.fused_linear_cross_entropy as m
none = (None,) * 9
rows = m._native.linear_cross_entropy_forward_chunk_rows(x, w, b, y, None, None, *none, -100, 0., 0., 0., 1, 0, 0)
print(rows)
"""


def test_several_chunks(device, tmp_path):
    """The budget for logits is read when the library is set up, so each budget has a process of its own."""
    rows = {}
    for budget in ("1", "1024"):
        (tmp_path / budget).mkdir()
        program = ("-c", SEVERAL_CHUNKS, device.type, tmp_path / budget)
        rows[budget] = int(own_process.output(*program, LIGER_LOSS_WORKSPACE_MB=budget))
    assert rows["1"] < 700 <= rows["1024"]
    for name in ("float32", "bfloat16", "float16"):
        for reduction in ("mean", "none"):
            few, many = (torch.load(tmp_path / b / f"{name}-{reduction}.pt") for b in ("1", "1024"))
            for a, b in zip(few, many):
                assert_close(a.flatten(), b.flatten(), getattr(torch, name), 2, 700)


TWO_PASSES = """
import peak_memory, sys, torch
from liger_kernel import _native
from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as F
import liger_kernel.ops.fused_linear_cross_entropy as m
torch.manual_seed(0)
V, H, N = 65536, 256, 512
x = torch.randn(N, H, device=sys.argv[1]).bfloat16().requires_grad_()
w = (.2 * torch.randn(V, H, device=sys.argv[1])).bfloat16().requires_grad_()
b = torch.randn(V, device=sys.argv[1]).bfloat16().requires_grad_()
y = torch.randint(0, V, (N,), device=sys.argv[1]); y[::9] = -100
c = torch.rand(V, device=sys.argv[1])
if sys.argv[2] == "memory":
    F.apply(x[:8], w[:64], y[:8] % 64)[0].backward()  # sets everything up
    x.grad = w.grad = None
    peak_memory.tell(sys.argv[1], lambda: F.apply(x, w, y)[0].backward())
else:
    results = []
    for reduction in ("mean", "sum", "none"):
        up = torch.linspace(-1, 1, N, device=x.device) if reduction == "none" else torch.tensor(.5, device=x.device)
        loss, z_loss, *_ = F.apply(x, w, y, b, c, -100, 1e-3, .1, reduction, 5.0, True, None, True)
        results += [loss, z_loss, *torch.autograd.grad(loss, (x, w, b), up)]
    for frozen in (x, w, b):
        frozen.requires_grad_(False)
        wanted = [t for t in (x, w, b) if t.requires_grad]
        results += torch.autograd.grad(F.apply(x, w, y, b)[0], wanted)
        frozen.requires_grad_(True)
    torch.save(results, sys.argv[2])
    options = (x, w, b, y, None, None, *(None,) * 9, -100, 0., 0., 0., 1, 0, 0)
    print(m._native.linear_cross_entropy_forward_slice_cols(*options) < V)
"""


def test_two_passes(device, tmp_path):
    """A budget that does not hold the f32 sum of the weight's gradient, 64 MB, nor the logits, as many."""
    few, many = [], []
    for results, budget, two in ((few, "40", "True"), (many, "1024", "False")):
        program = ("-c", TWO_PASSES, device.type, str(tmp_path / budget))
        assert own_process.output(*program, LIGER_LOSS_WORKSPACE_MB=budget).split()[-1] == two
        results += torch.load(tmp_path / budget)
    assert len(few) == len(many) == 3 * 5 + 3 * 2
    for a, b in zip(few, many):
        assert_close(a.float().flatten(), b.float().flatten(), torch.bfloat16, 2, 512)


def test_a_frozen_head_plans_no_sum(device, monkeypatch):
    """Logits of all rows may take what an f32 sum of the head's gradient would, or the place of that gradient (0). Without it
    there is neither."""
    advised = []
    ask = _native.linear_cross_entropy_forward_chunk_rows
    monkeypatch.setattr(_native, "linear_cross_entropy_forward_chunk_rows",
                        lambda *args: advised.append(ask(*args)) or advised[-1])  # fmt: skip
    x = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(32768, 1024, device=device, dtype=torch.bfloat16)
    for frozen in (False, True):
        apply(x, weight.requires_grad_(not frozen), torch.arange(1024, device=device))
    assert advised[0] == (1024 if device.type == "cuda" else 0) and (0 < advised[1] < 1024 or device.type == "cuda")


def test_memory_of_two_passes(device):
    """The weight's gradient, that of x, and the budget; a budget that allows it takes all logits at once. The least that a GPU
    takes is 16 MB for its products and 16 for 128 rows of logits."""
    peaks, small = [], 40
    for budget in (str(small), "1024"):
        peaks.append(peak_memory.told(TWO_PASSES, device.type, "memory", LIGER_LOSS_WORKSPACE_MB=budget))
    gradients = (65536 + 512) * 256 * 2 / 2**20
    assert peaks[0] < gradients + small + 1 and peaks[1] > gradients + 60


def test_helpers(device):
    x, weight, bias, target = problem(device, torch.float32)
    loss, z, accuracy, predicted, *gradients = fused_linear_cross_entropy_forward(x, weight, target, None, bias)
    assert (z, accuracy, predicted) == (None, None, None)
    expected = torch.autograd.grad(apply(x, weight, target, bias)[0], (x, weight, bias))
    assert all(map(torch.equal, gradients, expected))
    kept = [g.clone() for g in gradients]
    for _ in range(2):
        scaled = fused_linear_cross_entropy_backward(torch.tensor(2.0, device=device), *gradients)
        assert all(torch.equal(s, 2 * k) for s, k in zip(scaled, kept))
    assert all(map(torch.equal, gradients, kept))
    # the overrides, and an upstream of each token
    upstream = torch.randn(ROWS, device=device)
    results = fused_linear_cross_entropy_forward(
        x.detach(), weight.detach(), target, None, bias.detach(), reduction="none", token_grad_output=upstream,
        compute_gradients=True, weight_requires_grad=False,
    )  # fmt: skip
    expected = torch.autograd.grad(apply(x, weight, target, bias, reduction="none")[0], x, upstream)
    assert torch.equal(results[4], expected[0]) and results[5] is None and results[6] is None


def test_memory_of_frozen_and_trained_heads(device):
    """Without a gradient of the weight nothing of its size is allocated; with one, it is the only thing that is kept."""
    if device.type != "cuda":
        pytest.skip("torch counts allocations on CUDA only")
    x = torch.randn(1024, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(65536, 256, device=device, dtype=torch.bfloat16)
    target = torch.randint(0, 65536, (1024,), device=device)
    size = weight.numel() * weight.element_size()
    for trained in (False, True):
        weight.requires_grad_(trained)
        apply(x, weight, target)[0].backward()  # the first call opens cuBLASLt
        x.grad = weight.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        loss = apply(x, weight, target)[0]
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        assert size * trained <= kept < size * (0.5 + trained)


def test_errors(device):
    x, weight, bias, target = problem(device, torch.float32)
    for call, message in (
        (lambda: apply(x[:, :20], weight, target, bias), "20.*24|24.*20"),
        (lambda: apply(x, weight, target[:30], bias), "target.*30.*37"),
        (lambda: apply(x, weight, target, bias[:100]), "bias.*100.*131"),
        (lambda: apply(x[None], weight, target, bias), "_input.*3.*2"),
        (lambda: apply(x, weight, target, ce_weight=torch.ones(7, device=device)), "7.*131"),
        (lambda: apply(x, weight, target, reduction="avg"), "avg"),
        (lambda: apply(x, weight, target, label_smoothing=-1.0), r"label_smoothing.*-1.*\[0, 1\]"),
        (lambda: apply(x, weight, target, extras=1), "return_z_loss"),
        (lambda: apply(x.double(), weight, target), "float64.*float32, float16 and bfloat16"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert isinstance(caught.value, AssertionError)


def test_a_question_about_scratch_is_refused_as_the_call_would_be():
    x, weight, target = torch.randn(3, 8), torch.randn(5, 8), torch.zeros(3, dtype=torch.int64)
    options = (-100, 0.0, 0.0, 0.0, 1, 0, 0)

    def ask(x, target, logits):
        given = (x, weight, None, target, None, None, logits, *(None,) * 8)
        return _native.linear_cross_entropy_forward_workspace(*given, *options, None)

    assert ask(x, target, torch.empty(2, 5)) > 0
    assert ask(x[:0], target[:0], None) >= 0  # no rows need no logits
    with pytest.raises(ValueError, match="logits is required, but its dtype is NONE"):
        ask(x, target, None)
    with pytest.raises(ValueError, match="1 or more rows"):
        ask(x, target, torch.empty(0, 5))
