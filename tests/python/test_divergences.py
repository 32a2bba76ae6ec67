"""KL, the generalized Jensen-Shannon divergence and total variation on [BT, V]: values and gradients against float64 formulas of
the papers: Kullback and Leibler (1951), Lin (1991) with the weights of arXiv:2306.13649. What every operator owes is tested in
test_operators*.py."""

from __future__ import annotations

import decimal
import math

import pytest
import torch
from operator_case import Case
from reference import DTYPES, SKEW, assert_close, jensen_shannon, times, twins, unit

from liger_kernel.ops import LigerJSDFunction, LigerKLDivLossFunction, LigerTVDLossFunction, jsd_backward, jsd_forward
from liger_kernel.ops.jsd import jsd
from liger_kernel.ops.kl_div import kl_div
from liger_kernel.ops.tvd import tvd
from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss, LigerTVDLoss
from liger_kernel.transformers.functional import liger_jsd, liger_kl_div, liger_tvd
from liger_kernel.transformers.jsd import LigerJSDFunction as from_transformers

INF, NAN = float("inf"), float("nan")
VOCAB = 37
REDUCTIONS = ("none", "mean", "sum", "batchmean")
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def log_probs(*shape, spread=2.0):
    return (spread * torch.randn(shape)).log_softmax(-1)


def labels(rows):
    marks = torch.arange(rows)
    marks[::3] = -100
    return marks


OWED = [
    Case("kl_div", LigerKLDivLossFunction, lambda n: [log_probs(n, VOCAB), log_probs(n, VOCAB).exp()], (0,)),
    Case("kl_div_none", LigerKLDivLossFunction, lambda n: [log_probs(n, VOCAB), log_probs(n, VOCAB), "none", True], (0,)),
    Case("jsd", LigerJSDFunction, lambda n: [log_probs(n, VOCAB), log_probs(n, VOCAB), labels(n), 0.3], (0,)),
    Case("tvd", LigerTVDLossFunction, lambda n: [log_probs(n, VOCAB).exp(), log_probs(n, VOCAB).exp()], (0,)),
    Case("tvd_none", LigerTVDLossFunction,
         lambda n: [log_probs(n, VOCAB).exp(), log_probs(n, VOCAB).exp(), labels(n), "none"], (0,)),
]  # fmt: skip


# ---- formulas in float64 --------------------------------------------------------------------------------------------------


def kl64(x, y, log_target=False, eps=1e-10):
    return times(y.exp(), y - x) if log_target else times(y, y.clamp(min=eps).log() - x)


def tvd64(x, y):
    return 0.5 * (x - y).abs()


def share64(shape, reduction, valid):
    n = max(int(valid.sum()), 1)
    return {"none": 1, "sum": 1, "batchmean": 1 / n, "mean": 1 / (n * shape[1])}[reduction]


def assert_loss(loss, values, share, dtype):
    """Of a sum: up to the errors of its terms, a few roundings each, which add up like a random walk."""
    exact, loss = (values if loss.dim() else values.sum()) * share, loss.detach().cpu().double()
    if loss.dim():
        budget = 8 * unit(torch.float32) * values.abs().amax(-1, keepdim=True).clamp(min=1)
    else:
        budget = (8 + values.numel() ** 0.5) * unit(torch.float32) * values.abs().sum().clamp(min=1) * share
    assert ((loss - exact).abs() <= budget + 1.01 * unit(dtype) * exact.abs()).all()


# ---- values and gradients -------------------------------------------------------------------------------------------------


def assert_gradient(grad, exact, size, dtype):
    """Rounded when it is formed, and when an upstream multiplies it; `size` is what a slope is the product of a logarithm with,
    whose error is a few units of 1."""
    budget = 2.02 * unit(dtype) * exact.abs() + 8 * unit(torch.float32) * size
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((grad.cpu().double() - exact).abs() <= budget + smallest).all()


def check(function, x, y, rest, exact, reduction, loss_dtype=torch.float32, valid=None):
    before = x.detach().clone(), y.detach().clone()
    y.requires_grad_()
    loss = function.apply(x, y, *rest)
    upstream = torch.randn(loss.shape).to(loss.device, loss.dtype)
    loss.backward(upstream, retain_graph=True)
    first, x.grad = x.grad, None
    loss.backward(upstream)
    assert torch.equal(first, x.grad) and y.grad is None
    assert torch.equal(before[0], x) and torch.equal(before[1], y)
    assert loss.dtype is loss_dtype and x.grad.dtype is x.dtype
    wide, target = twins(x, y.detach())
    valid = torch.ones(x.shape[0], dtype=torch.bool) if valid is None else valid.cpu()
    values = exact(wide, target).where(valid[:, None], 0.0)
    share = share64(x.shape, reduction, valid)
    upstream = (upstream.cpu().double() * share).expand(values.shape)
    values.backward(upstream)
    assert_loss(loss, values.detach(), share, loss_dtype)
    size = wide.detach().exp() if function is LigerJSDFunction else torch.zeros(())
    assert_gradient(x.grad, wide.grad, (size * upstream).abs() + wide.grad.abs(), x.dtype)
    with torch.no_grad():
        assert torch.equal(function.apply(x, y, *rest), loss)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kl(device, dtype, target, reduction, log_target):
    x = log_probs(13, 131).to(device, dtype).requires_grad_()
    y = log_probs(13, 131)
    y = (y if log_target else y.exp()).to(device, target)
    rest = (reduction, log_target)
    check(LigerKLDivLossFunction, x, y, rest, lambda a, b: kl64(a, b, log_target), reduction)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jsd(device, dtype, target, labelled, beta):
    x = log_probs(13, 131).to(device, dtype).requires_grad_()
    y = log_probs(13, 131).to(device, target)
    marks = labels(13).to(device) if labelled else None
    valid = None if marks is None else marks != -100
    check(LigerJSDFunction, x, y, (marks, beta), lambda a, b: jensen_shannon(a, b, beta), "batchmean", dtype, valid)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("index", [None, torch.int32, torch.int64])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tvd(device, dtype, target, index, reduction):
    x = log_probs(13, 131).exp().to(device, dtype).requires_grad_()
    y = log_probs(13, 131).exp().to(device, target)
    marks = None if index is None else labels(13).to(device, index)
    valid = None if marks is None else marks != -100
    check(LigerTVDLossFunction, x, y, (marks, reduction), tvd64, reduction, valid=valid)


@pytest.mark.parametrize("vocab", [1, 8, 8191, 8193, 70001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widths(device, dtype, vocab):
    """Around the tiles that a loss is summed in, and wider than 65536; with gaps, of rows that begin anywhere."""
    for gap in (0, 3):
        x, y = (torch.nn.functional.pad(log_probs(5, vocab), (gap, 0)).to(device, dtype)[:, gap:] for _ in range(2))
        check(
            LigerJSDFunction,
            x.requires_grad_(),
            y,
            (None, 0.5),
            lambda a, b: jensen_shannon(a, b, 0.5),
            "batchmean",
            dtype,
        )


def test_torch_is_the_same(device):
    """torch's own loss, whose `eps` is 0."""
    x, y = log_probs(9, 100).to(device), log_probs(9, 100).to(device)
    for reduction in REDUCTIONS:
        for log_target in (False, True):
            target = y if log_target else y.exp()
            torchs = torch.nn.KLDivLoss(reduction=reduction, log_target=log_target)(x.double(), target.double())
            ours = LigerKLDIVLoss(reduction=reduction, log_target=log_target)(x, target)
            assert_close(ours, torchs, torch.float32, 4, 100)


def test_symmetry(device):
    x, y = log_probs(9, 1000).to(device), log_probs(9, 1000).to(device)
    assert_close(LigerJSD(0.5)(x, y), LigerJSD(0.5)(y, x).double(), torch.float32, 4)
    assert_close(LigerJSD(0.2)(x, y), LigerJSD(0.8)(y, x).double(), torch.float32, 4)
    assert_close(
        LigerJSD(0.0)(x, y), LigerKLDIVLoss(reduction="batchmean", log_target=True)(x, y).double(), torch.float32, 4
    )


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3])
def test_a_student_that_is_nearly_the_teacher(device, apart):
    """log M comes from x - y, so that what is left of a small difference is not lost beside log-probabilities of -10: the error
    of an element is a few units of e^x, whatever x is."""
    y = log_probs(16, 5000)
    x = (y + apart * torch.randn_like(y)).to(device).requires_grad_()
    y = y.to(device)
    loss = LigerJSDFunction.apply(x, y)
    loss.backward()
    wide, target = twins(x, y)
    jensen_shannon(wide, target, 0.5).sum().div(16).backward()
    error = (x.grad.cpu().double() - wide.grad).abs() * 16
    assert (error <= 4 * unit(torch.float32) * wide.detach().exp()).all()


# ---- mixtures of which nearly all is one distribution -----------------------------------------------------------------------


def rows_apart(how):
    """Log-probabilities of a student and a teacher."""
    y = log_probs(5, 131, spread=8.0 if how == "far" else 2.0)
    return {"near": y + 1e-3 * torch.randn_like(y), "equal": y.clone()}.get(how, log_probs(5, 131)), y


@pytest.mark.parametrize("beta", SKEW)
def test_the_reference_is_the_definition(beta):
    """With sixty digits."""
    for how in ("ordinary", "far", "near"):
        wide, y = (t[0].double() for t in rows_apart(how))
        values = jensen_shannon(wide.requires_grad_(), y, beta)
        (slopes,) = torch.autograd.grad(values.sum(), wide)
        with decimal.localcontext() as context:
            context.prec = 60
            small = decimal.Decimal(beta)
            for a, b, value, slope in zip(wide.tolist(), y.tolist(), values.tolist(), slopes.tolist()):
                log_q, log_p = decimal.Decimal(a), decimal.Decimal(b)
                p, q = log_p.exp(), log_q.exp()
                log_m = (small * p + (1 - small) * q).ln()
                of_q = (1 - small) * q * (log_q - log_m)
                size = float(max(p, q)) * min(beta, 1 - beta)
                assert abs(slope - float(of_q)) <= 1e-14 * size * max(1, abs(a - b))
                assert abs(value - float(of_q + small * p * (log_p - log_m))) <= 1e-14 * size * max(1, abs(a - b))


@pytest.mark.parametrize("plain_torch", [False, True])
@pytest.mark.parametrize("how", ["ordinary", "far", "near", "equal"])
@pytest.mark.parametrize("beta", SKEW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_digits_of_a_skew_mixture(device, monkeypatch, dtype, beta, how, plain_torch):
    """An element is a few units of the smaller weight times the larger probability, or of its own terms, from the exact one."""
    monkeypatch.setattr(LigerJSDFunction, "_plain_torch", plain_torch)
    x, y = (t.to(device, dtype) for t in rows_apart(how))
    loss = LigerJSDFunction.apply(x.requires_grad_(), y, None, beta)
    loss.backward()
    wide, target = twins(x, y)
    values = jensen_shannon(wide, target, beta) / 5
    values.sum().backward()
    largest, smaller = torch.maximum(wide, target).detach(), min(beta, 1 - beta)
    apart = (wide - target).detach().abs().clamp(max=1 - torch.tensor(smaller).log().item())
    rough = 1 + largest.abs() / 4 if dtype is not torch.float32 else 0.0  # a GPU's exponentials
    size = smaller * largest.exp() * (1 + apart) * (1 + rough) / 5
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    error = (x.grad.cpu().double() - wide.grad).abs()
    assert (error <= 8 * unit(torch.float32) * size + 1.01 * unit(dtype) * wide.grad.abs() + smallest).all()
    error, exact = (loss.cpu().double() - values.detach().sum()).abs(), values.detach().sum().abs()
    assert error <= 8 * unit(torch.float32) * size.sum() + 1.01 * unit(dtype) * exact + smallest
    if how == "equal":
        assert loss == 0 and (plain_torch or not x.grad.any())


# ---- infinities, and what does not count ----------------------------------------------------------------------------------


def elements(function, x, y, *rest):
    x = torch.tensor([x]).requires_grad_()
    loss = function.apply(x, torch.tensor([y]), *rest)
    loss.sum().backward()
    return loss, x.grad[0]


@pytest.mark.parametrize("plain_torch", [False, True])
def test_infinities_of_kl(monkeypatch, plain_torch):
    monkeypatch.setattr(LigerKLDivLossFunction, "_plain_torch", plain_torch)
    x, y = [-INF, -INF, INF, -1.0, -INF, NAN, -1.0], [0.0, 0.5, 0.0, 0.0, 1e-30, 0.5, NAN]
    loss, grad = elements(LigerKLDivLossFunction, x, y, "none")
    assert loss[0].tolist()[:5] == [0, INF, 0, 0, INF] and loss[0, 5:].isnan().all()
    assert grad.tolist()[:6] == [-v for v in torch.tensor(y[:6]).tolist()] and grad[6].isnan()
    x, y = [-INF, -INF, INF, -2.0, -1.0], [-INF, -1.0, -INF, -INF, -1.0]
    loss, grad = elements(LigerKLDivLossFunction, x, y, "none", True)
    assert loss[0].tolist() == [0, INF, 0, 0, 0]
    assert grad.tolist()[0] == grad.tolist()[2] == grad.tolist()[3] == 0
    assert_close(grad[[1, 4]], torch.tensor([-1.0, -1.0]).double().exp().neg(), torch.float32, 2)


@pytest.mark.parametrize("plain_torch", [False, True])
@pytest.mark.parametrize("beta", [*BETAS, *SKEW])
def test_infinities_of_jsd(device, monkeypatch, beta, plain_torch):
    """Each element alone in a row, so that the loss is that element's."""
    monkeypatch.setattr(LigerJSDFunction, "_plain_torch", plain_torch)

    def of(x, y):
        x = torch.tensor([[x]], device=device, requires_grad=True)
        loss = LigerJSDFunction.apply(x, torch.tensor([[y]], device=device), None, beta)
        loss.backward()
        return loss.item(), x.grad.item()

    assert of(-INF, -INF) == (0, 0)
    assert of(-1e4, -2e4) == (0, 0)  # both vanish
    only_p, only_q = of(-INF, -1.0), of(-1.0, -INF)
    p = q = torch.tensor(-1.0).double().exp().item()
    if beta == 0:
        assert only_p[0] == INF and only_p[1] == pytest.approx(-p) and only_q == (0, 0)
    elif beta == 1:
        assert only_p == (0, 0) and only_q == (INF, INF)
    else:
        log_beta, log_rest = math.log(beta), math.log1p(-beta)
        assert only_p[1] == 0 and only_p[0] == pytest.approx(-beta * p * log_beta, rel=1e-6, abs=0)
        assert only_q == pytest.approx((-(1 - beta) * q * log_rest,) * 2, rel=1e-6, abs=0)
    for x, y in ((NAN, -1.0), (-1.0, NAN)):
        loss, grad = of(x, y)
        assert loss != loss and (grad != grad or (beta == 0 and y == y))


def test_ties(device):
    x = torch.tensor([[0.1, 0.2, 0.3]], device=device, requires_grad=True)
    LigerTVDLossFunction.apply(x, torch.tensor([[0.2, 0.2, 0.1]], device=device)).backward()
    assert x.grad.tolist() == [[-0.5, 0.0, 0.5]]


def marked(function, *, reduction):
    """The Function with labels: (x, y, labels, ignore_index) -> loss."""
    if function is LigerJSDFunction:
        return lambda x, y, marks, ignore: function.apply(x, y, marks, 0.3, ignore)
    return lambda x, y, marks, ignore: function.apply(x, y, marks, reduction, ignore)


WITH_LABELS = [(LigerJSDFunction, "batchmean"), *((LigerTVDLossFunction, r) for r in REDUCTIONS)]


@pytest.mark.parametrize(("function", "reduction"), WITH_LABELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_may_hold_anything(device, dtype, function, reduction):
    apply = marked(function, reduction=reduction)
    x, y = (log_probs(7, 100).exp().to(device, dtype) for _ in range(2))
    marks = labels(7).to(device)
    poisoned = [torch.where((marks == -100)[:, None], NAN, t) for t in (x, y)]
    results = []
    for a, b, ignore in ((x, y, -100), (*poisoned, 10**9)):
        a = a.clone().requires_grad_()
        loss = apply(a, b, torch.where(marks == -100, ignore, marks), ignore)
        loss.sum().backward()
        results.append((loss, a.grad))
    assert all(map(torch.equal, *results)) and not results[0][1][marks == -100].any()


@pytest.mark.parametrize(("function", "reduction"), WITH_LABELS)
def test_nothing_counts(device, function, reduction):
    apply = marked(function, reduction=reduction)
    for shape in ((4, 9), (0, 9), (4, 0)):
        x = torch.randn(shape, device=device, requires_grad=True)
        loss = apply(x, torch.randn(shape, device=device), torch.full(shape[:1], -100, device=device), -100)
        loss.sum().backward()
        assert loss.shape == (shape if reduction == "none" else ()) and not loss.any()
        assert x.grad.shape == shape and not x.grad.any()


@pytest.mark.parametrize("upstream", [INF, NAN])
@pytest.mark.parametrize(("function", "reduction"), WITH_LABELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_upstream_reaches_ignored_rows(device, dtype, function, reduction, upstream):
    x = (log_probs(5, 9) / 2).to(device, dtype).requires_grad_()
    marks = labels(5).to(device)
    loss = marked(function, reduction=reduction)(x, log_probs(5, 9).to(device, dtype), marks, -100)
    (loss * upstream).sum().backward()
    assert (x.grad[marks == -100] == 0).all() and not x.grad[marks != -100].isfinite().any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(device, reduction):
    x = torch.randn(0, 9, device=device, requires_grad=True)
    loss = LigerKLDivLossFunction.apply(x, torch.rand(0, 9, device=device), reduction)
    loss.sum().backward()
    assert loss.shape == ((0, 9) if reduction == "none" else ()) and not loss.any() and x.grad.shape == (0, 9)


# ---- gradients: when, where, and of what ----------------------------------------------------------------------------------


def test_float16_gradients_meet_the_loss_scale_before_they_are_rounded(device):
    """1/(rows · vocab) = 5e-8 is float16's smallest subnormal; with a loss scale it must not have been rounded."""
    rows, vocab, loss_scale = 512, 5000, 4096.0
    x = torch.zeros(rows, vocab, dtype=torch.float16, device=device, requires_grad=True)
    y = torch.full((rows, vocab), 1 / vocab, dtype=torch.float16, device=device)
    LigerKLDivLossFunction.apply(x, y).mul(loss_scale).backward()
    exact = -y[:4].double() * loss_scale / rows
    assert_close(x.grad[:4], exact, torch.float16, 1)


def test_losses_of_elements_save_the_inputs_alone(device):
    """No matrix in float32 but the result, and with a gradient formed in forward nothing but that."""
    x, y = log_probs(6, 40).to(device, torch.bfloat16).requires_grad_(), log_probs(6, 40).to(device, torch.bfloat16)
    loss, none = LigerKLDivLossFunction.apply(x, y), LigerKLDivLossFunction.apply(x, y, "none")
    dx = loss.grad_fn.saved_tensors
    assert [t.dtype for t in dx if t is not None] == [torch.bfloat16] and dx[0].data_ptr() != x.data_ptr()
    assert [t.data_ptr() for t in none.grad_fn.saved_tensors] == [x.data_ptr(), y.data_ptr()]


def test_a_gradient_is_formed_only_where_it_is_asked_for(device):
    x, y = log_probs(6, 40).to(device), log_probs(6, 40).to(device)
    assert kl_div(x, y, 3, True, 0.0, False)[1] is None
    assert jsd(x, y, None, -100, 0.5, False)[1] is None
    assert tvd(x, y, None, -100, 3, False)[1] is None


@pytest.mark.parametrize("how", [lambda v: v.sum(), lambda v: v.sum(-1).dot(torch.arange(6.0, device=v.device)),
                                 lambda v: v.mean(0).sum(), lambda v: v[:, 3:].sum()])  # fmt: skip
def test_sums_of_elements(device, how):
    """Their upstreams are expanded: one number for all, or for a row, which are not copied; or they are matrices."""
    x, y = log_probs(6, 40).to(device).requires_grad_(), log_probs(6, 40).exp().to(device)
    how(LigerTVDLossFunction.apply(x, y, None, "none")).backward()
    wide, target = twins(x, y)
    how(tvd64(wide, target).float().to(device)).backward()
    assert_close(x.grad, wide.grad, torch.float32, 1)


def test_the_second_of_two_backwards(device):
    """Where a gradient's memory is taken for the result once the graph is freed, it is not before."""
    x, y = log_probs(600, 400).to(device).requires_grad_(), log_probs(600, 400).to(device)
    loss = LigerJSDFunction.apply(x, y)
    (one,) = torch.autograd.grad(loss * 3, x, retain_graph=True)
    (two,) = torch.autograd.grad(loss, x, retain_graph=True)
    (three,) = torch.autograd.grad(loss * 3, x)
    assert torch.equal(one, three) and torch.allclose(one, 3 * two, rtol=1e-6, atol=0)


def test_helpers_of_jsd(device):
    x, y = log_probs(6, 40).to(device).requires_grad_(), log_probs(6, 40).to(device)
    loss, dx = jsd_forward(x, y, labels(6).to(device), 0.5, -100, True)
    expected = LigerJSDFunction.apply(x, y, labels(6).to(device))
    expected.backward()
    assert torch.equal(loss, expected) and torch.equal(jsd_backward(dx, torch.ones((), device=device)), x.grad)
    assert torch.equal(jsd_backward(dx, torch.tensor(2.0, device=device)), 2 * x.grad)
    assert torch.equal(jsd_forward(x, y, labels(6).to(device), 0.5, -100, False)[0], LigerJSDFunction.apply(x, y))


# ---- modules and words ----------------------------------------------------------------------------------------------------


def test_modules_and_functions(device):
    x, y = log_probs(6, 40).to(device), log_probs(6, 40).to(device)
    marks = labels(6).to(device)
    kl, js, tv = LigerKLDivLossFunction.apply, LigerJSDFunction.apply, LigerTVDLossFunction.apply
    assert isinstance(LigerKLDIVLoss(), torch.nn.KLDivLoss) and from_transformers is LigerJSDFunction
    for got, expected in (
        (LigerKLDIVLoss()(x, y.exp()), kl(x, y.exp(), "mean")),
        (LigerKLDIVLoss(1e-3, reduction="sum")(x, y.exp()), kl(x, y.exp(), "sum", False, 1e-3)),
        (LigerKLDIVLoss(log_target=True)(x, y), kl(x, y, "mean", True)),
        (liger_kl_div(x, y.exp()), kl(x, y.exp(), "mean")),
        (liger_kl_div(x, y, False, False, "batchmean", True), kl(x, y, "batchmean", True)),
        (LigerJSD()(x, y), js(x, y)),
        (LigerJSD(0.2, 4)(x, y, marks), js(x, y, marks, 0.2, 4)),
        (liger_jsd(x, y, marks, 0.2), js(x, y, marks, 0.2)),
        (LigerTVDLoss()(x, y), tv(x, y)),
        (LigerTVDLoss("none", 4)(x, y, marks), tv(x, y, marks, "none", 4)),
        (liger_tvd(x, y), tv(x, y, None, "mean")),
        (liger_tvd(x, y, marks, "sum"), tv(x, y, marks, "sum")),
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_refused(device, compiled):
    x, y = log_probs(6, 40).to(device), log_probs(6, 40).to(device)

    def wrong(function, *args, says):
        def call():
            return function.apply(*args)

        with pytest.raises(Exception if compiled else AssertionError, match=says) as caught:
            torch.compile(call, backend="eager", fullgraph=True)() if compiled else call()
        assert compiled or isinstance(caught.value, ValueError)

    wrong(LigerJSDFunction, x, y, labels(5).to(device), says=r"the shape of shift_labels must be \(BT,\).*6.*5")
    wrong(LigerTVDLossFunction, x, y, labels(5).to(device), says=r"the shape of shift_labels must be \(BT,\).*6.*5")
    shape = ".*" if compiled else r"\(6, 39\)"  # some releases of Dynamo do not render it
    wrong(LigerKLDivLossFunction, x, y[:, 1:], says=rf"y_true.* has shape {shape}.*\(6, 40\)")
    wrong(LigerKLDivLossFunction, x.view(2, 3, 40), y.view(2, 3, 40), says="y_pred has 3 dimensions")
    wrong(LigerKLDivLossFunction, x, y, "average", says="reduction is 'average'")
    wrong(LigerTVDLossFunction, x, y, None, "average", says="reduction is 'average'")
    wrong(LigerJSDFunction, x, y, None, 1.5, says="beta is 1.5")
    wrong(LigerJSDFunction, x.double(), y, says="(_input|x) is (torch.float64|f64)")


def test_a_name_of_an_implementation(device):
    x, y = log_probs(6, 40).to(device), log_probs(6, 40).to(device)
    assert torch.equal(
        LigerJSDFunction.apply(x, y, None, 0.5, -100, "liger-c", "default"), LigerJSDFunction.apply(x, y)
    )
    with pytest.warns(UserWarning, match="there is one implementation"):
        LigerJSDFunction.apply(x, y, None, 0.5, -100, "of_a_test_of_jsd")
