"""Modulated RMSNorm: values and gradients against float64 for every casting and shape of the modulation; the module."""

from __future__ import annotations

import pytest
import reference
import torch
from operator_case import HIDDEN, Case
from reference import DTYPES, assert_close

from liger_kernel.ops import LigerModulatedRMSNormFunction
from liger_kernel.ops.modulated_rms_norm import modulated_rms_norm_backward, modulated_rms_norm_forward
from liger_kernel.transformers import LigerModulatedRMSNorm
from liger_kernel.transformers.functional import liger_modulated_rms_norm


def _make(n):
    return [torch.randn(2, n, HIDDEN), torch.randn(HIDDEN), torch.randn(2, 1, HIDDEN), torch.randn(2, 1, HIDDEN), 1e-6]


OWED = [Case("modulated_rms_norm", LigerModulatedRMSNormFunction, _make, (0, 1, 2, 3))]
SHAPES = {
    "one": (72,), "batch": (3, 72), "batch, 1": (3, 1, 72), "all": (3, 50, 72), "deep": (1, 3, 1, 1, 1, 1, 1, 72),
}  # fmt: skip
ROUNDINGS = {"llama": 3, "gemma": 3, "none": 7}  # of y: one at the end, and those inside, which may fall on either side


def expected(x, weight, scale, shift, offset):
    """In float64: groups are rows of the reshaped tensor."""
    normal = reference.rms_norm(x, weight, 1e-5, offset)
    groups = scale.numel() // scale.shape[-1]
    grouped = normal.reshape(groups, -1, x.shape[-1])
    y = grouped * (1 + scale.reshape(groups, 1, -1))
    return (y if shift is None else y + shift.reshape(groups, 1, -1)).reshape(x.shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("casting", ["llama", "gemma", "none"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, wide, casting, shape):
    kind = torch.float32 if wide else dtype
    x = torch.randn(3, 50, 72, device=device).to(dtype).requires_grad_()
    weight = (1 + 0.1 * torch.randn(72, device=device)).to(kind).requires_grad_()
    scale, shift = (torch.randn(shape, device=device).to(kind).requires_grad_() for _ in range(2))
    y = LigerModulatedRMSNormFunction.apply(x, weight, scale, shift, 1e-5, 0.5, casting)
    dy = torch.randn_like(y)
    y.backward(dy)
    twins = reference.twins(x, weight, scale, shift)
    exact = expected(*twins, 0.5)
    exact.backward(dy.cpu().double())
    assert y.dtype is dtype
    # scale and shift may cancel: rounded is what they are made of
    parts = (exact.abs() + 2 * twins[3].reshape(-1, 1, 72).abs().expand(twins[3].numel() // 72, 150 * 72 // twins[3].numel(), 72).reshape(3, 50, 72)).detach()  # fmt: skip
    unit = torch.finfo(dtype).eps / 2
    assert ((y.detach().cpu().double() - exact.detach()).abs() <= (ROUNDINGS[casting] * unit + 32 * 2.0**-24) * parts.amax()).all()  # fmt: skip
    inside = 3 if casting != "gemma" else 1  # x·rstd that is rounded, and rstd
    for given, twin, terms in zip((x, weight, scale, shift), twins, (72, 150, 50, 50)):
        assert given.grad.dtype is given.dtype
        one = torch.finfo(given.dtype).eps / 2
        bound = one * 1.01 * twin.grad.abs() + (inside * unit * (dtype is not torch.float32) * 4 + (16 + terms) * 2.0**-24) * twin.grad.abs().amax()  # fmt: skip
        assert ((given.grad.cpu().double() - twin.grad).abs() <= bound + torch.finfo(given.dtype).smallest_normal).all()


@pytest.mark.parametrize("casting", ["llama", "gemma", "none"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_gradient_of_scale_is_what_scale_multiplies(device, kind, casting):
    """With all the roundings inside, those of the weight too: where dy is 1 and scale 0 it is y, and it is that of the formula."""
    x = torch.tensor([[1.0, 2, 3, 5]], device=device).bfloat16()
    weight = torch.tensor([1.0, 1, 1.5, 0.75], device=device).to(kind)
    scale = torch.zeros(4, device=device, requires_grad=True)

    def apply(scale):
        return LigerModulatedRMSNormFunction.apply(x, weight, scale, None, 0.0, 0.1, casting)

    y = apply(scale)
    (dscale,) = torch.autograd.grad(y, scale, torch.ones_like(y))
    by_formula = torch.func.grad(lambda s: apply(s).float().sum())(scale.detach())
    assert (dscale - by_formula).abs().max() <= 4 * 2.0**-24 * by_formula.abs().max()
    assert torch.equal(dscale.bfloat16(), y.detach()[0])
    if casting == "gemma":
        assert torch.equal(dscale, y.detach()[0].float())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("plain_torch", [False, True])
def test_without_shift_and_weight(device, weighted, plain_torch, monkeypatch):
    monkeypatch.setattr(LigerModulatedRMSNormFunction, "_plain_torch", plain_torch)
    x = torch.randn(2, 5, 40, device=device, requires_grad=True)
    weight = torch.randn(40, device=device, requires_grad=True) if weighted else None
    scale = torch.randn(2, 1, 40, device=device, requires_grad=True)
    y = LigerModulatedRMSNormFunction.apply(x, weight, scale, None, 1e-5)
    y.backward(torch.ones_like(y))
    wide = reference.twins(x, weight, scale)
    exact = expected(*wide, None, 0.0)
    exact.backward(torch.ones_like(exact))
    assert_close(y, exact, torch.float32, 4, 40)
    for given, twin in zip((x, weight, scale), wide):
        if given is not None:
            assert_close(given.grad, twin.grad, torch.float32, 8, 40)


def test_float32_modulation_of_bfloat16(device):
    """And a shift that is neither of the scale's dtype nor of its shape."""
    x = torch.randn(2, 6, 24, device=device).bfloat16().requires_grad_()
    scale = torch.randn(2, 1, 24, device=device, requires_grad=True)
    shift = torch.randn(2, 24, device=device).bfloat16().requires_grad_()
    y = LigerModulatedRMSNormFunction.apply(x, torch.ones(24, device=device), scale, shift, 1e-6)
    y.sum().backward()
    assert y.dtype is torch.bfloat16 and scale.grad.dtype is torch.float32 and shift.grad.dtype is torch.bfloat16
    assert scale.grad.shape == (2, 1, 24) and shift.grad.eq(6).all() and shift.grad.shape == (2, 24)


def test_more_than_six_dimensions(device):
    """Of all three, and of a modulation whose two parts are widened, or are not alike."""
    deep, kinds = (
        (2, 1, 2, 1, 3, 1, 1, 24),
        [(torch.float32,) * 2, (torch.float16,) * 2, (torch.float16, torch.float32)],
    )
    x, scale, shift = (torch.randn(s, 24, device=device) for s in (12, 2, 2))
    for dtypes in kinds:
        flat = [x.bfloat16(), torch.ones(24, device=device).bfloat16(), scale.to(dtypes[0]), shift.to(dtypes[1])]
        shapes, found = [deep, (24,), (2, *[1] * 6, 24), (1, 2, *[1] * 6, 24)], []
        for made in (flat, [t.view(s) for t, s in zip(flat, shapes)]):
            leaves = [t.detach().clone().requires_grad_() for t in made]
            y = LigerModulatedRMSNormFunction.apply(*leaves, 1e-6)
            found.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
        assert [tuple(t.shape) for t in found[1]] == [deep, *shapes]
        assert all(torch.equal(a.flatten(), b.flatten()) and a.dtype is b.dtype for a, b in zip(*found))


@pytest.mark.parametrize("plain_torch", [False, True])
def test_what_does_not_fit_is_refused(device, plain_torch, monkeypatch):
    monkeypatch.setattr(LigerModulatedRMSNormFunction, "_plain_torch", plain_torch)
    x, w = torch.randn(2, 6, 24, device=device), torch.ones(24, device=device)
    for scale, shift, text in (
        (torch.zeros(5, 24), None, "scale has 5 rows, but [xX] has 12"),
        (torch.zeros(2, 23), None, "scale"),
        (torch.zeros(2, 24), torch.zeros(3, 24), "shift"),
    ):
        given = (t if t is None else t.to(device) for t in (scale, shift))
        with pytest.raises(AssertionError, match=text):
            LigerModulatedRMSNormFunction.apply(x, w, *given, 1e-6)


def test_helpers(device):
    x, w, scale, shift, eps = (t.to(device) if torch.is_tensor(t) else t for t in _make(5))
    y, flat, rstd, block, warps, casting = modulated_rms_norm_forward(x, w, scale, shift, eps, 0.5, "llama")
    given = [t.clone().requires_grad_() for t in (x, w, scale, shift)]
    expected_y = LigerModulatedRMSNormFunction.apply(*given, eps, 0.5)
    dy = torch.randn_like(y)
    expected_y.backward(dy)
    found = modulated_rms_norm_backward(dy, flat, w, scale, shift, rstd, 0.5, casting, block, warps, 5, True)
    assert torch.equal(y, expected_y) and all(torch.equal(a, b.grad) for a, b in zip(found, given))


def test_module_and_function(device):
    module = LigerModulatedRMSNorm(24, eps=1e-5, offset=1.0, casting_mode="gemma", init_fn="zeros").to(device)
    x, _, scale, shift, _ = (t.to(device) if torch.is_tensor(t) else t for t in _make(5))
    wanted = LigerModulatedRMSNormFunction.apply(x, module.weight, scale, shift, 1e-5, 1.0, "gemma")
    assert torch.equal(module(x, scale, shift), wanted)
    assert torch.equal(liger_modulated_rms_norm(x, module.weight, scale, shift, 1e-5, 1.0, "gemma"), wanted)
    assert torch.equal(module(x, scale), liger_modulated_rms_norm(x, module.weight, scale, eps=1e-5, offset=1.0, casting_mode="gemma"))  # fmt: skip
    bare = LigerModulatedRMSNorm(24, elementwise_affine=False)
    assert bare.weight is None and repr(bare) == (
        "LigerModulatedRMSNorm(weight_shape=None, eps=1e-06, offset=0.0, in_place=True)"
    )
    with pytest.raises(AssertionError, match="init_fn"):
        LigerModulatedRMSNorm(24, init_fn="random")


def test_more_than_2_to_the_31_elements(device):
    """The last group's rows get what they get alone."""
    if device.type != "cuda" or torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs --device cuda and 24 GB of free memory")
    rows, cols = 2**30 // 8192 + 5, 8192
    x = torch.zeros(2, rows, cols, dtype=torch.bfloat16, device=device)
    x[:, -4:].normal_()
    w, scale, shift = (torch.randn(s, dtype=torch.bfloat16, device=device) for s in (cols, (2, cols), (2, cols)))
    found = []
    for group in (slice(0, 2), slice(1, 2)):
        given = x[group].clone().requires_grad_()
        y = LigerModulatedRMSNormFunction.apply(given, w, scale[group], shift[group], 1e-6)
        (dx,) = torch.autograd.grad(y, given, torch.ones_like(y))
        found.append((y[-1, -4:].detach().clone(), dx[-1, -4:].clone()))
        del y, dx
    assert all(torch.equal(a, b) for a, b in zip(*found)) and found[0][1].any()


@pytest.mark.parametrize("dtypes", [(0, 1, 1, 1), (1, 0, 0, 0), (2, 1, 1, 1), (0, 2, 1, 1), (0, 0, 2, 0), (0, 0, 0, 2)])
def test_mixed_dtypes_are_not_refused_first(device, dtypes, monkeypatch):
    """Widened ahead of the call, with the bits of a call that is given f32; gradients in the dtypes of what they belong to."""
    known = (torch.bfloat16, torch.float16, torch.float32)
    shapes = ((6, 40), (40,), (2, 40), (2, 40))
    given = [torch.randn(s, device=device).to(known[d]).requires_grad_() for s, d in zip(shapes, dtypes)]
    wide = [t.detach().float() if i else t.detach() for i, t in enumerate(given)]
    wide = [t.requires_grad_() for t in wide]
    up, operator = torch.randn_like(given[0]), LigerModulatedRMSNormFunction.operator
    for one in (operator, operator.derivative):
        monkeypatch.setattr(one, "prepared", lambda *args: pytest.fail("it was refused"))
    y, right = (LigerModulatedRMSNormFunction.apply(*tensors, 1e-6) for tensors in (given, wide))
    assert torch.equal(y, right)
    found, expected = (torch.autograd.grad(out, t, up) for out, t in ((y, given), (right, wide)))
    for a, b, t in zip(found, expected, given):
        assert a.dtype is t.dtype and torch.equal(a, b.to(t.dtype))
