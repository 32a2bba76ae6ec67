"""More rows or heads than 32 bits count. Needs `--device cuda` and a GPU of 80 GB or more."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from liger_kernel import ops

ROWS = 2**32 + 8
SEEN = [0, 5, 2**31 + 3, 2**32 - 1, 2**32, 2**32 + 5, 2**32 + 7]  # rows that are compared


@pytest.fixture
def huge(device):
    """The device, with 60 GB to spare."""
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GB of free memory")
    yield device
    gc.collect()
    torch.cuda.empty_cache()


def rows_of(x: Tensor) -> Tensor:
    return torch.stack([x[r] for r in SEEN])


def filled(x: Tensor) -> Tensor:
    """Ones, but for the rows that are compared."""
    x.fill_(1)
    for r in SEEN:
        x[r].normal_()
    return x


def test_rms_norm_of_more_than_2_to_the_32_rows(huge):
    x = filled(torch.empty(ROWS, 1, dtype=torch.bfloat16, device=huge))
    few = rows_of(x).requires_grad_()
    w = torch.tensor([1.5], dtype=torch.bfloat16, device=huge)
    expected = ops.LigerRMSNormFunction.apply(few, w, 0.5)
    found = ops.LigerRMSNormFunction.apply(x.requires_grad_(), w, 0.5)
    assert torch.equal(rows_of(found.detach()), expected)
    found.backward(torch.ones_like(found))
    expected.backward(torch.ones_like(expected))
    assert torch.equal(rows_of(x.grad), few.grad) and few.grad.abs().max() > 0


def test_swiglu_of_more_than_2_to_the_32_strided_rows(huge):
    both = filled(torch.empty(ROWS, 2, dtype=torch.bfloat16, device=huge))
    few = rows_of(both)
    with torch.no_grad():
        found = ops.LigerSiLUMulFunction.apply(both[:, :1], both[:, 1:])
        expected = ops.LigerSiLUMulFunction.apply(few[:, :1], few[:, 1:])
    assert torch.equal(rows_of(found), expected)


def test_rope_of_more_than_2_to_the_30_heads(huge):
    heads = 2**30 + 8
    seen = [0, 5, 2**29 + 1, 2**30 - 1, 2**30, 2**30 + 7]
    q = torch.ones(1, heads, 1, 2, dtype=torch.bfloat16, device=huge)
    for h in seen:
        q[0, h].normal_()
    k = torch.randn(1, 3, 1, 2, dtype=torch.bfloat16, device=huge)
    angle = torch.tensor([[[0.3, 0.3]]], device=huge)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    with torch.no_grad():
        found_q, found_k = ops.LigerRopeFunction.apply(q, k, cos, sin)
        few_q, few_k = ops.LigerRopeFunction.apply(torch.stack([q[0, h] for h in seen])[None], k, cos, sin)
    assert torch.equal(torch.stack([found_q[0, h] for h in seen])[None], few_q) and torch.equal(found_k, few_k)
