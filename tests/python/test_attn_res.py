"""Attention over the residual stream: values and gradients against float64, any number of blocks, lists of blocks."""

from __future__ import annotations

import pytest
import torch
from operator_case import HIDDEN, Case
from reference import DTYPES, assert_close, twins

from liger_kernel.ops import LigerAttnResFunction
from liger_kernel.ops.attn_res import attn_res_backward, attn_res_forward
from liger_kernel.transformers.functional import liger_attn_res


def _make(n):
    return [torch.randn(3, n, HIDDEN), torch.randn(HIDDEN) / HIDDEN**0.5, torch.rand(HIDDEN) + 0.5, 1e-6]


OWED = [Case("attn_res", LigerAttnResFunction, _make, (0, 1, 2))]


def exact(v, query, norm, eps=1e-6):
    k = v / (v.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm
    return (torch.softmax((k * query).sum(-1, keepdim=True), 0) * v).sum(0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 5, 33), (4, 2, 3, 64), (50, 1, 7, 24), (2, 2, 1, 4099)])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(device, dtype, wide, shape):
    kind, cols = (torch.float32 if wide else dtype), shape[-1]
    v = torch.randn(shape, device=device).to(dtype).requires_grad_()
    query = (torch.randn(cols, device=device) / cols**0.5).to(kind).requires_grad_()
    norm = (torch.rand(cols, device=device) + 0.5).to(kind).requires_grad_()
    h = LigerAttnResFunction.apply(v, query, norm, 1e-6)
    dh = torch.randn_like(h)
    h.backward(dh)
    wide_ones = twins(v, query, norm)
    expected = exact(*wide_ones)
    expected.backward(dh.cpu().double())
    assert h.dtype is dtype and h.shape == shape[1:]
    # x̂ is rounded to norm's dtype: each of its errors moves a score by so much of query·norm, and all of them by the root
    off = 0 if kind is torch.float32 else 4 * torch.finfo(kind).eps
    unit, small = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    largest = v.detach().abs().amax().double().cpu()
    close = unit * 1.01 * expected.abs() + (off + (16 + cols**0.5) * 2.0**-24) * largest + small
    assert ((h.detach().cpu().double() - expected.detach()).abs() <= close).all()
    for given, twin in zip((v, query, norm), wide_ones):
        assert given.grad.dtype is given.dtype
        size = twin.grad.abs().amax() + dh.abs().amax().double().cpu() * (largest if given is not v else 1)
        one, rows = torch.finfo(given.dtype).eps / 2, shape[0] * shape[1] * shape[2]
        close = one * 1.01 * twin.grad.abs() + (off + (32 + cols + rows) ** 0.5 * 8 * 2.0**-24) * size * 4
        assert ((given.grad.cpu().double() - twin.grad).abs() <= close + torch.finfo(given.dtype).smallest_normal).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DTYPES)
def test_normals_are_rounded_to_the_dtype_of_norm(device, dtype, kind):
    """Also where the library has not that pair of dtypes: the formula in torch says what it is."""
    v, query, norm, eps = (t.to(device) if torch.is_tensor(t) else t for t in _make(50))
    v, query, norm = v.to(dtype), 8 * query, norm.to(kind)
    found = LigerAttnResFunction.apply(v, query, norm, eps)
    expected = LigerAttnResFunction.torch_forward(v.float(), query, norm, eps)
    assert_close(found, expected, dtype, 1.01, 4096)


def test_a_list_of_blocks(device):
    """Each gets the gradient of its part of the stack."""
    blocks = [torch.randn(2, 5, 24, device=device, requires_grad=True) for _ in range(40)]
    _, query, norm, eps = (t.to(device) if torch.is_tensor(t) else t for t in _make(1))
    stacked = torch.stack([b.detach() for b in blocks]).requires_grad_()
    for apply in (LigerAttnResFunction.apply, liger_attn_res):
        one, other = apply(blocks, query, norm, eps), apply(stacked, query, norm, eps)
        dh = torch.randn_like(one)
        found = torch.autograd.grad(one, blocks, dh)
        assert torch.equal(one, other) and torch.equal(torch.stack(found), torch.autograd.grad(other, stacked, dh)[0])
    assert torch.equal(attn_res_forward(tuple(blocks), query, norm)[0], one)


@pytest.mark.parametrize("plain_torch", [False, True])
def test_what_does_not_fit_is_refused(device, plain_torch, monkeypatch):
    monkeypatch.setattr(LigerAttnResFunction, "_plain_torch", plain_torch)
    v, query, norm, eps = (t.to(device) if torch.is_tensor(t) else t for t in _make(5))
    for wrong, text in (
        ([v[0], v[1, :4]], r"blocks must be one or more of one shape, but have \[\(5, 24\), \(4, 24\)\]"),
        ([], "blocks must be one or more"),
        (v[:0], r"V_stacked has shape \(0, 5, 24\), but must have one or more blocks"),
    ):
        with pytest.raises(ValueError, match=text):
            LigerAttnResFunction.apply(wrong, query, norm, eps)
    with pytest.raises(ValueError, match="w_query"):
        LigerAttnResFunction.apply(v, query[:-1], norm, eps)


def test_blocks_beside_each_other(device):
    """[B, T, N, D] memory seen as [N, B, T, D]: no copy is made."""
    v = torch.randn(2, 3, 4, 24, device=device).permute(2, 0, 1, 3)
    _, query, norm, eps = (t.to(device) if torch.is_tensor(t) else t for t in _make(1))
    assert torch.equal(LigerAttnResFunction.apply(v, query, norm, eps), LigerAttnResFunction.apply(v.contiguous(), query, norm, eps))  # fmt: skip


def test_helpers(device):
    v, query, norm, eps = (t.to(device) if torch.is_tensor(t) else t for t in _make(6))
    v = v.view(3, 2, 3, 24)
    h, flat, alpha, rstd = attn_res_forward(v, query, norm, eps)
    given = [t.clone().requires_grad_() for t in (v, query, norm)]
    expected = LigerAttnResFunction.apply(*given, eps)
    dh = torch.randn_like(h)
    expected.backward(dh)
    assert torch.equal(h, expected) and flat.shape == (3, 6, 24) and alpha.shape == rstd.shape == (3, 6)
    assert_close(alpha.sum(0), torch.ones(6), torch.float32, 4)
    found = attn_res_backward(dh, flat, query, norm, alpha, rstd, eps)
    assert all(torch.equal(a.view(b.shape), b.grad) for a, b in zip(found, given))


def test_more_than_2_to_the_31_elements(device):
    """The last rows get what they get alone."""
    if device.type != "cuda" or torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs --device cuda and 24 GB of free memory")
    rows, cols = 2**30 // 8192 + 5, 8192
    v = torch.zeros(2, rows, cols, dtype=torch.bfloat16, device=device)
    v[:, -4:].normal_()
    query, norm = (torch.randn(cols, dtype=torch.bfloat16, device=device) / 64 for _ in range(2))
    found = []
    for some in (v, v[:, -4:].contiguous()):
        given = some.requires_grad_()
        h = LigerAttnResFunction.apply(given, query, norm, 1e-6)
        (dv,) = torch.autograd.grad(h, given, torch.ones_like(h))
        found.append((h[-4:].detach().clone(), dv[:, -4:].clone()))
        del h, dv
    assert all(torch.equal(a, b) for a, b in zip(*found)) and found[0][1].any()
