"""Every operator where torch looks at functions and not at values: functorch, forward mode, tracing, meta tensors, counters.

Under functorch's transforms, a forward-mode level and torch.jit.trace a Function is its plain-torch formula, so the formula
evaluated outside of them is what is expected here.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from test_operators import CASES, Case, leaves, on, same, upstreams
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


def formula(case: Case, *args) -> tuple[Tensor, ...]:
    out = case.function.torch_forward(*args)
    return (out,) if isinstance(out, Tensor) else out[: case.results]


def trained(case: Case, args: list) -> tuple[Tensor, ...]:
    return tuple(args[i].detach() for i in case.trained)


def of_trained(function, case: Case, args: list):
    """`function` of the arguments that can have a gradient, the others held."""

    def call(*tensors):
        given = list(args)
        for i, tensor in zip(case.trained, tensors):
            given[i] = tensor
        return function(*given)

    return call


def total(function):
    """A scalar in which every element of every result has another weight."""

    def call(*args):
        return sum((r * torch.linspace(0.5, 1.5, r.numel()).view(r.shape).to(r)).sum() for r in function(*args))

    return call


def close(a, b) -> bool:
    a, b = ([t] if isinstance(t, Tensor) else list(t) for t in (a, b))
    return len(a) == len(b) and all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(a, b))


# ---- functorch and forward mode ----------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["grad", "no_grad"])
def grad_mode(request):
    with torch.set_grad_enabled(request.param):
        yield request.param


def test_forward_mode(case, device, grad_mode):
    args = on(device, case.make(7))
    tangents = upstreams(trained(case, args))
    expected = torch.func.jvp(
        of_trained(lambda *a: formula(case, *a), case, args), trained(case, args), tuple(tangents)
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(trained(case, args), tangents)]
        found = [forward_ad.unpack_dual(r) for r in of_trained(case, case, args)(*duals)]
    assert close([f.primal for f in found], expected[0])
    assert all(f.tangent is not None for f in found) and close([f.tangent for f in found], expected[1])


def test_func_grad(case, device):
    args = on(device, case.make(7))
    argnums = tuple(range(len(case.trained)))
    expected = torch.func.grad(total(of_trained(lambda *a: formula(case, *a), case, args)), argnums)(
        *trained(case, args)
    )
    assert close(torch.func.grad(total(of_trained(case, case, args)), argnums)(*trained(case, args)), expected)


def test_func_jvp_and_hessian(case, device):
    args = on(device, case.make(2))
    ours, torchs = (total(of_trained(f, case, args)) for f in (case, lambda *a: formula(case, *a)))
    given = trained(case, args)
    tangents = tuple(upstreams(given))
    assert close(torch.func.jvp(ours, given, tangents), torch.func.jvp(torchs, given, tangents))
    assert close(torch.func.hessian(ours)(*given), torch.func.hessian(torchs)(*given))


def test_vmap(case, device, grad_mode):
    several = [on(device, case.make(7)) for _ in range(3)]
    batched = [torch.stack(a) if isinstance(a[0], Tensor) else a[0] for a in zip(*several)]
    dims = tuple(0 if isinstance(a, Tensor) else None for a in batched)
    found = torch.func.vmap(case, in_dims=dims)(*batched)
    expected = [torch.stack(results) for results in zip(*(case(*args) for args in several))]
    assert close(found, expected)


def test_second_derivative_through_func(case, device):
    """What is refused outside is exact inside: the formula has derivatives of any order."""
    args = on(device, case.make(2))
    given = trained(case, args)

    def norm(function):
        first = torch.func.grad(total(of_trained(function, case, args)), tuple(range(len(given))))
        return lambda *t: sum(g.pow(2).sum() for g in first(*t))

    argnums = tuple(range(len(given)))
    expected = torch.func.grad(norm(lambda *a: formula(case, *a)), argnums)(*given)
    assert close(torch.func.grad(norm(case), argnums)(*given), expected)


# ---- torch.jit.trace ---------------------------------------------------------------------------------------------------


class Module(torch.nn.Module):
    """A module whose parameters are the case's trained tensors but the first argument, which is traced."""

    def __init__(self, case: Case, args: list):
        super().__init__()
        self.case, self.args = case, args
        self.parameters_of = torch.nn.ParameterList(args[i].detach() for i in case.trained if i != 0)

    def forward(self, x):
        args = list(self.args)
        args[0] = x
        for i, parameter in zip([i for i in self.case.trained if i != 0], self.parameters_of):
            args[i] = parameter
        return self.case(*args)


@pytest.mark.parametrize("how", ["grad", "no_grad", "frozen"])
def test_jit_trace(case, device, how):
    """Replayed on other values, the trace answers what the formula does."""
    first, second = on(device, case.make(7)), on(device, case.make(7))
    module = Module(case, first).eval().requires_grad_(how == "grad")
    with warnings.catch_warnings(), torch.set_grad_enabled(how != "no_grad"):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, first[0], check_trace=False)
        if how == "frozen":
            traced = torch.jit.freeze(traced)
        for _ in range(3):
            junk = torch.full_like(second[0], float("nan"))  # memory that is not written comes from here
            del junk
            assert close(traced(second[0]), formula(case, second[0], *first[1:]))


def test_jit_trace_of_a_helper(device):
    """What is called without a Function is recorded as the operator that it is."""
    from liger_kernel.ops import rms_norm_forward

    x, w = torch.randn(4, 8, device=device), torch.randn(8, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda t: rms_norm_forward(t, w, 1e-6, 0.0, "llama", None)[0], x, check_trace=False)
    assert torch.equal(traced(2 * x + 1), rms_norm_forward(2 * x + 1, w, 1e-6, 0.0, "llama", None)[0])


# ---- meta tensors and counters -----------------------------------------------------------------------------------------


def test_meta_tensors(case):
    """Shapes, dtypes and strides without memory, forward and backward."""
    args = leaves(case, case.make(7))
    real = case(*args)
    grads = torch.autograd.grad(real, [args[i] for i in case.trained], upstreams(real))
    metas = leaves(case, on("meta", case.make(7)))
    found = case(*metas)
    found_grads = torch.autograd.grad(found, [metas[i] for i in case.trained], [torch.empty_like(r) for r in found])
    for a, b in zip((*real, *grads), (*found, *found_grads)):
        assert b.is_meta and (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def counted(function, case: Case, args: list) -> int:
    args = leaves(case, args)
    with FlopCounterMode(display=False) as counter:
        results = function(*args)
        torch.autograd.backward(results, [torch.ones_like(r) for r in results])
    return counter.get_total_flops()


@pytest.mark.parametrize("where", ["device", "meta"])
def test_flops(case, device, where):
    """As many as torch counts of the formula, but for what it does not do: a linear head's backward makes the logits again
    where its upstreams have not been known before; and torch counts the gradient of a grouped convolution's weight once for each group."""
    args = on(device if where == "device" else "meta", case.make(7))
    found = counted(case, case, args)
    expected = counted(lambda *a: formula(case, *a), case, args)
    if case.name in ("linear_cross_entropy_none", "linear_logprob"):
        expected = expected // 3 * 4
    if case.name == "multi_token_attention":
        expected = expected // (2 + args[-1]) * 3
    assert found == expected
    assert (found > 0) == case.name.startswith(("linear", "mhc_coeffs", "mhc_aggregate", "mhc_post", "multi_token"))


def test_values_under_a_counter(case, device):
    """A dispatch mode sees the operator and changes nothing."""
    args = on(device, case.make(7))
    expected = case(*args)
    with FlopCounterMode(display=False):
        assert same(list(case(*args)), list(expected))


# ---- the default device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", ["meta", "cuda"])
def test_default_device(case, device, elsewhere):
    """Scratch belongs where the tensors are, whatever new tensors get by default."""
    if elsewhere == "cuda" and (device.type == "cuda" or not torch.cuda.is_available()):
        elsewhere = "cpu"
    args = leaves(case, on(device, case.make(7)))
    results = case(*args)
    up = upstreams(results)
    wanted = [args[i] for i in case.trained]
    expected = torch.autograd.grad(results, wanted, up)
    with torch.device(elsewhere):
        again = case(*args)
        found = torch.autograd.grad(again, wanted, up)
        formulas = formula(case, *args)
    assert same([*results, *expected], [*again, *found])
    assert all(f.device == r.device for f, r in zip(formulas, results))


def test_default_device_and_casting_none(device):
    case = CASES["rms_norm"]
    args = on(device, case.make(7))
    args[4] = "none"
    with torch.device("meta"):
        found = formula(case, *args)
    assert same(list(found), list(formula(case, *args)))


# ---- views and subclasses as any argument ------------------------------------------------------------------------------


class Doubled(torch.Tensor):
    """A subclass whose memory is not its value: reading it raw is wrong by a factor of two."""

    @staticmethod
    def __new__(cls, raw):
        return torch.Tensor._make_wrapper_subclass(cls, raw.shape, dtype=raw.dtype, device=raw.device)

    def __init__(self, raw):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def value(t):
            return t.raw * 2 if isinstance(t, Doubled) else t

        args, kwargs = torch.utils._pytree.tree_map(value, (args, kwargs or {}))
        return function(*args, **kwargs)


class Halved(torch.Tensor):
    """The same with memory of its own, at which a raw look succeeds."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def value(t):
            return t.as_subclass(torch.Tensor) / 2 if isinstance(t, Halved) else t

        with torch._C._DisableTorchDispatch():
            args, kwargs = torch.utils._pytree.tree_map(value, (args, kwargs or {}))
        return function(*args, **kwargs)


VIEWS = {
    "negated": lambda t: torch._neg_view(-t),
    "imaginary part of a conjugate": lambda t: torch.complex(t, -t).conj().imag,
    "wrapper": lambda t: Doubled(t / 2),
    "subclass": lambda t: torch.Tensor._make_subclass(Halved, t * 2),
    "plain subclass": lambda t: t.as_subclass(type("Mine", (torch.Tensor,), {})),
}


def tensor_positions(case: Case) -> list[int]:
    return [i for i, a in enumerate(case.make(2)) if isinstance(a, Tensor) and a.is_floating_point()]


@pytest.mark.parametrize("view", VIEWS)
def test_every_tensor_argument_is_looked_at(case, device, view):
    """Not the first alone; right, with gradients of the others right too."""
    args = on(device, case.make(7))
    expected = case(*args)
    for position in tensor_positions(case):
        given = list(args)
        given[position] = VIEWS[view](args[position])
        found = case(*given)
        assert same([f.as_subclass(Tensor) for f in found], list(expected)), position
        others = tuple(i for i in case.trained if i != position)
        if not others or view == "plain subclass":
            continue
        both = []
        for a in (given, args):
            a = [t.detach().requires_grad_() if i in others else t for i, t in enumerate(a)]
            results = case(*a)
            both.append(torch.autograd.grad(results, [a[i] for i in others], upstreams(results)))
        assert same(list(both[0]), list(both[1])), position


@pytest.mark.parametrize("wrong", ["array", "list", "number"])
def test_what_is_no_tensor(case, device, wrong):
    """A TypeError with the argument's name, with and without gradients, in every place."""
    args = on(device, case.make(7))
    names = list(case.function.parameters)
    for position, argument in enumerate(args):
        if not isinstance(argument, Tensor):
            continue
        for needs in (False, True):
            given = leaves(case, args) if needs else list(args)
            given[position] = {"array": argument.cpu().numpy(), "list": argument.tolist(), "number": 1.0}[wrong]
            with pytest.raises(TypeError, match=rf"\b{names[position]}\b.* must be a torch.Tensor"):
                case(*given)


def test_float64_is_told_what_its_argument_takes(case, device):
    """Each floating-point argument alone: its own list, and nobody else is blamed."""
    args = on(device, case.make(7))
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
    for position in tensor_positions(case):
        given = list(args)
        given[position] = given[position].double()
        name = list(case.function.parameters)[tensors.index(position)]  # what the caller calls it
        with pytest.raises(ValueError, match=rf"\b{name} is torch\.float64, but .*float") as caught:
            case(*given)
        assert "int" not in str(caught.value)
        if position == 0:
            assert "float32, float16 and bfloat16" in str(caught.value)
