"""Every operator inside torch's machinery: schemas, compile, fake tensors, the profiler, the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from test_operators import CASES, VOCAB, Case, angles, leaves, on, same, targets, upstreams
from torch import Tensor


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


def opcheck_arguments(device) -> dict[str, tuple]:
    def leaf(*shape):
        return torch.randn(shape, device=device, requires_grad=True)

    cos, sin = (a.to(device) for a in angles(5))
    y = targets(7).to(device)
    rstd = torch.rand(10, device=device)
    linear = (None, None, -100, 1e-3, 0.1, 1, 5.0, False, 0, False, True, True, True)
    return {
        "rms_norm": (leaf(2, 5, 8), leaf(8), 1e-6, 0.0, 0),
        "rms_norm_backward": (leaf(2, 5, 8).detach(), leaf(2, 5, 8).detach(), leaf(8).detach(), rstd, 0.0, 0, True, True),
        "add_rms_norm": (leaf(2, 5, 8), leaf(2, 5, 8), leaf(8), 1e-6, 0.0, 0),
        "add_rms_norm_backward": (*(leaf(2, 5, 8).detach() for _ in range(3)), leaf(8).detach(), rstd, 0.0, 0, True, True),
        "rope": (leaf(2, 4, 5, 8), leaf(2, 2, 5, 8), cos, sin),
        "rope_backward": (cos, sin, leaf(2, 4, 5, 8).detach(), None),
        "swiglu": (leaf(2, 5, 8), leaf(2, 5, 8), 1.5, 1.0),
        "swiglu_backward": (*(leaf(2, 5, 8).detach() for _ in range(3)), 1.5, 1.0, True, False),
        "swiglu_packed": (leaf(2, 5, 8),),
        "swiglu_packed_backward": (leaf(2, 5, 8).detach(), leaf(2, 5, 4).detach()),
        "cross_entropy": (leaf(7, VOCAB), y, None, -100, 1e-3, 0.1, 1, 5.0, True, True, True, True),
        "cross_entropy_backward": (leaf(7, VOCAB).detach(), y, None, torch.ones((), device=device), -100, 0.0, 0.1, 1, 0.0),
        "linear_cross_entropy": (leaf(7, 8), leaf(VOCAB, 8), y, leaf(VOCAB), *linear, True, True, True),
        "scale": (leaf(3, 4).detach(), torch.ones((), device=device)),
    }  # fmt: skip


@pytest.mark.parametrize("name", opcheck_arguments("cpu"))
def test_opcheck(name, device):
    torch.library.opcheck(getattr(torch.ops.liger, name).default, opcheck_arguments(device)[name])


def test_every_registered_operator_is_checked():
    registered = {
        n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("liger::")
    }
    assert registered == set(opcheck_arguments("cpu"))


def compiled(case: Case, **options) -> Callable:
    torch._dynamo.reset()
    # the call's result goes through other operations, as in a model: the graph is not only ours
    return torch.compile(lambda *args: tuple(r * 2.0 for r in case(*args)), fullgraph=True, **options)


def doubled(case: Case, args: list) -> list[Tensor]:
    args = leaves(case, args)
    results = tuple(r * 2.0 for r in case(*args))
    return [*results, *torch.autograd.grad(results, [args[i] for i in case.trained], upstreams(results))]


def through(function: Callable, case: Case, args: list) -> list[Tensor]:
    args = leaves(case, args)
    results = function(*args)
    return [*results, *torch.autograd.grad(results, [args[i] for i in case.trained], upstreams(results))]


def test_compile_has_no_graph_break(case, device):
    function = compiled(case, backend="aot_eager")
    args = on(device, case.make(7))
    expected = doubled(case, args)
    assert same(through(function, case, args), expected)
    with torch.no_grad():
        assert same(list(function(*args)), expected[: case.results])


def test_compile_with_inductor(device):
    case = CASES["rms_norm"]
    args = on(device, case.make(7))
    for a, b in zip(through(compiled(case), case, args), doubled(case, args)):
        torch.testing.assert_close(a, b)


def function_of(case: Case) -> Callable:
    return lambda *args: case.function.apply(*args)


@pytest.mark.parametrize("asked", [(False, True, False), (True, False, True), (True, True, True)])
@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_compile_with_results_on_request(name, asked, device):
    """z_loss, accuracy, predicted tokens: where they are, and that they have no gradient."""
    case = CASES[name]
    options = (*(() if name == "cross_entropy" else (None, False)), *asked[1:])
    args = leaves(case, [*on(device, case.make(7)), asked[0], *options])
    torch._dynamo.reset()
    expected = case.function.apply(*args)
    results = torch.compile(function_of(case), fullgraph=True, backend="aot_eager")(*args)
    assert [r is not None for r in results] == [True, *asked] == [r is not None for r in expected]
    assert same([r for r in results if r is not None], [r for r in expected if r is not None])
    assert [r.requires_grad for r in results if r is not None] == [True] + [False] * sum(asked)


def operators_in_graph(function: Callable, args: list) -> list[tuple]:
    """(name, arguments) of every call of ours that torch.compile finds, in subgraphs too."""
    found = []

    def backend(graph, _inputs):
        for part in graph.modules():
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                if str(node.target).startswith("liger."):
                    found.append((str(node.target).split(".")[1], node.args))
        return graph

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=backend)(*args)
    return found


def test_compile_knows_what_is_disabled(case, device, monkeypatch):
    args = leaves(case, on(device, case.make(7)))
    assert operators_in_graph(function_of(case), args)
    monkeypatch.setattr(case.function, "_plain_torch", True)
    assert not operators_in_graph(function_of(case), args)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_compile_forms_no_gradient_that_nobody_needs(name, device):
    case = CASES[name]
    args = leaves(case, on(device, case.make(7)))
    needed = operators_in_graph(function_of(case), args)
    with torch.no_grad():
        unneeded = operators_in_graph(function_of(case), args)
    flags = slice(11, 12) if name == "cross_entropy" else slice(17, 20)
    assert needed[0][0] == unneeded[0][0] == name and len(unneeded) == 1
    assert all(needed[0][1][flags]) and not any(unneeded[0][1][flags])


def test_compile_dynamic_does_not_recompile(case, device):
    function = compiled(case, backend="aot_eager", dynamic=True)
    through(function, case, on(device, case.make(5)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (2, 3, 17, 64):
            args = on(device, case.make(rows))
            assert same(through(function, case, args), doubled(case, args))


@pytest.mark.parametrize("second", CASES)
def test_compile_dynamic_of_two_operators(case, device, second):
    """In one function, each pair: sizes are symbols that both share."""
    other = CASES[second]
    count = len(case.make(2))

    def both(*args):
        return tuple(r * 2.0 for r in (*case(*args[:count]), *other(*args[count:])))

    torch._dynamo.reset()
    function = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 3):
        args = [*leaves(case, on(device, case.make(rows))), *leaves(other, on(device, other.make(rows)))]
        wanted = [args[i] for i in (*case.trained, *(count + i for i in other.trained))]
        found, expected = function(*args), both(*args)
        up = upstreams(expected)
        assert same([*found, *torch.autograd.grad(found, wanted, up)],
                    [*expected, *torch.autograd.grad(expected, wanted, up)])  # fmt: skip


def test_fake_tensors(case):
    """Shapes and dtypes without memory, as FSDP and export ask for them."""
    real = case(*case.make(7))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = case(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in case.make(7)))
    for a, b in zip(real, fake):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_named_in_the_profiler(case, device):
    args = on(device, case.make(7))
    operator = case.name.removesuffix("_none")
    for given, expected in ((leaves(case, args), case.function.__name__), (args, f"liger::{operator}")):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            case(*given)
        assert expected in {event.name for event in profile.events()}


def test_kept_results_free_their_memory(case, device):
    """No cycle keeps a graph alive until the garbage collector comes."""
    args = leaves(case, on(device, case.make(7)))
    gc.collect()
    gc.disable()
    try:
        results = case(*args)
        node = weakref.ref(results[0].grad_fn)
        torch.autograd.backward(results, upstreams(results))
        del results
        assert node() is None
    finally:
        gc.enable()
