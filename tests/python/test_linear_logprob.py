"""Log-probabilities on a linear head against float64: every output, every choice of what is trained, one slice and several."""

from __future__ import annotations

import own_process
import pytest
import torch
from operator_case import Case
from reference import DTYPES, assert_close, twins
from torch._dynamo.testing import CompileCounterWithBackend

from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction, LigerLinearLogProbFunction
from liger_kernel.ops import linear_logprob as module
from liger_kernel.transformers import LigerLinearLogProb
from liger_kernel.transformers.functional import liger_linear_logprob

ROWS, HIDDEN, VOCAB = 37, 24, 203
OUTPUTS = module.OUTPUTS
OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 3.0},
    "negative scale": {"scale": -0.5, "temperature": 2.0},
}
OWED = [
    Case("linear_logprob", LigerLinearLogProbFunction,
         lambda n: [torch.randn(2, n, HIDDEN), torch.randn(VOCAB, HIDDEN), torch.randint(0, VOCAB, (2, n)),
                    torch.randn(VOCAB), torch.arange(0, VOCAB, 40), 0.8, 20.0, 1.1, -100, None,
                    ("entropy", "lse", "log_sum_sq_probs", "mean_logits")], (0, 1, 3), 6),
]  # fmt: skip


def problem(device, dtype, rows=ROWS, bias=True, ignored=True):
    x = torch.randn(rows, HIDDEN, device=device).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCAB, HIDDEN, device=device)).to(dtype).requires_grad_()
    b = torch.randn(VOCAB, device=device).to(dtype).requires_grad_() if bias else None
    target = torch.randint(0, VOCAB, (rows,), device=device)
    if ignored:
        target[1::3] = -100
    return x, weight, b, target


def exact(x, weight, target, bias=None, ids=None, temperature=1.0, softcap=None, scale=1.0):
    """Every output in float64, by name, and the twins whose .grad will hold the gradients."""
    x, weight, bias = twins(x, weight, bias)
    target = target.cpu()
    z = scale * (x @ weight.t() if bias is None else x @ weight.t() + bias)
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    counts, labels = target != -100, target.clamp(min=0)
    log_p = z.log_softmax(-1)
    found = {
        "log_prob": log_p.gather(-1, labels[:, None])[:, 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "lse": z.logsumexp(-1),
        "log_sum_sq_probs": (2 * log_p).logsumexp(-1),
        "mean_logits": z.mean(-1),
    }
    found = {name: torch.where(counts, value, 0) for name, value in found.items()}
    found["is_top1"] = counts & (z.argmax(-1) == labels)
    if ids is not None:
        found["selected"] = torch.where(counts[:, None], log_p[:, ids.cpu().long()], 0)
    return found, (x, weight, bias)


def logits_error(dtype) -> float:
    """In units of dtype's rounding: logits of size up to 8 are rounded, and a second time their gradients; an error in a logit
    is as large a relative error of its probability. The rest is for the roundings after it."""
    return 8 + 4


def in_slices(monkeypatch, cols):
    monkeypatch.setattr(module, "_slice_cols", lambda head, numbers, dx: cols)


def forget_logits(monkeypatch):
    forward = module.kernel_forward
    monkeypatch.setattr(module, "kernel_forward", lambda *args, **named: (forward(*args, **named), None)[1])


def test_probabilities_of_logits_that_are_made_again(device, monkeypatch):
    """A product of another shape may round them up, above the largest one of the first: not e^(1 ulp of 1e9)."""
    forget_logits(monkeypatch)
    in_slices(monkeypatch, 9)
    for scale in (1e7, 1e8, 1e9):
        torch.manual_seed(0)
        x, weight, target = torch.randn(6, 8) * scale, torch.randn(50, 8), torch.randint(0, 50, (6,))
        bias = torch.zeros(50, device=device, requires_grad=True)
        log_prob = LigerLinearLogProbFunction.apply(x.to(device), weight.to(device), target.to(device), bias)
        (gradient,) = torch.autograd.grad(log_prob.sum(), bias)
        assert gradient.abs().max() <= 6


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("slices", [None, VOCAB, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, slices, options, monkeypatch):
    """Kept logits, made again in one slice, and in several."""
    if slices is not None:
        in_slices(monkeypatch, slices)
        monkeypatch.setattr(module, "take_saved", lambda ctx: (ctx.saved_tensors, [False] * 10))
    x, weight, bias, target = problem(device, dtype)
    ids = torch.tensor([5, 0, VOCAB - 1, 5], device=device)
    results = LigerLinearLogProbFunction.apply(
        x, weight, target, bias, ids, options.get("temperature", 1.0), options.get("softcap"),
        options.get("scale", 1.0), -100, None, OUTPUTS,
    )  # fmt: skip
    found = dict(zip(("log_prob", *OUTPUTS, "selected"), results))
    right, others = exact(x, weight, target, bias, ids, **options)
    allowed = logits_error(dtype)
    for name, value in found.items():
        if name == "is_top1":
            assert value.dtype is torch.bool
            continue
        assert value.dtype is torch.float32
        assert_close(value.flatten(), right[name].flatten(), dtype, allowed, VOCAB)
        assert not value[1::3].any()
    upstream = {name: torch.randn_like(value) for name, value in found.items() if name != "is_top1"}
    sum((found[name] * u).sum() for name, u in upstream.items()).backward()
    sum((right[name] * u.cpu().double()).sum() for name, u in upstream.items()).backward()
    for given, twin in zip((x, weight, bias), others):
        assert given.grad.dtype is dtype
        assert_close(given.grad.flatten(), twin.grad.flatten(), dtype, 2 * allowed, VOCAB)


@pytest.mark.parametrize("name", ["log_prob", *OUTPUTS[:4], "selected"])
@pytest.mark.parametrize("compiled", [False, True])
def test_each_output_alone(device, name, compiled):
    """Its gradient does not depend on what else was asked for."""
    x, weight, bias, target = problem(device, torch.float32)
    ids = torch.tensor([7, 3], device=device) if name == "selected" else None

    def evaluate():
        names = (name,) if name in OUTPUTS else ()
        results = LigerLinearLogProbFunction.apply(x, weight, target, bias, ids, 1.0, None, 1.0, -100, None, names)
        return results if name == "log_prob" else results[-1]

    value = torch.compile(evaluate, fullgraph=True, backend="aot_eager")() if compiled else evaluate()
    right, others = exact(x, weight, target, bias, ids)
    assert_close(value, right[name], torch.float32, 4, VOCAB)
    upstream = torch.rand_like(value) + 0.5  # the bias's gradient of a mean is a sum of nothing else
    found = torch.autograd.grad(value, (x, weight, bias), upstream)
    expected = torch.autograd.grad(right[name], others, upstream.cpu().double())
    for ours, wanted in zip(found, expected):
        assert_close(ours.flatten(), wanted.flatten(), torch.float32, 8, VOCAB)


def test_top1_is_the_first_of_the_largest(device):
    weight = torch.eye(6, device=device)
    x = torch.tensor([[1.0, 2, 2, 0, 0, 0]] * 3, device=device)
    _, top = liger_linear_logprob(x, weight, torch.tensor([1, 2, 0], device=device), outputs=("is_top1",))
    assert top.tolist() == [True, False, False]


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_trained(device, trained, keeps, monkeypatch):
    if not keeps:
        forget_logits(monkeypatch)
    x, weight, bias, target = problem(device, torch.float32)
    full = torch.autograd.grad(liger_linear_logprob(x, weight, target, bias).sum(), (x, weight, bias))
    tensors = [t.detach().requires_grad_(i in trained) for i, t in enumerate((x, weight, bias))]
    value = liger_linear_logprob(tensors[0], tensors[1], target, tensors[2])
    assert value.requires_grad is bool(trained)
    if trained:
        value.sum().backward()
    for i, (t, wanted) in enumerate(zip(tensors, full)):
        assert (t.grad is None) if i not in trained else torch.equal(t.grad, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward_makes_the_logits_again(device, dtype):
    x, weight, bias, target = problem(device, dtype)
    value = liger_linear_logprob(x, weight, target, bias)
    upstream = torch.randn_like(value)
    found = [
        torch.autograd.grad(value, (x, weight, bias), upstream, retain_graph=again) for again in (True, True, False)
    ]
    for first, second, last in zip(*found):
        assert torch.equal(first, second)
        assert_close(last.flatten(), first.double().flatten(), dtype, 4, VOCAB)  # products of another shape


KEPT = """
import sys, torch
from liger_kernel.transformers.functional import liger_linear_logprob
device, rows = sys.argv[1], 9000  # more than a chunk and a hidden size
torch.manual_seed(0)
x, weight, target = torch.randn(rows, 8), torch.randn(512, 8), torch.randint(0, 512, (rows,))
x, weight = (t.to(device).bfloat16().requires_grad_() for t in (x, weight))
with torch.no_grad():
    alone = liger_linear_logprob(x, weight, target.to(device))
value = liger_linear_logprob(x, weight, target.to(device))
kept = value.grad_fn.saved_tensors[-1]
twins = [t.detach().cpu().double().requires_grad_() for t in (x, weight)]
exact = (twins[0] @ twins[1].t()).log_softmax(-1).gather(-1, target[:, None])[:, 0]
value.sum().backward()
exact.sum().backward()
errors = [float((t.grad.cpu().double() - w.grad).norm() / w.grad.norm()) for t, w in zip((x, weight), twins)]
print(0 if kept is None else kept.shape[0], max(errors), torch.equal(alone, value))
"""


@pytest.mark.parametrize("budget, kept", [("9", 9000), ("8", 0), ("", 0)])
def test_a_budget_that_is_set_keeps_the_logits_it_holds(device, budget, kept):
    """8.8 MB of them. Without one they are made again."""
    rows, error, same = own_process.output("-c", KEPT, device.type, LIGER_LOSS_WORKSPACE_MB=budget).split()
    assert int(rows) == kept and float(error) < 1e-2 and same == "True"


@pytest.mark.parametrize("valid_rows", ["exact", "more", "all", None])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_rows_that_are_left_out(device, ignored, valid_rows):
    x, weight, bias, target = problem(device, torch.float32, ignored=False)
    counts = {"none": torch.ones, "all": torch.zeros}.get(ignored, lambda n, **_: torch.arange(n) % 3)(
        ROWS, dtype=int
    ) != 0
    target[~counts.to(device)] = -100
    count = int(counts.sum())
    bound = {"exact": count, "more": min(count + 5, ROWS), "all": ROWS + 9, None: None}[valid_rows]
    poisoned = x.detach().clone()
    if valid_rows in ("exact",) or not target.is_cuda:
        poisoned[~counts] = torch.nan  # not even read into a product
    poisoned.requires_grad_()
    value = liger_linear_logprob(poisoned, weight, target, bias, valid_rows=bound)
    right, others = exact(x, weight, target, bias)
    assert_close(value, right["log_prob"], torch.float32, 4, VOCAB)
    value.sum().backward()
    right["log_prob"].sum().backward()
    for given, twin in zip((poisoned, weight, bias), others):
        assert_close(given.grad.flatten(), twin.grad.flatten(), torch.float32, 8, VOCAB)


def test_rows_that_are_left_out_of_the_formula(device):
    x, weight, bias, target = problem(device, torch.float32)
    poisoned = torch.where((target == -100)[:, None], torch.nan, x.detach())
    found = torch.func.grad(lambda *t: liger_linear_logprob(*t, target).sum(), argnums=(0, 1))(poisoned, weight)
    liger_linear_logprob(x, weight, target).sum().backward()
    for ours, given in zip(found, (x, weight)):
        assert_close(ours.flatten(), given.grad.flatten().double(), torch.float32, 8, VOCAB)


def test_too_small_a_bound_is_not_silent(device):
    x, weight, bias, target = problem(device, torch.float32)
    if device.type == "cpu":
        with pytest.raises(ValueError, match="valid_rows"):
            liger_linear_logprob(x, weight, target, bias, valid_rows=3)
        return
    value, entropy = liger_linear_logprob(x, weight, target, bias, valid_rows=3, outputs=("entropy",))
    assert value.isnan().all() and entropy.isnan().all()
    value.sum().backward()
    assert weight.grad.isnan().any()


def test_a_confident_token_keeps_its_digits(device):
    """1 - p of 1e-9: log p is about -1e-9, and so is its gradient."""
    weight = torch.tensor([[20.7], [0.0]], device=device, requires_grad=True)
    x = torch.ones(1, 1, device=device, requires_grad=True)
    value = liger_linear_logprob(x, weight, torch.zeros(1, dtype=torch.int64, device=device))
    value.backward()
    right, (x64, _, _) = exact(x, weight, torch.zeros(1, dtype=torch.int64))
    right["log_prob"].backward()
    assert abs(value.item() / right["log_prob"].item() - 1) < 1e-5
    assert abs(x.grad.item() / x64.grad.item() - 1) < 1e-5


@pytest.mark.parametrize("trained", [True, False])
def test_forbidden_tokens(device, trained):
    """A bias of -inf: probability 0, and no NaN in what is summed over the vocabulary."""
    x, weight, bias, target = problem(device, torch.float32)
    with torch.no_grad():
        bias[100:] = -torch.inf
    target = torch.where(target >= 0, target % 100, target)
    names = ("entropy", "lse", "log_sum_sq_probs")
    value, *others = liger_linear_logprob(x, weight, target, bias, outputs=names)
    right, twins_ = exact(x, weight[:100], target, bias[:100])
    for ours, name in zip((value, *others), ("log_prob", *names)):
        assert_close(ours, right[name], torch.float32, 4, VOCAB)
    (value.sum() + sum(o.sum() for o in others)).backward()
    sum(right[name].sum() for name in ("log_prob", *names)).backward()
    assert_close(x.grad.flatten(), twins_[0].grad.flatten(), torch.float32, 8, VOCAB)
    assert not weight.grad[100:].any()


def test_autocast(device):
    """fp32 master weights; backward outside of the block computes as forward did."""
    x, weight, bias, target = problem(device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = liger_linear_logprob(x, weight, target, bias)
    upstream = torch.randn_like(value)
    value.backward(upstream)
    low = [t.detach().bfloat16().float().requires_grad_() for t in (x, weight, bias)]
    right, others = exact(low[0], low[1], target, low[2])
    right["log_prob"].backward(upstream.cpu().double())
    assert_close(value, right["log_prob"], torch.bfloat16, logits_error(torch.bfloat16), VOCAB)
    for given, twin in zip((x, weight, bias), others):
        assert given.grad.dtype is torch.float32
        assert_close(given.grad.flatten(), twin.grad.flatten(), torch.bfloat16, logits_error(torch.bfloat16), VOCAB)


def test_the_module_is_the_function(device):
    x, weight, bias, target = problem(device, torch.float32)
    ids = torch.tensor([4, 9], device=device)
    given = dict(temperature=0.9, softcap=5.0, scale=1.2, outputs=("lse", "entropy"))
    made = LigerLinearLogProb(**given)
    results = made(x.view(1, ROWS, HIDDEN), weight, target[None], bias, selected_token_ids=ids)
    others = liger_linear_logprob(x, weight, target, bias, selected_token_ids=ids, **given)
    assert [tuple(r.shape) for r in results] == [(1, ROWS)] * 3 + [(1, ROWS, 2)]
    for one, other in zip(results, others):
        assert torch.equal(one[0], other)
    assert "temperature=0.9" in repr(made)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(temperature=0.0), "temperature is 0.0"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(softcap=-1.0), "softcap is -1.0"),
        (dict(scale=float("inf")), "scale is inf"),
        (dict(valid_rows=-2), "valid_rows is -2"),
        (dict(valid_rows=True), "valid_rows is True"),
        (dict(outputs=("entropie",)), "outputs is"),
        (dict(outputs="entropy"), "outputs is"),
        (dict(outputs=("lse", "lse")), "outputs is"),
    ],
)
def test_options_that_are_refused(device, change, words):
    x, weight, bias, target = problem(device, torch.float32)
    with pytest.raises(ValueError, match=words):
        liger_linear_logprob(x, weight, target, bias, **change)


def test_tensors_that_are_refused(device):
    x, weight, bias, target = problem(device, torch.float32)
    with pytest.raises(ValueError, match=r"targets has shape \(36,\), but hidden has \(37, 24\)"):
        liger_linear_logprob(x, weight, target[1:], bias)
    with pytest.raises(ValueError, match="selected_token_ids"):
        liger_linear_logprob(x, weight, target, bias, selected_token_ids=torch.zeros(2, 2, dtype=torch.int64))
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"targets\[\d+\] is 203"):
            liger_linear_logprob(x, weight, target.clamp(min=VOCAB), bias)
        with pytest.raises(ValueError, match=r"selected_token_ids\[0\] is 203"):
            liger_linear_logprob(x, weight, target, bias, selected_token_ids=torch.tensor([VOCAB]))


def test_out_of_range_targets_on_a_gpu_are_nan(device):
    if device.type == "cpu":
        pytest.skip("refused on the CPU, which test_tensors_that_are_refused sees")
    x, weight, bias, target = problem(device, torch.float32, ignored=False)
    target[4] = VOCAB
    value = liger_linear_logprob(x, weight, target, bias)
    assert value[4].isnan() and not value[:4].isnan().any() and not value[5:].isnan().any()
    (dx,) = torch.autograd.grad(value.nan_to_num().sum(), x)
    assert dx[4].isnan().all() and not dx[:4].isnan().any() and not dx[5:].isnan().any()


def test_one_graph_for_all_bounds(device):
    """valid_rows is another number in each step of a training."""
    x, weight, bias, target = problem(device, torch.float32, ignored=False)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(liger_linear_logprob, fullgraph=True, backend=backend)
    for count in range(2, ROWS, 2):
        labels = torch.where(torch.arange(ROWS, device=device) < count, target, -100)
        value = compiled(x, weight, labels, bias, valid_rows=count)
        assert torch.equal(value, liger_linear_logprob(x, weight, labels, bias, valid_rows=count))
        value.sum().backward()
    assert backend.frame_count <= 2


# ---- the scaled cross entropy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("count", [None, 0, 3])
def test_scaled_cross_entropy(device, dtype, entropy, count):
    x, weight, _, target = problem(device, dtype, bias=False)
    ids = None if count is None else torch.arange(count, device=device)
    results = LigerFusedLinearScaledCrossEntropyFunction.apply(x, weight, target, 0.7, -100, 1, entropy, ids)
    results = (results,) if isinstance(results, torch.Tensor) else results
    assert len(results) == 1 + entropy + (count is not None)
    right, others = exact(x, weight, target, None, ids, temperature=0.7)
    wanted = [
        -right["log_prob"],
        *([right["entropy"]] if entropy else []),
        *([right["selected"]] if ids is not None else []),
    ]
    dtypes = [torch.float32, *([dtype] if entropy else []), *([torch.float32] if ids is not None else [])]
    for ours, value, kind in zip(results, wanted, dtypes):
        assert ours.dtype is kind
        assert_close(ours.flatten(), value.flatten(), dtype, logits_error(dtype) + 1, VOCAB)
    upstream = [torch.randn_like(r) for r in results]
    sum((r * u).sum() for r, u in zip(results, upstream)).backward()
    sum((w * u.cpu().double()).sum() for w, u in zip(wanted, upstream)).backward()
    for given, twin in zip((x, weight), others):
        assert_close(given.grad.flatten(), twin.grad.flatten(), dtype, 2 * logits_error(dtype), VOCAB)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(temperature=True), TypeError, "temperature must be a real number"),
        (dict(temperature="1"), TypeError, "temperature"),
        (dict(temperature=0.0), ValueError, "temperature"),
        (dict(target=torch.zeros(5, dtype=torch.int32)), TypeError, "int64"),
        (dict(weight=torch.zeros(7, 4, dtype=torch.float64)), TypeError, "one floating-point dtype"),
        (dict(m_tiles_per_cluster=1.0), TypeError, "m_tiles_per_cluster"),
        (dict(m_tiles_per_cluster=0), ValueError, "m_tiles_per_cluster"),
        (dict(return_entropy=1), TypeError, "return_entropy"),
        (dict(selected_token_ids=[1]), TypeError, "selected_token_ids"),
        (dict(selected_token_ids=torch.zeros(1, 1, dtype=torch.int64)), ValueError, "selected_token_ids"),
        (dict(selected_token_ids=torch.tensor([7])), ValueError, r"selected_token_ids must be in \[0, V\)"),
        (dict(target=torch.tensor([0, 1, 7, 0, 0])), ValueError, r"outside \[0, 7\)"),
        (dict(target=torch.zeros(4, dtype=torch.int64)), ValueError, r"\[M, H\]"),
        (dict(_input=torch.zeros(5, 4, 1)), ValueError, "dimensions"),
    ],
)
def test_what_the_scaled_cross_entropy_refuses(device, change, error, words, monkeypatch):
    monkeypatch.setenv("LIGER_DEBUG", "1")
    given = dict(_input=torch.zeros(5, 4), weight=torch.zeros(7, 4), target=torch.zeros(5, dtype=torch.int64)) | change
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with pytest.raises(error, match=words):
        LigerFusedLinearScaledCrossEntropyFunction.apply(**given)


def test_an_implementation_may_be_put_in_place(monkeypatch):
    """Callers choose one by the device; ids are handed on only where there are some."""
    from liger_kernel.ops import fused_linear_scaled_cross_entropy as scaled

    calls = []

    class Theirs:
        @staticmethod
        def apply(*args):
            calls.append(len(args))

    monkeypatch.setattr(scaled, "_resolve_implementation", lambda device: Theirs)
    given = torch.zeros(5, 4), torch.zeros(7, 4), torch.zeros(5, dtype=torch.int64)
    scaled.LigerFusedLinearScaledCrossEntropyFunction.apply(*given)
    scaled.LigerFusedLinearScaledCrossEntropyFunction.apply(*given, selected_token_ids=torch.tensor([1]))
    assert calls == [7, 8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_of_trls_head(dtype):
    """TRL's own chunked function on the same operands, to the rounding of logits."""
    chunked = pytest.importorskip("trl.kernels.chunked_logprob", reason="needs a TRL that has it")
    x, weight, _, target = problem("cpu", dtype, bias=False, ignored=False)
    names = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    theirs = chunked.ChunkedLogProbFunction.apply(x, weight, None, target, 0.7, 64, 20.0, 1.1, names)
    (theirs[0] + theirs[1]).sum().backward()
    expected, x.grad, weight.grad = (x.grad, weight.grad), None, None
    ours = liger_linear_logprob(x, weight, target, temperature=0.7, softcap=20.0, scale=1.1, outputs=names)
    (ours[0] + ours[1]).sum().backward()
    for one, other in zip(ours[:4], theirs[:4]):
        assert_close(one, other.double(), dtype, 2 * logits_error(dtype), VOCAB)
    assert (ours[4] == theirs[4]).float().mean() > 0.9  # two logits that round to one value
    for one, other in zip((x.grad, weight.grad), expected):
        assert_close(one.flatten(), other.double().flatten(), dtype, 4 * logits_error(dtype), VOCAB)


def test_results_that_nobody_asked_for(device):
    """As torch checks an operator all of them are differentiated."""
    x, weight = (torch.randn(*s, device=device, requires_grad=True) for s in ((3, 4), (5, 4)))
    target = torch.tensor([0, 4, -100], device=device)
    for flags in ((False,) * 6, (True, *(False,) * 5), (False, True, *(False,) * 4)):
        given = (x, weight, target, None, None, -100, -1, 0.5, 3.0, 0.7, 0, *flags)
        torch.library.opcheck(torch.ops.liger.linear_logprob.default, given)
