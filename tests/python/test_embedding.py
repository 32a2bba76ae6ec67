"""Embedding: values and gradients against float64, frequent tokens, padding, indices out of range, the module."""

from __future__ import annotations

import pytest
import torch
from operator_case import HIDDEN, Case

from liger_kernel.ops import LigerEmbeddingFunction
from liger_kernel.transformers.experimental import LigerEmbedding
from liger_kernel.transformers.experimental.embedding import LigerEmbedding as by_its_file

ROWS = 37
OWED = [
    Case("embedding", LigerEmbeddingFunction, lambda n: [torch.randn(ROWS, HIDDEN), torch.randint(0, ROWS, (n,))], (0,))
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradient(weight, indices, dy, *options):
    """dweight in float64, and what the roundings of its sums may come to: each is of what there is so far."""
    exact = torch.zeros(weight.shape, dtype=torch.float64)
    walk = torch.zeros_like(exact)
    for i, up in zip(indices.cpu().flatten().tolist(), dy.cpu().double().reshape(-1, dy.shape[-1])):
        exact[i] += up
        walk[i] += exact[i] ** 2
    return exact, walk.sqrt()


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "vocab, cols, shape", [(1, 1, (1,)), (11, 33, (3, 5)), (700, 64, (2, 3, 4)), (50, 24, (4000,)), (5, 40, ()), (3000, 128, (2, 900))]
)  # fmt: skip
def test_values_and_gradients(device, vocab, cols, shape, dtype, index_dtype):
    weight = torch.randn(vocab, cols, device=device).to(dtype).requires_grad_()
    indices = torch.randint(0, vocab, shape, device=device).to(index_dtype)
    indices.view(-1)[::3] = vocab // 2
    y = LigerEmbeddingFunction.apply(weight, indices)
    assert y.dtype is dtype and torch.equal(y, weight.detach()[indices.long()])
    dy = torch.randn_like(y)
    (dweight,) = torch.autograd.grad(y, weight, dy)
    exact, walk = gradient(weight, indices, dy)
    assert dweight.dtype is dtype
    rounding = torch.finfo(dtype).eps / 2 * exact.abs() * 1.01 + torch.finfo(dtype).smallest_normal
    assert ((dweight.cpu().double() - exact).abs() <= rounding + 4 * 2.0**-24 * walk).all()
    assert not dweight[~torch.isin(torch.arange(vocab, device=device), indices)].any()


def test_one_token_for_all(device):
    """A padded batch: one row gets everything, in pieces."""
    weight = torch.randn(1000, 520, device=device, requires_grad=True)
    indices = torch.full((5000,), 999, device=device)
    indices[4096] = 3
    dy = torch.randn(5000, 520, device=device)
    (dweight,) = torch.autograd.grad(LigerEmbeddingFunction.apply(weight, indices), weight, dy)
    exact, walk = gradient(weight, indices, dy)
    assert ((dweight.cpu().double() - exact).abs() <= 8 * 2.0**-24 * walk + 2.0**-24 * exact.abs()).all()
    assert torch.equal(dweight[3], dy[4096]) and not dweight[4:999].any()


@pytest.mark.parametrize("padding", [2, -3])
@pytest.mark.parametrize("plain_torch", [False, True])
def test_padding(device, padding, plain_torch, monkeypatch):
    monkeypatch.setattr(LigerEmbeddingFunction, "_plain_torch", plain_torch)
    weight = torch.randn(9, 24, device=device, requires_grad=True)
    indices = torch.tensor([[0, 2, 6], [6, 2, 8]], device=device)
    y = LigerEmbeddingFunction.apply(weight, indices, padding)
    row = padding % 9
    assert not y[indices == row].any() and torch.equal(y[indices != row], weight.detach()[indices[indices != row]])
    y.backward(torch.ones_like(y))
    expected = torch.bincount(indices.flatten().cpu(), minlength=9).float()
    expected[row] = 0
    assert torch.equal(weight.grad.cpu(), expected[:, None].expand(9, 24))


@pytest.mark.parametrize("padding", [9, -10])
def test_a_padding_that_is_no_row_is_refused(padding):
    for call in (
        lambda: LigerEmbeddingFunction.apply(torch.randn(9, 4), torch.tensor([1]), padding),
        lambda: LigerEmbedding(9, 4, padding),
    ):
        with pytest.raises(ValueError, match=f"padding_idx is {padding}, but there are 9 embeddings"):
            call()


@pytest.mark.parametrize("wrong", [9, -1, 2**31 + 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_index_out_of_range(device, wrong, dtype):
    weight = torch.randn(9, 33, device=device).to(dtype).requires_grad_()
    indices = torch.tensor([4, wrong, 4, 0], device=device)
    if device.type == "cpu":
        with pytest.raises(
            ValueError, match=rf"indices\[1\] is {wrong}, which is out of bounds: it must be in \[0, 9\)"
        ):
            LigerEmbeddingFunction.apply(weight, indices)
        return
    y = LigerEmbeddingFunction.apply(weight, indices)
    assert y[1].isnan().all() and torch.equal(y[[0, 2, 3]], weight.detach()[[4, 4, 0]])
    y.backward(torch.ones_like(y))
    assert weight.grad[:, 0].tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("wrong", [9, -1])
def test_an_index_out_of_range_where_the_formula_runs(device, wrong, monkeypatch):
    weight, indices = torch.randn(9, 4, device=device), torch.tensor([[4, 0], [8, wrong]], device=device)
    apply = LigerEmbeddingFunction.apply
    calls = {
        "grad": lambda: torch.func.grad(lambda w: apply(w, indices).nansum())(weight),
        "vmap": lambda: torch.func.vmap(lambda i: apply(weight, i))(indices),
        "grad of vmap": lambda: torch.func.grad(
            lambda w: torch.func.vmap(lambda i: apply(w, i).nansum())(indices).sum()
        )(weight),
        "trace": lambda: torch.jit.trace(lambda i: apply(weight, i), (indices,), check_trace=False),
        "disabled": lambda: apply(weight, indices),
    }
    for name, call in calls.items():
        monkeypatch.setattr(LigerEmbeddingFunction, "_plain_torch", name == "disabled")
        if device.type == "cuda":
            call()
            continue
        with pytest.raises(ValueError, match=rf"indices has {wrong}, which is out of bounds: it must be in \[0, 9\)"):
            call()


def test_debugging_names_the_index_on_cuda(device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("CPU calls look anyway")
    monkeypatch.setenv("LIGER_DEBUG", "1")
    with pytest.raises(ValueError, match=r"indices has 9, which is out of bounds: it must be in \[0, 9\)"):
        LigerEmbeddingFunction.apply(torch.randn(9, 4, device=device), torch.tensor([1, 9], device=device))


def test_indices_of_other_dtypes_are_refused(device):
    with pytest.raises(ValueError, match="indices is torch.float32, but must be int32 or int64"):
        LigerEmbeddingFunction.apply(torch.randn(9, 4, device=device), torch.ones(2, device=device))


def test_the_table_may_change_before_backward(device):
    """Backward needs its size and nothing else of it."""
    weight = torch.randn(9, 24, device=device, requires_grad=True)
    y = LigerEmbeddingFunction.apply(weight, torch.tensor([1, 1], device=device))
    with torch.no_grad():
        weight.zero_()
    y.sum().backward()
    assert weight.grad[1].eq(2).all()


def test_module(device):
    assert by_its_file is LigerEmbedding
    module, torchs = (kind(11, 24, padding_idx=-2).to(device) for kind in (LigerEmbedding, torch.nn.Embedding))
    assert module.padding_idx == 9 and not module.weight[9].any() and module.weight[:9].any(1).all()
    torchs.load_state_dict(module.state_dict())
    indices = torch.randint(0, 11, (3, 7), device=device)
    indices[1] = 9
    found, expected = module(indices), torchs(indices)
    assert torch.equal(found, expected)
    dy = torch.randn_like(found)
    found.backward(dy), expected.backward(dy)
    torch.testing.assert_close(module.weight.grad, torchs.weight.grad)
    assert not module.weight.grad[9].any()
    assert repr(module) == "LigerEmbedding(11, 24, padding_idx=9)"


@pytest.mark.parametrize("rows, cols", [(2**31 + 8, 1), (2**31 // 4096 + 5, 4096)])
def test_more_than_2_to_the_31(device, rows, cols):
    """Rows, and elements."""
    if device.type != "cuda" or torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs --device cuda and 20 GB of free memory")
    weight = torch.zeros(rows, cols, dtype=torch.bfloat16, device=device)
    weight[-5:].normal_()
    indices = torch.tensor([rows - 1, 3, rows - 2, rows - 1, rows - 5], device=device)
    y = LigerEmbeddingFunction.apply(weight.requires_grad_(), indices)
    assert torch.equal(y, weight.detach()[indices])
    (dweight,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    assert dweight[-5:, 0].tolist() == [1, 0, 0, 1, 2] and dweight[3].eq(1).all()
    assert not dweight[4:4000].any() and not dweight[-4000:-5].any() and not dweight[2**18 : 2**18 + 4000].any()
