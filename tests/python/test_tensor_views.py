"""A tensor is described to the library in one call where torch offers DLPack's C table, else by its methods: the same."""

from __future__ import annotations

import own_process
import pytest

SCRIPT = """
    import torch
    table = {table}
    if table is not torch:
        torch.Tensor.__dlpack_c_exchange_api__ = table
    from liger_kernel import _native
    from liger_kernel._native import Wish

    def show(name, call):
        try:
            found = call()
            print(name, [(t.dtype, t.shape, t.stride(), t.tolist()) for t in found])
        except Exception as error:
            print(name, type(error).__name__, error)

    def rms_norm(x, weight=None):
        return _native.rms_norm_forward(x, weight, Wish.LIKE, Wish.PER_ROW, 1e-6, 0.0, 0)

    def cross_entropy(x, target):
        loss = x.new_empty(())
        args = (x, target, None, None, loss, None, None, None, None, -100, 0.0, 0.0, 0.0, 1)
        scratch = torch.empty(_native.cross_entropy_forward_workspace(*args) + 256, dtype=torch.uint8)
        _native.cross_entropy_forward(*args, scratch[-scratch.data_ptr() % 256 :])
        return [loss]

    torch.manual_seed(0)
    x = torch.randn(4, 3, 8)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.complex64):
        show(dtype, lambda: rms_norm(x.to(dtype)))
    show("sliced", lambda: rms_norm(x[1:, :, 2:7]))
    show("cut", lambda: rms_norm(x[:, :-1]))
    show("expanded", lambda: rms_norm(x[:1].expand(4, 3, 8)))
    show("transposed", lambda: rms_norm(x.transpose(1, 2)))
    show("one row", lambda: rms_norm(x[0, 0]))
    show("no rows", lambda: rms_norm(x[:0]))
    show("no memory", lambda: rms_norm(torch.empty(0, 8)))
    show("scalar", lambda: rms_norm(x[0, 0, 0]))
    show("six", lambda: rms_norm(x.view(1, 2, 2, 1, 3, 8)))
    show("seven", lambda: rms_norm(x.view(1, 2, 2, 1, 1, 3, 8)))
    show("negated", lambda: rms_norm(torch._neg_view(x)))
    show("one, expanded", lambda: rms_norm(torch.ones(()).expand(1, 1)))
    show("none, expanded", lambda: rms_norm(torch.ones(()).expand(0, 8)))
    show("column, expanded", lambda: rms_norm(torch.ones(()).expand(3, 1)))
    show("grad", lambda: rms_norm(torch.nn.Parameter(x) * 2))
    show("parameter", lambda: rms_norm(x, torch.nn.Parameter(x[0, 0])))
    show("meta", lambda: rms_norm(x.to("meta")))
    show("other meta", lambda: rms_norm(x, torch.empty(8, device="meta")))
    for kind in (torch.int64, torch.int32, torch.int16):
        show(kind, lambda: cross_entropy(x[0], torch.tensor([0, 7, -100], dtype=kind)))
"""


def printed(table: str) -> str:
    return own_process.output("-c", SCRIPT.replace("{table}", table))


@pytest.fixture(scope="module")
def as_it_is() -> str:
    return printed("torch")


@pytest.mark.parametrize("table", ["None", "torch._C._to_dlpack(torch.ones(1))"], ids=["no table", "another capsule"])
def test_both_ways_give_the_same(as_it_is, table):
    assert len(as_it_is.splitlines()) == 28
    assert printed(table) == as_it_is
