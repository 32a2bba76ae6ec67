"""Cross entropy and total variation: values and gradients against float64. What every operator owes is tested in
test_operators*.py, from its description and OWED."""

from __future__ import annotations

import math

import pytest
import torch
from operator_case import HIDDEN, Case
from reference import DTYPES, unit

from liger_kernel.ops import LigerFusedCETVDFunction, fused_ce_tvd_backward, fused_ce_tvd_forward
from liger_kernel.transformers import LigerFusedCETVDLoss


def _make(rows):
    target = torch.randint(HIDDEN, (rows,))
    target[1::3] = -100
    return [2 * torch.randn(rows, HIDDEN), 2 * torch.randn(rows, HIDDEN), target, -100]


OWED = [Case("fused_ce_tvd", LigerFusedCETVDFunction, _make, (0,), results=2)]


def exact(x, t, target, ignore_index=-100):
    """(ce, tvd, gradient of ce, gradient of tvd) of each row in float64, as the definitions read."""
    x, t = x.detach().cpu().double(), t.detach().cpu().double()
    counts, labels = target.cpu() != ignore_index, target.cpu().clamp(min=0).long()
    p, q = x.softmax(-1), t.softmax(-1)
    ce = -x.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    tvd = 0.5 * (p - q).abs().sum(-1)
    s = (p - q).sign()
    dce = p - torch.nn.functional.one_hot(labels, x.shape[1])
    dtvd = 0.5 * p * (s - (p * s).sum(-1, keepdim=True))
    parts = [part.masked_fill(~counts.view(-1, *(1,) * (part.dim() - 1)), 0) for part in (ce, tvd, dce, dtvd)]
    return *parts, ((x - x.logsumexp(-1, keepdim=True)) - (t - t.logsumexp(-1, keepdim=True))).abs()


def problem(device, dtype, shape, teacher=None):
    """No two probabilities are so near each other that f32 would not know which is larger."""
    x = (2 * torch.randn(shape, device=device)).to(dtype)
    t = (2 * torch.randn(shape, device=device)).to(teacher or dtype)
    target = torch.randint(shape[1], shape[:1], device=device)
    target[::4] = -100
    return x.requires_grad_(), kept_apart(x, t, target, 1e-3), target


def kept_apart(x, t, target, least):
    """The teacher without what is within `least` of the student, which changes the rest of its probabilities a little."""
    while x.shape[1] > 1 and (near := exact(x, t, target)[4] < least).any():
        t = t.masked_fill(near.to(t.device), -math.inf)
    return t


def check_gradient(found, wanted, x, above, dtype):
    """p is off by what its exponent is: 2^-24 of x - max, of log Σ e^(x - max), and of what comes of them; then one rounding."""
    wide = x.detach().cpu().double()
    p, below = wide.softmax(-1), wide - wide.amax(-1, keepdim=True)
    terms = (p * (8 + below.abs() + 2 * below.logsumexp(-1, keepdim=True)) + 1e-3 * p).mul(above) + above * (
        wanted != 0
    ) * 1e-6
    budget = 1.01 * unit(dtype) * wanted.abs() + 4 * unit(torch.float32) * terms.amax(-1, keepdim=True)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((found.cpu().double() - wanted).abs() <= budget + smallest).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 1), (9, 33), (7, 264), (6, 8200), (3, 70001)])
def test_values_and_gradients(device, dtype, shape):
    x, t, target = problem(device, dtype, shape)
    ce, tvd = LigerFusedCETVDFunction.apply(x, t, target)
    right_ce, right_tvd, dce, dtvd, _ = exact(x, t, target)
    for ours, right, least in ((ce, right_ce, 1), (tvd, right_tvd, 1)):
        assert ours.dtype is torch.float32 and ours.shape == shape[:1]
        assert ((ours.cpu().double() - right).abs() <= 40 * unit(torch.float32) * right.clamp(min=least)).all()
    u, v = torch.randn(2, shape[0], dtype=torch.float64)
    (dx,) = torch.autograd.grad((ce, tvd), x, (u.float().to(device), v.float().to(device)), retain_graph=True)
    assert dx.dtype is dtype
    above = (u.abs() + v.abs())[:, None]
    check_gradient(dx, u.float().double()[:, None] * dce + v.float().double()[:, None] * dtvd, x, above, dtype)
    ignored = target == -100
    assert not dx[ignored].any() and not ce[ignored].any() and not tvd[ignored].any()
    for one, slope in ((ce, dce), (tvd, dtvd)):  # the other has no upstream
        (alone,) = torch.autograd.grad(one.sum(), x, retain_graph=True)
        check_gradient(alone, slope, x, torch.ones_like(above), dtype)


@pytest.mark.parametrize(("student", "teacher"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16),
                                                  (torch.float16, torch.bfloat16)])  # fmt: skip
def test_two_dtypes(device, student, teacher):
    x, t, target = problem(device, student, (8, 100), teacher)
    found = LigerFusedCETVDFunction.apply(x, t, target)
    wide = x.detach().float().requires_grad_()
    right = LigerFusedCETVDFunction.apply(wide, t.float(), target)
    assert all(torch.equal(a, b) for a, b in zip(found, right))
    (dx,), (exactly,) = torch.autograd.grad(sum(found).sum(), x), torch.autograd.grad(sum(right).sum(), wide)
    assert dx.dtype is student and torch.equal(dx, exactly.to(student))


@pytest.mark.parametrize("cols", [40, 41, 5000])
def test_equal_models(device, cols):
    """No distance, and nothing to learn from it; also where the teacher has the same numbers in another dtype."""
    x = (3 * torch.randn(6, cols, device=device)).bfloat16().requires_grad_()
    target = torch.randint(cols, (6,), device=device)
    for teacher in (x.detach(), x.detach().float()):
        _, tvd = LigerFusedCETVDFunction.apply(x, teacher, target)
        (dx,) = torch.autograd.grad(tvd.sum(), x)
        assert not tvd.any() and not dx.any()


@pytest.mark.parametrize(("dtype", "constant"), [(torch.float32, 4.0), (torch.float32, -100.0), (torch.bfloat16, 1.0)])
def test_models_that_are_equal_but_for_a_constant(device, dtype, constant):
    """They give the same probabilities."""
    x = (16 * torch.randn(64, 1000, device=device)).round().clamp(-60, 60).div(16).to(dtype).requires_grad_()
    target = torch.randint(1000, (64,), device=device)
    teacher = x.detach() + constant
    assert torch.equal(teacher.double() - constant, x.detach().double())
    _, tvd = LigerFusedCETVDFunction.apply(x, teacher, target)
    (dx,) = torch.autograd.grad(tvd.sum(), x)
    assert not tvd.any() and not dx.any()


@pytest.mark.parametrize(("offset", "apart"), [(0.0, 1e-6), (30.0, 1e-5), (1e4, 1e-3)])
def test_a_teacher_who_is_nearly_the_student(offset, apart):
    """Forward and backward see the same sign of p - q, whatever it is: a gradient has no part along a shift of all logits. (A GPU's
    forward has its exponentials relative to the maxima of parts of a row, and may see another where p and q are within 2^-22.)"""
    x = (torch.randn(64, 1000) + offset).requires_grad_()
    target = torch.randint(1000, (64,))
    _, tvd = LigerFusedCETVDFunction.apply(x, x.detach() + apart * torch.randn(64, 1000), target)
    (dx,) = torch.autograd.grad(tvd.sum(), x)
    assert dx.abs().sum(-1).max() > 0.1 and dx.double().sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset(device, offset):
    """Neither values nor gradients see it."""
    x, t, target = problem(device, torch.float32, (8, 500))
    x = ((x.detach() * 64).round() / 64 + offset).requires_grad_()  # exact
    t = kept_apart(x, (t * 64).round() / 64, target, 1e-3)
    ce, tvd = LigerFusedCETVDFunction.apply(x, t, target)
    right = exact(x, t, target)
    for ours, wanted in ((ce, right[0]), (tvd, right[1])):
        assert ((ours.cpu().double() - wanted).abs() <= 40 * unit(torch.float32) * wanted.clamp(min=1)).all()
    (dx,) = torch.autograd.grad((ce + tvd).sum(), x)
    check_gradient(dx, right[2] + right[3], x, 2, torch.float32)


def test_rows_without_a_value(device):
    inf, nan = math.inf, math.nan
    x = torch.tensor([[0.0, -inf, 0.0], [-inf, -inf, -inf], [0.0, nan, 1.0], [0.0, 1.0, 2.0]], device=device)
    t = torch.tensor([[0.0, -inf, -inf], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, nan, 1.0]], device=device)
    x.requires_grad_()
    ce, tvd = LigerFusedCETVDFunction.apply(x, t, torch.tensor([0, 0, 0, 0], device=device))
    (dx,) = torch.autograd.grad(tvd.sum(), x)
    assert ce[0].item() == pytest.approx(math.log(2)) and tvd[0].item() == 0.5
    assert ce[1:3].isnan().all() and ce[3].isfinite() and tvd[1:].isnan().all()
    assert dx[0].isfinite().all() and dx[1:].isnan().all()


def test_strides(device):
    """Rows with gaps, transposed memory, an expanded teacher, and upstreams that are one number."""
    x, t, target = problem(device, torch.float32, (6, 48))
    right = LigerFusedCETVDFunction.apply(x, t, target)
    (wanted,) = torch.autograd.grad(sum(right).sum(), x)
    wide = torch.cat((x.detach(), torch.full_like(x, math.nan)), 1)[:, :48].requires_grad_()
    for view in (wide, x.detach().t().contiguous().t().requires_grad_()):
        found = LigerFusedCETVDFunction.apply(view, t.t().contiguous().t(), target.repeat_interleave(2)[::2])
        (dx,) = torch.autograd.grad(sum(found).sum(), view)
        assert all(torch.equal(a, b) for a, b in zip(found, right)) and torch.equal(dx, wanted)
    row = t[1:2].expand(6, -1)
    found, same = (LigerFusedCETVDFunction.apply(x, teacher, target) for teacher in (row, row.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(found, same))


def test_helpers(device):
    x, t, target = problem(device, torch.float32, (6, 50))
    results = fused_ce_tvd_forward(x.detach(), t, target, -100)
    assert len(results) == 5 and all(r.dtype is torch.float32 and r.shape == (6,) for r in results)
    ce, tvd, student_lse, teacher_lse, sigma = results
    counts = target != -100
    assert torch.allclose(student_lse[counts], x.detach().logsumexp(-1)[counts])
    assert torch.allclose(teacher_lse[counts], t.logsumexp(-1)[counts])
    p = x.detach().softmax(-1)
    right_sigma = (p * (p - t.softmax(-1)).sign()).sum(-1)
    # sums of 50 probabilities, 1 in all, each of some 4 roundings, by both sides
    assert torch.allclose(sigma[counts], right_sigma[counts], rtol=0, atol=16 * 2.0**-24)
    u, v = torch.randn(2, 6, device=device)
    found = LigerFusedCETVDFunction.apply(x, t, target)
    right = torch.autograd.grad(found, x, (u, v))[0]
    saved = x.detach(), t, target, student_lse, teacher_lse, sigma, -100
    of_lse = 2 * 2.0**-24 * (8 + student_lse.abs().max().item()) * (u.abs() + v.abs()).max().item()
    assert (fused_ce_tvd_backward(u, v, *saved) - right).abs().max() <= of_lse
    for given, other in (((u, None), (u, torch.zeros_like(v))), ((None, v), (torch.zeros_like(u), v))):
        assert torch.equal(fused_ce_tvd_backward(*given, *saved), fused_ce_tvd_backward(*other, *saved))


def test_module(device):
    x, t, target = problem(device, torch.float32, (6, 50))
    target = target.masked_fill(target == -100, 7)
    module = LigerFusedCETVDLoss(ignore_index=7)
    assert module.ignore_index == 7 and LigerFusedCETVDLoss().ignore_index == -100
    found, right = module(x, t, target), exact(x, t, target, 7)
    # a logarithm of about 8, and a sum of 50 differences: some 16 roundings of numbers of that size
    assert all(torch.allclose(a.cpu().double(), b, rtol=0, atol=8 * 16 * 2.0**-24) for a, b in zip(found, right))


def test_no_rows_and_the_teachers_gradient(device):
    x, t = (torch.zeros(0, 9, device=device, requires_grad=True) for _ in range(2))
    found = LigerFusedCETVDFunction.apply(x, t, torch.zeros(0, dtype=torch.int64, device=device))
    assert [f.shape for f in found] == [(0,), (0,)]
    sum(found).sum().backward()
    assert x.grad.shape == (0, 9) and t.grad is None
    x, t, target = problem(device, torch.float32, (4, 30))
    t.requires_grad_()
    sum(LigerFusedCETVDFunction.apply(x, t, target)).sum().backward()
    assert x.grad is not None and t.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept(device, dtype):
    """Both logits, the target and five numbers a row."""
    x, t, target = problem(device, dtype, (6, 50))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda s: kept.append(s.numel()) or s, lambda s: s):
        LigerFusedCETVDFunction.apply(x, t, target)
    assert sorted(kept) == [*[6] * 6, 300, 300]


def leaves_anything(device):
    """An H100 or later, and a torch that can say whether hooks keep what autograd saves (docs/options.md)."""
    has_clusters = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    return has_clusters and hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")


def gradients_of(x, t, target, times=2):
    """Of the same forward pass again and again."""
    ce, tvd = LigerFusedCETVDFunction.apply(x, t, target)
    return [
        torch.autograd.grad([ce, tvd], x, [ce.detach() + 1, tvd.detach() - 2], retain_graph=True)[0]
        for _ in range(times)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [8192, 9000, 32776, 128256, 262144])
def test_what_forward_leaves_for_backward(device, dtype, vocab):
    """The first backward takes it, the second asks the teacher: the same bits. Every third row is the teacher's own."""
    x, t, target = problem(device, dtype, (7, vocab))
    t[1::3] = x.detach()[1::3]
    first, second = gradients_of(x, t, target)
    assert torch.equal(first, second)
    assert (first[1::3][target[1::3] != -100] != 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bytes_of_row", [16 << 10, 18000, 65552, 256512, 303872, 384 << 10, (384 << 10) + 16, 16368])
def test_of_which_rows_something_is_left(device, dtype, bytes_of_row):
    """Of all that count and are not the teacher's own, where it is worth the memory: nothing is asked for in vain."""
    x, t, target = problem(device, dtype, (7, bytes_of_row // dtype.itemsize))
    t[1::3] = x.detach()[1::3]
    ce, _ = LigerFusedCETVDFunction.apply(x, t, target)
    left = vars(ce.grad_fn).get("left")
    if not leaves_anything(device) or not 16 << 10 <= bytes_of_row <= 384 << 10:
        assert left is None
        return
    dstudent, has_signs = left
    assert dstudent.shape == x.shape and dstudent.dtype is dtype
    assert has_signs.tolist() == [int(y != -100 and r % 3 != 1) for r, y in enumerate(target.tolist())]


def test_nothing_is_left_where_autograd_is_told_what_to_keep(device):
    x, t, target = problem(device, torch.bfloat16, (4, 16384))
    with torch.autograd.graph.saved_tensors_hooks(lambda s: s, lambda s: s):
        ce, _ = LigerFusedCETVDFunction.apply(x, t, target)
    assert "left" not in vars(ce.grad_fn)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_teacher_who_is_not_asked_again(device, dtype):
    """Of the teacher's row nothing is read in backward, but where it ties with the student's."""
    if not leaves_anything(device):
        pytest.skip(
            "forward leaves nothing on a CPU, or on a GPU without clusters: backward reads the teacher, as it should"
        )
    x, t, target = problem(device, dtype, (9, 16384))
    t[1::3] = x.detach()[1::3]
    (expected,) = gradients_of(x, t, target, 1)
    ce, tvd = LigerFusedCETVDFunction.apply(x, t, target)
    t.data.fill_(-50.0)  # autograd does not see it
    found = torch.autograd.grad([ce, tvd], x, [ce.detach() + 1, tvd.detach() - 2])[0]
    counts, tied = target != -100, torch.arange(9, device=device) % 3 == 1
    assert torch.equal(found[~tied], expected[~tied])
    assert not torch.equal(found[tied & counts], expected[tied & counts])


def test_a_backward_that_is_captured_and_replayed(device):
    if device.type != "cuda":
        pytest.skip("only the work of a GPU can be captured in a graph and replayed")
    x, t, target = problem(device, torch.bfloat16, (8, 16384))
    (expected,) = gradients_of(x, t, target, 1)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        gradients_of(x, t, target, 1)
        ce, tvd = LigerFusedCETVDFunction.apply(x, t, target)
        upstreams = ce.detach() + 1, tvd.detach() - 2
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            (found,) = torch.autograd.grad([ce, tvd], x, upstreams)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("label", [50, -1])
def test_labels_out_of_range(device, label, monkeypatch):
    x, t, target = problem(device, torch.float32, (6, 50))
    target[3] = label
    if device.type == "cuda":
        ce, tvd = LigerFusedCETVDFunction.apply(x, t, target)
        (dx,) = torch.autograd.grad((ce + tvd).sum(), x)
        assert ce.isnan().tolist() == [i == 3 for i in range(6)] and tvd.isfinite().all()
        assert dx.isnan().any(-1).tolist() == [i == 3 for i in range(6)] and dx[3].isnan().all()
        monkeypatch.setenv("LIGER_DEBUG", "1")
    with pytest.raises(ValueError, match=rf"target\[3\] is {label}, which is out of bounds"):
        LigerFusedCETVDFunction.apply(x, t, target)


def test_what_is_refused(device):
    x, t, target = problem(device, torch.float32, (6, 50))
    for args, words in (
        ((x, t[:, 1:], target), r"student_logits has shape \(6, 50\), but teacher_logits has \(6, 49\)"),
        ((x[0], t, target), "student_logits has shape"),  # before the number of dimensions
        ((x[None], t[None], target), "student_logits has 3 dimensions, but must have 2"),
        ((x, t, target[1:]), r"target has shape \(5,\), but must have \(6,\)"),
        ((x, t, target[:, None]), r"target has shape \(6, 1\), but must have \(6,\)"),
        ((x.double(), t, target), "student_logits is torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            LigerFusedCETVDFunction.apply(*args)
        with pytest.raises(ValueError, match=words):
            fused_ce_tvd_forward(*args, -100)
    with pytest.raises(ValueError, match="target"):
        LigerFusedCETVDFunction.apply(x, t, target.float())
