"""Every operator inside torch's machinery: schemas, compile, fake tensors, the profiler, the garbage collector."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable

import own_process
import pytest
import torch
from operator_case import WITHOUT_FUNCTION, WITHOUT_GRADIENT
from test_operators import CASES, Case, angles, leaves, on, same, upstreams
from torch import Tensor

from liger_kernel.ops._operator import TABLE
from liger_kernel.ops.scale import scale


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


def operator_arguments(case: Case, args: list) -> tuple:
    """Of the operator behind the Function; every result on request is asked for."""
    operator = case.function.operator
    if case.name.startswith("linear_cross"):
        x, weight, target, bias, *_ = args
        given = (
            x,
            weight,
            target,
            bias,
            None,
            None,
            -100,
            1e-3,
            0.1,
            int(not case.name.endswith("none")),
            5.0,
            False,
            0,
            False,
        )
    elif case.name.startswith("cross"):
        given = (*args[:2], None, -100, 1e-3, 0.1, int(not case.name.endswith("none")), 5.0)
    else:
        given = case.function.arguments(*args)
    return (*given, *(True for _ in operator.asked))


def gradient_arguments(case: Case, args: list) -> tuple:
    """Of the operator's derivative, from what forward answers."""
    operator = case.function.operator
    given = operator_arguments(case, [a.detach() if isinstance(a, Tensor) else a for a in args])
    results = operator(*given)
    results = (results,) if isinstance(results, Tensor) else results
    known = (*given[: len(operator.inputs)], *results)
    saved, options = operator._saved_of(known), operator._options_of(known)
    arguments = operator.gradient_arguments(saved, options, tuple(upstreams(results)))
    return (*arguments, *(True for _ in operator.derivative.asked))


def test_opcheck(case, device):
    args = leaves(case, on(device, case.make(7)))
    torch.library.opcheck(case.function.operator.traced, operator_arguments(case, args))


def test_opcheck_of_the_derivative(case, device):
    derivative = case.function.operator.derivative
    if derivative is None:
        pytest.skip("its gradients come from the operator itself")
    given = gradient_arguments(case, on(device, case.make(7)))
    torch.library.opcheck(derivative.traced, given)
    if derivative.asked:
        torch.library.opcheck(derivative.traced, (*given[:-1], False))


def test_opcheck_of_a_part(device):
    """An upstream that is absent, and what belongs to no Function."""
    cos, sin = (a.to(device) for a in angles(5))
    torch.library.opcheck(
        torch.ops.liger.rope_backward.default, (cos, sin, torch.randn(2, 4, 5, 8, device=device), None, 0)
    )
    torch.library.opcheck(
        torch.ops.liger.scale.default,
        (
            torch.randn(3, 4, device=device),
            torch.ones((), device=device),
            torch.tensor([1, -100, 2], device=device),
            -100,
        ),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["helper", "operator", "compiled"])
def test_scale_needs_no_labels(device, way, dtype):
    """Two arguments are enough, wherever the call is made: of what the library takes, and of what is to be prepared."""
    x, factor = torch.randn(4, 6, device=device), torch.tensor(3.0, dtype=dtype, device=device)
    call = {"helper": scale, "operator": torch.ops.liger.scale}.get(
        way, torch.compile(lambda x, f: torch.ops.liger.scale(x, f), backend="aot_eager")
    )
    assert torch.equal(call(x.t()[1:], factor), x.t()[1:] * 3.0)


def test_every_registered_operator_is_described():
    importlib.import_module("liger_kernel.chunked_loss")
    registered = {
        n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("liger::")
    }
    operators = [case.function.operator for case in CASES.values()]
    checked = {o.name for one in operators for o in (one, one.derivative) if o is not None} | WITHOUT_FUNCTION
    assert registered == set(TABLE) and registered - WITHOUT_GRADIENT == checked


def test_importing_one_operator_registers_no_other():
    code = (
        "import torch, liger_kernel.ops.swiglu\n"
        "print(sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith('liger::')))"
    )
    said = own_process.output("-c", code)
    assert all("::swiglu" in name for name in eval(said)) and "liger::swiglu" in said


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
    flags = slice(-1, None) if name == "cross_entropy" else slice(-3, None)
    assert needed[0][0] == unneeded[0][0] == name and len(unneeded) == 1
    assert all(needed[0][1][flags]) and not any(unneeded[0][1][flags])


def test_compile_dynamic_does_not_recompile(case, device):
    """Twice the same operator and another one in one function: sizes are symbols that all share."""
    names = list(CASES)
    several = (case, case, CASES[names[(names.index(case.name) + 1) % len(names)]])

    def all_of_them(*args):
        results, args = [], list(args)
        for one in several:
            count = len(one.make(2))
            results += [r * 2.0 for r in one(*args[:count])]
            del args[:count]
        return tuple(results)

    def gradients(function, args):
        results = function(*args)
        wanted = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        return [*results, *torch.autograd.grad(results, wanted, upstreams(results))]

    torch._dynamo.reset()
    function = torch.compile(all_of_them, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 2, 3, 17, 64):
        args = [arg for one in several for arg in leaves(one, on(device, one.make(rows)))]
        with torch._dynamo.config.patch(error_on_recompile=rows != 5):
            assert same(gradients(function, args), gradients(all_of_them, args))


def test_fake_tensors(case):
    """Shapes and dtypes without memory, as FSDP and export ask for them."""
    real = case(*case.make(7))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = case(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in case.make(7)))
    for a, b in zip(real, fake):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_named_in_the_profiler(case, device):
    args = on(device, case.make(7))
    for given, expected in (
        (leaves(case, args), case.function.__name__),
        (args, f"liger::{case.function.operator.name}"),
    ):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            case(*given)
        assert expected in {event.name for event in profile.events()}


def test_kept_results_free_their_memory(case, device):
    """No cycle keeps a graph alive until the garbage collector comes."""
    args = leaves(case, on(device, case.make(7)))
    gc.disable()
    try:
        results = case(*args)
        node = results[0].grad_fn
        while type(node).__name__ != f"{case.function.__name__}Backward":  # a view of the Function's result
            node = node.next_functions[0][0]
        node = weakref.ref(node)
        torch.autograd.backward(results, upstreams(results))
        del results
        assert node() is None
    finally:
        gc.enable()
