"""Results that a native call makes itself: their layout, and what happens when they cannot be made."""

from __future__ import annotations

import own_process
import pytest
import torch

from liger_kernel import _native
from liger_kernel._native import Wish


def rms_norm(x, y=Wish.LIKE, rstd=Wish.PER_ROW):
    return _native.rms_norm_forward(x, None, y, rstd, 1e-6, 0.0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_given_results(device, dtype):
    x = torch.randn(2, 3, 8, device=device).to(dtype)
    y, rstd = torch.empty_like(x), torch.empty(6, device=device)
    assert rms_norm(x, y, rstd) is None
    made_y, made_rstd = rms_norm(x)
    assert torch.equal(made_y, y) and torch.equal(made_rstd, rstd) and made_y.dtype is dtype
    assert torch.equal(rms_norm(x, Wish.LIKE, None), y)  # one result is no tuple


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x[:, :-1],
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(4, 5, 8),
        lambda x: x.as_strided((1, 4, 8), (7, 8, 1)),
        lambda x: x[:0],
    ],
)
def test_rows_are_contiguous(device, layout):
    x = layout(torch.randn(4, 5, 8, device=device))
    y, rstd = rms_norm(x)
    assert y.shape == x.shape and y.is_contiguous() and rstd.shape == (x.shape[0] * x.shape[1],)
    assert torch.equal(y, rms_norm(x.contiguous())[0])


@pytest.mark.parametrize("batch, heads, seq", [(2, 4, 3), (1, 4, 3), (2, 1, 3), (2, 4, 1), (1, 1, 1)])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)])
def test_heads_lie_in_the_order_of_projections(device, batch, heads, seq, layout):
    q, k = (
        layout(torch.randn(batch, heads, seq, 8, device=device)),
        layout(torch.randn(batch, 1, seq, 8, device=device)),
    )
    angles = torch.zeros(1, seq, 8, device=device)
    made = _native.rope_forward(q, k, angles + 1, angles, Wish.HEADS, Wish.HEADS[1], 8, 0, 0, 0, 0)
    for given, out in zip((q, k), made):
        h = given.shape[1]
        assert out.stride() == (seq * h * 8, 8, h * 8, 1) and torch.equal(out, given)


def test_large_results(device):
    """Beyond the size from which host memory is asked for in huge pages."""
    x = torch.randn(1100, 1024, device=device)
    y, rstd = rms_norm(x)
    assert torch.equal(y[-3:], rms_norm(x[-3:])[0]) and rstd.shape == (1100,)


def test_only_tensors_are_followed():
    with pytest.raises(_native.LigerArgumentError, match="y cannot be made in the likeness of x"):
        rms_norm(None)


def test_what_nobody_asked_for_is_none():
    x = torch.randn(2, 8)
    y, rstd = rms_norm(x, rstd=Wish.NOTHING)
    assert rstd is None and torch.equal(y, rms_norm(x)[0])


def backward(x, scratch, **wishes):
    """dx and dweight of RMSNorm."""
    rstd = rms_norm(x)[1]
    made = {"dx": Wish.LIKE[1], "dweight": Wish.LIKE[2], **wishes}
    weight = torch.ones(x.shape[-1], device=x.device)
    return _native.rms_norm_backward(x, x, weight, rstd, made["dx"], made["dweight"], 0.0, 0, scratch)


def test_scratch_that_the_call_makes(device):
    """On the tensors' device, whatever the default one is, and no longer than the call."""
    x = torch.randn(300, 64, device=device)
    dx, dweight = torch.empty_like(x), torch.empty(64, device=device)
    raw = torch.empty(1 << 20, dtype=torch.uint8, device=device)
    assert backward(x, raw[-raw.data_ptr() % 256 :], dx=dx, dweight=dweight) is None
    with torch.device("meta"):
        made = backward(x, Wish.SCRATCH)
    assert torch.equal(made[0], dx) and torch.equal(made[1], dweight)


@pytest.mark.parametrize("wish", [Wish.LIKE, Wish.NOTHING, Wish.PER_ROW])
def test_a_workspace_is_no_other_wish(wish):
    with pytest.raises(TypeError, match="workspace"):
        backward(torch.randn(3, 8), wish)


def test_scratch_is_no_result():
    with pytest.raises(_native.LigerArgumentError, match="y cannot be made"):
        rms_norm(torch.randn(3, 8), y=Wish.SCRATCH)


@pytest.mark.parametrize("reduction", [0, 1])
def test_values_of_rows_and_of_all(device, reduction):
    """Losses: one value, or one for each row, in f32 or in the logits' dtype."""
    x, target = torch.randn(5, 8, device=device).bfloat16(), torch.zeros(5, dtype=torch.int64, device=device)
    same, single = (Wish.PER_ROW_SAME, Wish.PER_ROW) if reduction == 0 else (Wish.SCALAR_SAME, Wish.SCALAR)
    loss, z, accuracy, predicted, dx = _native.cross_entropy_forward(
        x,
        target,
        None,
        None,
        same,
        same,
        single,
        Wish.PER_ROW_I64,
        Wish.LIKE,
        -100,
        0.0,
        0.1,
        0.0,
        reduction,
        Wish.SCRATCH,
    )
    shape = (5,) if reduction == 0 else ()
    assert all(t.shape == shape for t in (loss, z, accuracy)) and predicted.shape == (5,)
    assert [t.dtype for t in (loss, z, accuracy, predicted)] == [x.dtype, x.dtype, torch.float32, torch.int64]
    expected = torch.nn.functional.cross_entropy(x.float(), target, reduction="none" if reduction == 0 else "mean")
    assert (loss - z - expected).abs().max() < 0.1 and dx.shape == x.shape


def test_heads_of_three_dimensions_are_refused():
    q = torch.randn(4, 3, 8)
    with pytest.raises(_native.LigerArgumentError, match="q_out cannot be made in the likeness of q"):
        _native.rope_forward(q, q, q, q, Wish.HEADS, Wish.HEADS[1], 8, 0, 0, 0, 0)


def test_without_the_quick_way_to_memory(device):
    """A torch that has not the functions of its generated code: all of this file, with the public ones."""
    program = """
        import sys, pytest
        from liger_kernel import _native
        _native._quick_functions = lambda: (None, None)
        sys.exit(pytest.main(sys.argv[1:]))
    """
    chosen = ("-q", "-p", "no:cacheprovider", "-k", "not quick", "--device", device.type)
    own_process.output("-c", program, __file__, *chosen)


def test_a_quick_way_that_is_another_is_not_taken(monkeypatch):
    guards = torch._C._dynamo.guards
    assert _native._quick_functions()[0] is not None
    for other in (None, lambda shape, stride, dtype: torch.empty(shape), lambda *sizes: sizes.missing):
        monkeypatch.setattr(guards, "_empty_strided_cpu", other)
        assert _native._quick_functions() == (None, None)


def test_a_refused_call_keeps_nothing():
    """What was made before the refusal is given back."""
    x = torch.randn(64, 1024).double()
    wrong = torch.ones(9)
    import gc

    def live():
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    y = torch.randn(4, 8)
    before = live()
    for _ in range(5):
        with pytest.raises(_native.LigerArgumentError):
            rms_norm(x)
        with pytest.raises(_native.LigerArgumentError, match="weight"):
            _native.rms_norm_forward(y, wrong, Wish.LIKE, Wish.PER_ROW, 1e-6, 0.0, 0)
        with pytest.raises(TypeError, match="epsilon"):
            _native.rms_norm_forward(y, None, Wish.LIKE, Wish.PER_ROW, None, 0.0, 0)
    assert live() <= before  # what other tests left behind may go meanwhile


@pytest.mark.parametrize(
    ("number", "features", "taken_back"),
    [("0x0005", "011001" + "0" * 58, True), ("0x0005", "011000" + "0" * 58, False), ("0x0002", "1" * 64, False)],
)
def test_a_balloon_that_reports_free_pages(tmp_path, number, features, taken_back):
    """Among devices that are none, or say less of themselves."""
    for name, files in {"virtio0": {}, "virtio1": {"device": "0x0005\n"}, "virtio2": {"device": number + "\n"}}.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    (tmp_path / "virtio2" / "features").write_text(features + "\n")
    _native.load()
    assert _native.is_host_memory_taken_back(str(tmp_path)) is taken_back
    assert _native.is_host_memory_taken_back(str(tmp_path / "none")) is False


@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 5), (4, 1, 2, 3), (1100, 1024)])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.int64])
def test_new_has_its_own_shape(device, shape, dtype):
    like = torch.randn(4, 6, device=device).to(torch.bfloat16).t()
    made = _native.new(like, shape, dtype)
    expected = torch.empty(shape, dtype=dtype or torch.bfloat16, device=device)
    assert type(made) is torch.Tensor and not made.requires_grad
    assert (made.shape, made.stride(), made.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert made.device == expected.device
    made.fill_(3)
    assert bool((made == 3).all())


@pytest.mark.parametrize(
    "given, error, words",
    [
        ((None, (2,), None), TypeError, "like must be a torch.Tensor"),
        ((torch.zeros(2), (2,), torch.float64), ValueError, "dtype is none that the library has"),
        ((torch.zeros(2).double(), (2,), None), ValueError, "dtype is none that the library has"),
        ((torch.zeros(2), (1,) * 7, None), ValueError, "shape has 7 dimensions"),
        ((torch.zeros(2), (-1,), None), ValueError, "shape has a negative size"),
        ((torch.zeros(2), 2, None), TypeError, "shape must be a tuple"),
        ((torch.zeros(2), (2.5,), None), TypeError, "integer"),
        ((torch.zeros(2), (2,)), TypeError, "3 arguments"),
    ],
)
def test_new_refuses(given, error, words):
    with pytest.raises(error, match=words):
        _native.new(*given)
