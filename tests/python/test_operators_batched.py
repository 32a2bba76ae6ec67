"""Every operator where torch's transforms meet torch.compile, or where a backward gets a batch of upstreams or a tangent.

What the Function does outside of them, one upstream at a time, is what is expected of a batch; what its plain-torch formula
does, of a compiled transform. What cannot be right is refused in words.
"""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from test_operators import CASES, Case, leaves, on, upstreams
from test_operators_in_torch import gradient_arguments, operator_arguments
from test_operators_transformed import close, formula, of_trained, total, trained
from torch import Tensor

from liger_kernel.ops.rms_norm import rms_norm_forward


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


# ---- transforms inside torch.compile -----------------------------------------------------------------------------------


def forward_level(function):
    def call(given, tangents):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(given, tangents)]
            return [forward_ad.unpack_dual(r).tangent for r in function(*duals)]

    return call


TRANSFORMS = {
    "jvp": lambda function: lambda given, tangents: torch.func.jvp(function, given, tangents)[1],
    "forward level": forward_level,
    "grad": lambda function: lambda given, _: torch.func.grad(total(function), tuple(range(len(given))))(*given),
    "grad of vmap": lambda function: (
        lambda given, _: torch.func.vmap(
            lambda factor: torch.func.grad(lambda t: total(function)(t * factor, *given[1:]))(given[0])
        )(torch.linspace(0.5, 1.5, 3, device=given[0].device))
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_compiled_transforms(case, device, transform):
    torch._dynamo.reset()
    args = on(device, case.make(7))
    given = trained(case, args)
    tangents = tuple(upstreams(given))
    ours, torchs = (of_trained(f, case, args) for f in (case, lambda *a: formula(case, *a)))
    found = torch.compile(transform(ours), backend="aot_eager")(given, tangents)
    expected = transform(torchs)(given, tangents)
    assert all(t is not None for t in found) and close(found, expected)


def test_a_compiled_function_is_called_at_a_forward_level(device):
    """What was compiled outside of it is compiled again."""
    torch._dynamo.reset()
    case = CASES["rms_norm"]
    args = on(device, case.make(7))
    given = trained(case, args)
    function = torch.compile(of_trained(case, case, args), backend="aot_eager")
    function(*given)
    tangents = upstreams(given)
    assert close(forward_level(function)(given, tangents), forward_level(of_trained(case, case, args))(given, tangents))
    function(*given)


# ---- batches of upstreams ----------------------------------------------------------------------------------------------


def batches(case: Case, results: tuple) -> list[Tensor]:
    return [torch.stack([u, 2 * u.flip(-1) if u.dim() else 2 * u, 0 * u]) for u in upstreams(results)]


def one_by_one(case: Case, args: list, batched: list[Tensor]) -> list[Tensor]:
    several = []
    for up in zip(*batched):
        given = leaves(case, args)
        several.append(torch.autograd.grad(case(*given), [given[i] for i in case.trained], list(up)))
    return [torch.stack(gradients) for gradients in zip(*several)]


@pytest.mark.parametrize("keep", [False, True])
def test_batched_gradients(case, device, keep):
    args = on(device, case.make(5))
    given = leaves(case, args)
    results = case(*given)
    batched = batches(case, results)
    found = torch.autograd.grad(
        results, [given[i] for i in case.trained], batched, retain_graph=keep, is_grads_batched=True
    )
    assert close(found, one_by_one(case, args, batched))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_the_gradient_of_what_is_outside(case, device):
    args = on(device, case.make(5))
    given = leaves(case, args)
    results = case(*given)
    batched = batches(case, results)
    wanted = [given[i] for i in case.trained]
    found = torch.func.vmap(lambda *up: torch.autograd.grad(results, wanted, up, retain_graph=True))(*batched)
    assert close(found, one_by_one(case, args, batched))


def test_vectorized_jacobian(case, device):
    args = on(device, case.make(2))
    given = trained(case, args)
    function = of_trained(case, case, args)
    found, expected = (
        torch.autograd.functional.jacobian(lambda *t: function(*t)[0], given, vectorize=vectorize)
        for vectorize in (True, False)
    )
    assert close(found, expected)


# ---- tangents where there is no derivative ------------------------------------------------------------------------------


REFUSED = "liger::{}: an argument has a forward-mode tangent"


# Compiled, an operator's own call is one of torch.ops.
ways_to_a_tangent = pytest.mark.parametrize(
    "call, how",
    [(call, how) for call in ("operator", "torch.ops") for how in ("jvp", "forward level")]
    + [("operator", "compiled jvp")],
)


def first_result(results):
    return results if isinstance(results, Tensor) else results[0]


@ways_to_a_tangent
def test_an_operator_refuses_tangents(case, device, how, call):
    operator = case.function.operator
    first, *rest = operator_arguments(case, on(device, case.make(5)))
    callee = operator if call == "operator" else operator.traced

    def function(x):
        return (first_result(callee(x, *rest)),)

    transform = TRANSFORMS[how.removeprefix("compiled ")](function)
    if how.startswith("compiled"):
        torch._dynamo.reset()
        transform = torch.compile(transform, backend="eager")
    with pytest.raises(RuntimeError, match=REFUSED.format(operator.name)):
        transform((first,), (torch.ones_like(first),))
    with forward_ad.dual_level():  # without a tangent it is a call like any other
        assert torch.equal(function(first)[0], function(first)[0])


@ways_to_a_tangent
def test_a_derivative_refuses_tangents(case, device, how, call):
    """Of each of its tensors alone."""
    derivative = case.function.operator.derivative
    if derivative is None:
        pytest.skip("its gradients come from the operator itself")
    given = gradient_arguments(case, on(device, case.make(5)))
    callee = derivative if call == "operator" else derivative.traced
    for position, value in enumerate(given):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue

        def function(x, position=position):
            return (first_result(callee(*given[:position], x, *given[position + 1 :])),)

        transform = TRANSFORMS[how.removeprefix("compiled ")](function)
        if how.startswith("compiled"):
            torch._dynamo.reset()
            transform = torch.compile(transform, backend="eager")
        with pytest.raises(RuntimeError, match=REFUSED.format(derivative.name)):
            transform((value,), (torch.ones_like(value),))
        with forward_ad.dual_level():
            assert torch.equal(function(value)[0], function(value)[0])


def test_a_derivative_called_directly_has_none(case, device):
    derivative = case.function.operator.derivative
    if derivative is None:
        pytest.skip("its gradients come from the operator itself")
    dy, *rest = gradient_arguments(case, on(device, case.make(5)))
    found = first_result(derivative.traced(dy.clone().requires_grad_(dy.is_floating_point()), *rest))
    if dy.is_floating_point():
        with pytest.raises(RuntimeError, match="second derivatives are not provided"):
            found.sum().backward()


def test_a_helper_refuses_tangents(device):
    x, w = torch.randn(3, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(RuntimeError, match=REFUSED.format("rms_norm")):
        torch.func.jvp(lambda t: rms_norm_forward(t, w, 1e-6, 0.0, "llama", None)[0], (x,), (x,))


@pytest.mark.parametrize("grad", [False, True], ids=["freed", "kept"])
def test_a_tangent_in_the_upstream(case, device, grad):
    """The gradient is linear in the upstream: its tangent is the gradient of the tangent, or the call is refused."""
    args = on(device, case.make(5))
    given = leaves(case, args)
    results = case(*given)
    ups = upstreams(results)
    wanted = [given[i] for i in case.trained]
    expected = one_by_one(case, args, [torch.stack([2 * u]) for u in ups])
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(u, 2 * u) for u in ups]
        try:
            found = torch.autograd.grad(results, wanted, duals, retain_graph=grad)
        except RuntimeError as refusal:
            assert "an argument has a forward-mode tangent" in str(refusal)
            return
        tangents = [forward_ad.unpack_dual(g).tangent for g in found]
    assert all(t is not None for t in tangents)
    assert close(tangents, [e[0] for e in expected])
