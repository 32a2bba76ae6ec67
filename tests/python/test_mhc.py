"""Hyper-connections: values and every gradient against float64, for any number of streams and mix of dtypes."""

from __future__ import annotations

import warnings

import c_program
import pytest
import torch
from operator_case import HIDDEN, Case
from reference import DTYPES, twins, unit
from torch import nn

from liger_kernel import _native
from liger_kernel.ops import LigerMHCCoeffsFunction, LigerMHCPostResFunction, LigerMHCPreFunction
from liger_kernel.ops.mhc import LigerMHCAggregateFunction
from liger_kernel.transformers import LigerMHC
from liger_kernel.transformers.functional import (
    liger_mhc_apply,
    liger_mhc_coeffs,
    liger_mhc_forward,
    liger_mhc_post_res,
    liger_mhc_pre,
)

OPTIONS = (True, 3, 1e-6, 0.1, 1e-6, 2.0)
HC = 2  # in a forked child torch compares no more than it does with one thread


def _parameters(hc, c):
    k, m = hc * c, hc * hc + 2 * hc
    return [torch.randn(k, m) / k**0.5, torch.randn(m), *(torch.rand(()) + 0.5 for _ in range(3))]


def _coeffs(n):
    phi, b, *alphas = _parameters(HC, HIDDEN)
    return [torch.randn(2, n, HC, HIDDEN), phi, b, *(alpha.view(1) for alpha in alphas), *OPTIONS]


def _post_res(n):
    return [torch.randn(2, n, HC, HIDDEN), torch.randn(2, n, HIDDEN), torch.randn(2, n, HC), torch.randn(2, n, HC, HC)]


OWED = [
    Case("mhc_coeffs", LigerMHCCoeffsFunction, _coeffs, tuple(range(6)), 3),
    Case("mhc_aggregate", LigerMHCAggregateFunction, _coeffs, tuple(range(6)), 4),
    Case("mhc_pre", LigerMHCPreFunction, lambda n: [torch.randn(2, n, HC, HIDDEN), torch.randn(2, n, HC)], (0, 1)),
    Case("mhc_post_res", LigerMHCPostResFunction, _post_res, (0, 1, 2, 3)),
]


# ---- what it is, in float64 ---------------------------------------------------------------------------------------------


def exact_coeffs(x, phi, b, alpha_pre, alpha_post, alpha_res, tmax=20, rms_eps=1e-6, pre_eps=0.0, eps=1e-6, mult=2.0):
    hc, flat = x.shape[-2], x.flatten(-2)
    mix = flat @ phi / (flat.pow(2).mean(-1, keepdim=True) + rms_eps).sqrt()
    pre, post, res = mix[..., :hc], mix[..., hc : 2 * hc], mix[..., 2 * hc :]
    h_pre = torch.sigmoid(pre * alpha_pre + b[:hc]) + pre_eps
    h_post = torch.sigmoid(post * alpha_post + b[hc : 2 * hc]) * mult
    a = torch.softmax((res * alpha_res + b[2 * hc :]).view(*x.shape[:-1], hc), -1) + eps
    a = a / (a.sum(-2, keepdim=True) + eps)
    for _ in range(tmax - 1):
        a = a / (a.sum(-1, keepdim=True) + eps)
        a = a / (a.sum(-2, keepdim=True) + eps)
    return h_pre, h_post, a


def exact_pre(x, h_pre):
    return (h_pre.unsqueeze(-1) * x).sum(-2)


def exact_post_res(x, f, h_post, h_res):
    return h_res @ x + h_post.unsqueeze(-1) * f.unsqueeze(-2)


def close(found, expected, terms, scale=None):
    """Within a rounding to found's dtype, and f32 sums of so many terms as large as the largest of what is expected."""
    assert found.shape == expected.shape
    wide, expected = found.detach().cpu().double(), expected.detach()
    largest = expected.abs().amax() if expected.numel() else expected.sum()
    largest = largest if scale is None else torch.maximum(largest, torch.as_tensor(scale, dtype=torch.float64))
    allowed = 1.01 * unit(found.dtype) * expected.abs() + (32 + terms**0.5) * 4 * unit(torch.float32) * largest
    floor = torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    assert ((wide - expected).abs() <= allowed + floor).all(), f"off by {(wide - expected).abs().max()} of {largest}"


def on(device, tensors, dtype=None):
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def make(device, hc, c, x_dtype, phi_dtype, shape=(2, 5)):
    x = torch.randn(*shape, hc, c).to(device, x_dtype).requires_grad_()
    phi, *others = _parameters(hc, c)
    return [x, phi.to(device, phi_dtype).requires_grad_(), *on(device, others)]


# ---- coefficients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tmax", [1, 20])
@pytest.mark.parametrize("hc", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize(
    "dtypes", [(a, b) for a in DTYPES for b in DTYPES], ids=lambda d: f"{d[0]}-{d[1]}".replace("torch.", "")
)
def test_coefficients(device, dtypes, hc, tmax):
    x_dtype, phi_dtype = dtypes
    given = make(device, hc, 40 if hc < 8 else 12, x_dtype, phi_dtype)
    found = liger_mhc_coeffs(*given, allow_fp32=True, tmax=tmax, pre_eps=0.1)
    wide = twins(*given)
    expected = exact_coeffs(*wide, tmax=tmax, pre_eps=0.1)
    ups = [torch.randn_like(h) for h in found]
    torch.autograd.backward(found, ups)
    torch.autograd.backward(expected, [u.cpu().double() for u in ups])
    k = given[1].shape[0]
    for h, right in zip(found, expected):
        assert h.dtype is torch.float32
        close(h, right, k + 8 * tmax, 4)
    for tensor, twin in zip(given, wide):
        assert tensor.grad.dtype is tensor.dtype
        # a coefficient moves by as much as its logit at most, and a logit's gradient is a sum over tokens or coefficients
        size = twin.grad.abs().amax().item() + max(u.abs().max().item() for u in ups)
        close(tensor.grad, twin.grad, k + 8 * tmax + given[1].shape[1], size)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (3,), (1, 3)])
def test_missing_upstreams_are_zeros(device, used):
    """Every input that wants a gradient gets one."""
    given = make(device, 4, 24, torch.bfloat16, torch.bfloat16)
    results = LigerMHCAggregateFunction.apply(*given, *OPTIONS)
    ups = [torch.randn_like(r) if i in used else torch.zeros_like(r) for i, r in enumerate(results[:4])]
    some = torch.autograd.grad([results[i] for i in used], given, [ups[i] for i in used], retain_graph=True)
    every = torch.autograd.grad(results[:4], given, ups, retain_graph=True)
    again = torch.autograd.grad(results[:4], given, ups)
    for a, b, c in zip(some, every, again):
        assert a is not None and torch.equal(a, b) and torch.equal(b, c)
    if 3 not in used:
        results = LigerMHCCoeffsFunction.apply(*given, *OPTIONS)
        alone = torch.autograd.grad([results[i] for i in used], given, [ups[i] for i in used])
        assert all(torch.equal(a, b) for a, b in zip(alone, some))


@pytest.mark.parametrize("wanted", range(6))
def test_one_gradient_alone(device, wanted):
    given = make(device, 4, 24, torch.bfloat16, torch.float32)
    results = LigerMHCAggregateFunction.apply(*given, *OPTIONS)[:5]
    ups = [torch.randn_like(r) for r in results]
    every = torch.autograd.grad(results, given, ups)
    given = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(given)]
    results = LigerMHCAggregateFunction.apply(*given, *OPTIONS)
    pairs = [(r, u) for r, u in zip(results, ups) if r.requires_grad]
    (alone,) = torch.autograd.grad([r for r, _ in pairs], [given[wanted]], [u for _, u in pairs])
    assert torch.equal(alone, every[wanted])


def test_the_gradient_of_x_is_added_in_the_kernel(device):
    """What its other user says of x, in f32 and rounded once."""
    given = make(device, 4, 40, torch.bfloat16, torch.bfloat16)
    *results, x, _ = LigerMHCAggregateFunction.apply(*given, *OPTIONS)
    ups = [torch.randn_like(r) for r in (*results, x)]
    found = torch.autograd.grad((*results, x), given, ups)
    wide = twins(*given)
    h = exact_coeffs(*wide, tmax=3, pre_eps=0.1)
    expected = torch.autograd.grad((*h, exact_pre(wide[0], h[0]), wide[0]), wide, [u.cpu().double() for u in ups])
    close(found[0], expected[0], 160 + 24, 8)
    (alone,) = torch.autograd.grad(LigerMHCAggregateFunction.apply(*given, *OPTIONS)[4], given[0], ups[-1])
    assert torch.equal(alone, ups[-1])


def test_empty_and_strided(device):
    given = make(device, 4, 24, torch.bfloat16, torch.bfloat16, shape=(0, 3))
    results = LigerMHCAggregateFunction.apply(*given, *OPTIONS)
    grads = torch.autograd.grad(results[:4], given, [torch.ones_like(r) for r in results[:4]])
    assert results[3].shape == (0, 3, 24) and not any(g.any() for g in grads)
    given = make(device, 4, 24, torch.bfloat16, torch.bfloat16)
    odd = given[0].detach().transpose(0, 3).contiguous().transpose(0, 3).requires_grad_()
    for function, others in ((LigerMHCCoeffsFunction, (*given[1:], *OPTIONS)), (LigerMHCPreFunction, (torch.rand(2, 5, 4, device=device),))):  # fmt: skip
        grads = []
        for x in (given[0], odd):
            out = function.apply(x, *others)
            out = out if torch.is_tensor(out) else out[2]
            grads.append((out, *torch.autograd.grad(out, x, torch.ones_like(out))))
        assert all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.mark.parametrize("plain_torch", [False, True])
def test_what_does_not_fit_is_refused(device, plain_torch, monkeypatch):
    for function in (LigerMHCCoeffsFunction, LigerMHCPreFunction, LigerMHCPostResFunction):
        monkeypatch.setattr(function, "_plain_torch", plain_torch)
    x, phi, b, *alphas = make(device, 4, 24, torch.bfloat16, torch.bfloat16)
    with pytest.raises(AssertionError, match="x is torch.float32, but must be bfloat16 or float16"):
        liger_mhc_coeffs(x.float(), phi, b, *alphas)
    for wrong in (phi[:-1], phi[:, :-1], phi[None]):
        with pytest.raises(AssertionError, match=r"phi has shape \(.*\), but must have \(96, 24\)"):
            liger_mhc_coeffs(x, wrong, b, *alphas)
    with pytest.raises(AssertionError, match=r"b has shape \(23,\), but must have \(24,\)"):
        liger_mhc_coeffs(x, phi, b[:-1], *alphas)
    with pytest.raises(ValueError, match="tmax"):
        liger_mhc_coeffs(x, phi, b, *alphas, tmax=0)
    with pytest.raises(ValueError, match="float64"):
        liger_mhc_coeffs(x, phi.double(), b, *alphas)
    with pytest.raises(ValueError, match=r"h_pre has shape \(2, 5, 3\), but must have \(2, 5, 4\)"):
        liger_mhc_pre(x, torch.rand(2, 5, 3, device=device))
    f, h = torch.randn(2, 5, 24, device=device), torch.rand(2, 5, 4, device=device)
    with pytest.raises(ValueError, match=r"h_res has shape \(2, 5, 4, 3\), but must have \(2, 5, 4, 4\)"):
        liger_mhc_post_res(x, f, h, torch.rand(2, 5, 4, 3, device=device))
    with pytest.raises(ValueError, match=r"f_out has shape \(2, 5, 23\), but must have \(2, 5, 24\)"):
        liger_mhc_post_res(x, f[..., :-1], h, torch.rand(2, 5, 4, 4, device=device))


WRONG_OPTIONS = [("tmax", 0), ("tmax", 65537), ("sinkhorn_eps", -1.0), ("sinkhorn_eps", float("nan")), ("rms_eps", -1.0),
                 ("rms_eps", float("nan")), ("pre_eps", float("nan")), ("pre_eps", float("inf")),
                 ("post_mult", float("inf"))]  # fmt: skip


@pytest.mark.parametrize("how", ["native", "formula", "meta", "operator", "operator on meta"])
@pytest.mark.parametrize("name, value", WRONG_OPTIONS)
def test_options_that_are_refused(device, how, name, value, monkeypatch):
    monkeypatch.setattr(LigerMHCCoeffsFunction, "_plain_torch", how == "formula")
    given = [
        t.detach().to("meta" if "meta" in how else device) for t in make(device, 4, 24, torch.bfloat16, torch.bfloat16)
    ]
    with pytest.raises(ValueError, match=f"{name} is {value:.7g}, but must be"):
        if "operator" in how:
            defaults = {"tmax": 20, "rms_eps": 1e-6, "pre_eps": 0.0, "sinkhorn_eps": 1e-6, "post_mult": 2.0}
            torch.ops.liger.mhc_coeffs(*given, *{**defaults, name: value}.values())
        else:
            liger_mhc_coeffs(*given, **{name: value})
    with pytest.raises(ValueError, match=f"{name} is {value:.7g}, but must be"):
        LigerMHC(nn.Identity(), hc=4, c=24, **{name: value})


@pytest.mark.parametrize("how", ["native", "formula", "meta", "operator", "operator on meta"])
@pytest.mark.parametrize("hc, c, tokens", [(0, 4, 2), (2, 0, 2), (0, 4, 0), (2, 0, 0), (1025, 1, 0)])
def test_no_streams_too_many_and_no_columns_are_refused(device, how, hc, c, tokens, monkeypatch):
    device = "meta" if "meta" in how else device
    x, f = torch.randn(tokens, hc, c, device=device), torch.randn(tokens, c, device=device)
    h, matrix = torch.rand(tokens, hc, device=device), torch.rand(tokens, hc, hc, device=device)
    # not written: phi of 1025 streams is 4 GB, and nobody reads it
    sizes = ((hc * c, hc * hc + 2 * hc), (hc * hc + 2 * hc,), (1,), (1,), (1,))
    parameters = [torch.empty(size, device=device) for size in sizes]
    of_function = ((x, *parameters, *OPTIONS), (x, h), (x, f, h, matrix))
    for function, args in zip((LigerMHCCoeffsFunction, LigerMHCPreFunction, LigerMHCPostResFunction), of_function):
        monkeypatch.setattr(function, "_plain_torch", how == "formula")
        with pytest.raises(
            ValueError, match=r"x has shape .*, but must have|shape.* is 0, but must be|phi has 0 rows|streams, but"
        ):
            if "operator" in how:
                function.operator.traced(*(args[:6] + args[7:]))
            else:
                function.apply(*args)


@pytest.mark.parametrize("mode", ["meta", "operator on meta"])
def test_shapes_are_looked_at_without_memory(mode):
    x, phi, *others = [t.detach().to("meta") for t in make("cpu", 4, 24, torch.bfloat16, torch.bfloat16)]
    call = torch.ops.liger.mhc_coeffs if "operator" in mode else liger_mhc_coeffs
    options = (3, 1e-6, 0.1, 1e-6, 2.0) if "operator" in mode else ()
    for wrong in (phi[:-1], phi[:, :-1], phi[None], phi[:, 0]):
        with pytest.raises(ValueError, match=r"phi has shape \(.*\), but must have \(96, 24\)"):
            call(x, wrong, *others, *options)
    with pytest.raises(ValueError, match="x has shape"):
        call(x[0, 0, 0], phi, *others, *options)
    h = torch.rand(2, 5, 3, device="meta")
    with pytest.raises(ValueError, match=r"h_pre has shape \(2, 5, 3\), but must have \(2, 5, 4\)"):
        torch.ops.liger.mhc_pre(x, h) if "operator" in mode else liger_mhc_pre(x, h)


def test_b_and_alphas_of_other_dtypes(device):
    """They are converted; gradients are in their own dtype."""
    given = make(device, 4, 24, torch.bfloat16, torch.float16)
    half = [t.detach().half().requires_grad_() for t in given[2:]]
    found = liger_mhc_coeffs(given[0], given[1], *half)
    expected = liger_mhc_coeffs(given[0], given[1], *(t.detach().float() for t in half))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    torch.autograd.backward(found, [torch.ones_like(h) for h in found])
    assert all(t.grad.dtype is torch.float16 and t.grad.shape == t.shape for t in half)


# ---- aggregation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hc, c", [(1, 17), (2, 24), (3, 33), (4, 1000), (5, 8), (8, 64), (16, 40), (17, 3)])
@pytest.mark.parametrize("f_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_aggregation(device, dtype, f_dtype, hc, c):
    x = torch.randn(3, 2, hc, c).to(device, dtype).requires_grad_()
    f = torch.randn(3, 2, c).to(device, f_dtype).requires_grad_()
    h_pre, h_post, h_res = on(device, (torch.rand(3, 2, hc), torch.rand(3, 2, hc), torch.rand(3, 2, hc, hc)))
    given, wide = (x, f, h_pre, h_post, h_res), twins(x, f, h_pre, h_post, h_res)
    found = liger_mhc_apply(*given, return_x_in=True)
    expected = exact_post_res(wide[0], wide[1], wide[3], wide[4]), exact_pre(wide[0], wide[2])
    assert torch.equal(found[0], liger_mhc_apply(*given))
    for one, right, of in zip(found, expected, ((0, 1, 3, 4), (0, 2))):
        assert one.dtype is dtype
        close(one, right, hc)
        up = torch.randn_like(one)
        gradients = torch.autograd.grad(one, [given[i] for i in of], up)
        twin_gradients = torch.autograd.grad(right, [wide[i] for i in of], up.cpu().double())
        for i, gradient, twin in zip(of, gradients, twin_gradients):
            assert gradient.dtype is given[i].dtype
            close(gradient, twin, c, 8)


def test_more_than_2_to_the_31_elements(device):
    """The last tokens get what they get alone."""
    if device.type != "cuda" or torch.cuda.mem_get_info()[0] < 48 * 2**30:
        pytest.skip("needs --device cuda and 48 GB of free memory")
    tokens, c = 2**31 // (HC * 8192) + 5, 8192
    x = torch.zeros(tokens, HC, c, dtype=torch.bfloat16, device=device)
    x[-4:].normal_()
    f, h = torch.randn(tokens, c, dtype=torch.bfloat16, device=device), torch.rand(tokens, HC, device=device)
    matrix, found = torch.rand(tokens, HC, HC, device=device), []
    phi, *others = (t.to(device) for t in _parameters(HC, c))
    for last in (slice(None), slice(-4, None)):
        given = x[last].detach().requires_grad_()
        results = []
        for out in (
            liger_mhc_post_res(given, f[last], h[last], matrix[last]),
            liger_mhc_pre(given, h[last]),
            LigerMHCAggregateFunction.apply(given, phi.bfloat16(), *others, *OPTIONS)[3],
        ):
            (dx,) = torch.autograd.grad(out, given, torch.ones_like(out))
            results += [out[-4:].detach().clone(), dx[-4:].clone()]
            del out, dx
        found.append(results)
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4]))
    for a, b in zip(found[0][4:], found[1][4:]):  # fewer tokens are cut along k
        assert (a - b).abs().max() <= 4 * unit(torch.bfloat16) * b.abs().max() and b.any()


# ---- the layer between ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation(device):
    layer = nn.Linear(256, 256, bias=False, device=device, dtype=torch.bfloat16)
    mhc = LigerMHC(layer, hc=4, c=256, phi_dtype=torch.bfloat16).to(device)
    x = torch.randn(2, 128, 4, 256, device=device, dtype=torch.bfloat16)
    out = mhc(x)
    assert out.shape == x.shape and out.dtype is x.dtype and out.device == x.device
    assert mhc.layer is layer and mhc.extra_repr() == "hc=4, c=256, tmax=20"
    assert {n: (p.dtype, tuple(p.shape)) for n, p in mhc.named_parameters() if "." not in n} == {
        "phi": (torch.bfloat16, (1024, 24)),
        "b": (torch.float32, (24,)),
        "alpha_pre": (torch.float32, ()),
        "alpha_post": (torch.float32, ()),
        "alpha_res": (torch.float32, ()),
    }
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype is p.dtype and p.grad.isfinite().all() for p in mhc.parameters())


@pytest.mark.parametrize("phi_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("layer_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_module_against_float64(device, dtype, layer_dtype, phi_dtype):
    c = 32
    layer = nn.Linear(c, c, device=device, dtype=layer_dtype)
    mhc = LigerMHC(layer, hc=3, c=c, phi_dtype=phi_dtype, allow_fp32=True)
    with torch.no_grad():
        mhc.b.normal_()
    x = torch.randn(2, 7, 3, c, device=device).to(dtype).requires_grad_()
    out, (h_pre, h_post, h_res) = liger_mhc_forward(
        x, layer, mhc.phi, mhc.b, mhc.alpha_pre, mhc.alpha_post, mhc.alpha_res, allow_fp32=True, return_coeffs=True
    )
    assert torch.equal(out, mhc(x))
    up = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, *mhc.parameters()], up)
    wide = twins(x, mhc.phi, mhc.b, mhc.alpha_pre, mhc.alpha_post, mhc.alpha_res, layer.weight, layer.bias)
    h = exact_coeffs(*wide[:6])
    expected_out = exact_post_res(wide[0], exact_pre(wide[0], h[0]) @ wide[6].T + wide[7], h[1], h[2])
    expected = torch.autograd.grad(expected_out, wide, up.cpu().double())
    names = ["x", *(n for n, _ in mhc.named_parameters())]
    right = dict(zip(("x", "phi", "b", "alpha_pre", "alpha_post", "alpha_res", "layer.weight", "layer.bias"), expected))
    # x_in, f_out and their gradients are rounded to x's and the layer's dtype on their way
    coarse = max(unit(dtype), unit(layer_dtype))
    terms = (64 * coarse / unit(torch.float32)) ** 2 if coarse > unit(torch.float32) else 3 * c
    for one, other in ((h_pre, h[0]), (h_post, h[1]), (h_res, h[2])):
        close(one, other, 3 * c + 160)
    close(out, expected_out, terms, 4)
    for name, gradient in zip(names, found):
        close(gradient, right[name], terms, 1 + right[name].abs().amax().item())


def test_the_module_refuses_and_warns():
    with pytest.raises(ValueError, match="tmax is 0"):
        LigerMHC(nn.Identity(), hc=4, c=8, tmax=0)
    for wrong in ({"hc": 0}, {"hc": -1}, {"hc": 1025}, {"c": 0}):
        with pytest.raises(ValueError, match="{} is {}, but must be".format(*next(iter(wrong.items())))):
            LigerMHC(nn.Identity(), **{"hc": 4, "c": 8, **wrong})
    with pytest.warns(UserWarning, match="hc is 17: more than 16 streams"):
        wide = LigerMHC(nn.Identity(), hc=17, c=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mhc = LigerMHC(nn.Identity(), hc=16, c=8)
    x = torch.randn(3, 17, 8, dtype=torch.bfloat16)
    assert wide(x).shape == x.shape and mhc.phi.device.type == "cpu"
    with pytest.raises(ValueError, match=r"x has shape \(3, 17, 8\), but must have \[..., 16, 8\]"):
        mhc(x)


def test_a_step_makes_no_more_memory_than_its_tensors():
    """x has one gradient, which is what the residual has said of it and more: between them stands no addition of autograd's."""
    mhc = LigerMHC(nn.Identity(), hc=4, c=64)
    x = torch.randn(40, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    out = mhc(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out.backward(torch.ones_like(out))
    names = {event.key for event in profile.key_averages()}
    assert "liger::mhc_aggregate_backward" in names and "liger::mhc_post_res_backward" in names
    assert not names & {"aten::add", "aten::add_"}


@pytest.mark.parametrize("needs", [False, True])
def test_x_has_a_gradient_where_it_needs_one(needs, monkeypatch):
    """One as large as x, which would be thrown away, is not made."""
    asked = []
    backward = _native.mhc_post_res_backward
    monkeypatch.setattr(_native, "mhc_post_res_backward", lambda *a: asked.append(a[5]) or backward(*a))
    mhc = LigerMHC(nn.Linear(64, 64, dtype=torch.bfloat16), hc=4, c=64)
    x = torch.randn(40, 4, 64, dtype=torch.bfloat16, requires_grad=needs)
    given = (mhc.phi, mhc.b, mhc.alpha_pre, mhc.alpha_post, mhc.alpha_res)
    LigerMHCAggregateFunction.apply(x, *given, *OPTIONS)
    mhc(x).float().sum().backward()
    assert [dx is not None for dx in asked] == [needs]
    assert (x.grad is not None) == needs and all(p.grad is not None for p in mhc.parameters())


def test_the_module_compiled(device):
    """In one graph, with the same bits: there too the gradients of x are added in the kernel, and rounded once."""
    layer = nn.Linear(40, 40, device=device, dtype=torch.bfloat16)
    mhc = LigerMHC(layer, hc=4, c=40)
    x = torch.randn(3, 7, 4, 40, device=device, dtype=torch.bfloat16, requires_grad=True)
    up, found = torch.randn(3, 7, 4, 40, device=device, dtype=torch.bfloat16), []
    for function in (mhc, torch.compile(mhc, fullgraph=True, backend="aot_eager")):
        out = function(x)
        found.append((out, *torch.autograd.grad(out, [*mhc.parameters(), x], up)))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_the_operator_of_a_node_in_a_graph(device):
    """It belongs to no Function: only a compiled model has it."""
    given = [t.to(device).requires_grad_() for t in (*_post_res(5), torch.zeros(1).expand(2, 5, HC, HIDDEN))]
    torch.library.opcheck(torch.ops.liger.mhc_post_res_streams.default, tuple(given))
    given = [t.detach() for t in given]
    torch.library.opcheck(torch.ops.liger.mhc_post_res_streams_backward.default, (torch.randn_like(given[0]), *given[:4], True, False, True, True))  # fmt: skip
    with pytest.raises(ValueError, match=r"streams has shape \(2, 5, 2, 23\), but must have \(2, 5, 2, 24\)"):
        torch.ops.liger.mhc_post_res_streams(*(t.to("meta") for t in given[:4]), given[4].to("meta")[..., :-1])


class _Broken(nn.Linear):
    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


def test_the_module_compiled_in_two_graphs(device):
    """What stands for x goes from one to the other, and its gradient back."""
    mhc = LigerMHC(_Broken(40, 40, device=device, dtype=torch.bfloat16), hc=4, c=40)
    x = torch.randn(3, 7, 4, 40, device=device, dtype=torch.bfloat16, requires_grad=True)
    up, found = torch.randn_like(x), []
    for function in (mhc, torch.compile(mhc, backend="aot_eager")):
        out = function(x)
        found.append((out, *torch.autograd.grad(out, [*mhc.parameters(), x], up)))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_the_c_example(tmp_path):
    """A layer in C, whose gradients are those of finite differences."""
    said = c_program.output(c_program.ROOT / "examples" / "mhc_layer.c", tmp_path / "mhc_layer")
    assert said.count("agrees with finite differences") == 7
