"""Every operator on CUDA: streams, graphs, several devices, huge tensors. Needs `--device cuda`."""

from __future__ import annotations

import gc

import pytest
import torch
from test_operators import CASES, Case, leaves, on, run, same, upstreams
from torch import Tensor

from liger_kernel import ops


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


@pytest.fixture
def cuda(device):
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    return device


def test_no_wait_for_the_device(case, cuda):
    args = on(cuda, case.make(7))
    run(case, args)
    up = upstreams(case(*args))
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, args, up)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_capture_and_replay(case, cuda):
    """After one warm-up call, as torch asks. The replay sees new values in the old tensors."""
    first, second = (on(cuda, case.make(7)) for _ in range(2))
    second = [s if isinstance(s, Tensor) else f for f, s in zip(first, second)]
    static = [a.clone() if isinstance(a, Tensor) else a for a in first]
    up = upstreams(case(*static))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(case, static, up)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, static, up)
    for given in (second, first):
        for s, g in zip(static, given):
            if isinstance(s, Tensor):
                s.copy_(g)
        graph.replay()
        assert same(captured, run(case, given, up))


def slow_numbers(seed: int, count: int, cuda) -> Tensor:
    """New numbers around 1 / count in memory that is used again, by one block of one kernel, which lets the next one start at
    once."""
    logits = torch.randn(1, 2**21, generator=torch.Generator().manual_seed(seed))
    logits[:, :-count] -= 60
    logits = logits.to(cuda)
    torch.cuda.synchronize()
    return ops.LigerSoftmaxFunction.apply(logits)[0]


def floats_in(like: list) -> int:
    return sum(a.numel() for a in like if isinstance(a, Tensor) and a.is_floating_point())


def pieces(numbers: Tensor, like: list) -> list:
    """In the place of floats what was written last of the numbers."""
    taken, end = [], numbers.numel()
    for a in like:
        if isinstance(a, Tensor) and a.is_floating_point():
            end -= a.numel()
            a = numbers[end : end + a.numel()].view(a.shape).to(a.dtype)
        taken.append(a)
    return taken


def run_behind_kernels(case, given: list, up: list[Tensor], seed: int, cuda) -> tuple[list[Tensor], list, list]:
    """What run() returns, and what it was made of: forward's and backward's kernels come directly behind slow ones."""
    static = pieces(slow_numbers(seed, floats_in(given), cuda), given)
    args = leaves(case, static)
    results = case(*args)
    late = pieces(slow_numbers(seed + 1, max(64, floats_in(up)), cuda), up)
    grads = torch.autograd.grad(results, [args[i] for i in case.trained], late)
    return [*(r.detach() for r in results), *grads], static, late


def test_kernels_wait_for_what_they_read(case, cuda):
    """First kernels start early, but read nothing before the kernel in front of them is done."""
    given = on(cuda, case.make(301))
    up = upstreams(case(*given))
    for seed in (1, 3, 5):
        found, static, late = run_behind_kernels(case, given, up, seed, cuda)
        torch.cuda.synchronize()
        expected = run(case, static, late)
        assert all(torch.allclose(f, e, rtol=0, atol=0, equal_nan=True) for f, e in zip(found, expected, strict=True))
        is_seen = any(f.abs().nan_to_num(0, 0).max() > 0 for f in found)
        assert is_seen or case.name == "linear_topk_kl"  # whose list of logarithms is none


def test_kernels_in_a_graph_wait_for_copies(case, cuda):
    """Of another stream, too, which are no kernels."""
    given = on(cuda, case.make(301))
    up = upstreams(case(*given))
    expected = run(case, given, up)
    inputs = [*given, *up]
    static = [torch.zeros_like(t) if isinstance(t, Tensor) and t.is_floating_point() else t for t in inputs]
    late = [(s, t) for s, t in zip(static, inputs) if s is not t]
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def step():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(500_000)
            for s, t in late:
                s.copy_(t)
        torch.cuda.current_stream().wait_stream(side)
        return run(case, static[: len(given)], static[len(given) :])

    step()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        for s, _t in late:
            s.zero_()
        graph.replay()
        assert same(captured, expected)


def test_other_stream(case, cuda):
    """Work on a stream waits for what was put there before, and for nothing on the default stream."""
    args = on(cuda, case.make(301))
    expected = run(case, args)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        torch.cuda._sleep(20_000_000)
        for a, b in zip(late, args):
            if isinstance(a, Tensor) and a.is_floating_point():
                a.copy_(b)
        found = run(case, late)
    stream.synchronize()
    assert same(expected, found)


def test_other_device(case, cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    args = case.make(7)
    expected = run(case, on("cuda:0", args))
    found = run(case, on("cuda:1", args))
    assert torch.cuda.current_device() == 0 and all(t.get_device() == 1 for t in found)
    assert same([t.cpu() for t in expected], [t.cpu() for t in found])


def test_devices_are_not_mixed(case, cuda):
    args = on(cuda, case.make(7))
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    if len(tensors) < 2:
        pytest.skip("one tensor only")
    args[tensors[-1]] = args[tensors[-1]].cpu()
    with pytest.raises(ValueError, match="cpu"):
        case(*args)


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "cross_entropy"])
def test_more_than_two_to_the_31_elements(name, cuda):
    """The last rows of a huge tensor get the results that they get alone."""
    rows, cols = 2**31 // 8192 + 3, 8192
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GB of free memory")
    gc.collect()
    torch.cuda.empty_cache()
    x = torch.empty(rows, cols, dtype=torch.bfloat16, device=cuda)
    x[:-4].zero_()
    x[-4:].normal_()
    target = torch.zeros(rows, dtype=torch.int64, device=cuda)
    w = torch.randn(cols, dtype=torch.bfloat16, device=cuda)
    function = {
        "rms_norm": lambda t, _: ops.LigerRMSNormFunction.apply(t, w, 1e-6),
        "swiglu": lambda t, _: ops.LigerSiLUMulFunction.apply(t, t),
        "cross_entropy": lambda t, y: ops.LigerCrossEntropyFunction.apply(t, y, None, -100, 0.0, 0.0, "none")[0],
    }[name]
    grads, outs = [], []
    for t, y in ((x, target), (x[-4:].clone(), target[-4:])):
        t.requires_grad_()
        out = function(t, y)
        outs.append(out[-4:].detach().clone())
        out.backward(torch.ones_like(out))
        grads.append(t.grad[-4:].clone())
        del out
        t.grad = None
    assert torch.equal(*outs) and torch.equal(*grads)
