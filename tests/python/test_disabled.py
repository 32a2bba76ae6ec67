"""LIGER_DISABLE: the named operator runs on torch alone, to the same values and gradients; no other one does."""

from __future__ import annotations

import math
import pathlib

import own_process
import pytest
import torch
from operator_case import WITHOUT_GRADIENT
from reference import DTYPES, apart
from test_operators import CASES, on, run, upstreams
from torch import Tensor

from liger_kernel import _exports
from liger_kernel.ops import LigerCrossEntropyFunction, LigerFusedLinearCrossEntropyFunction

LOSSES = (LigerCrossEntropyFunction, LigerFusedLinearCrossEntropyFunction)

# A name in LIGER_DISABLE -> the cases that it moves to torch.
NAMES: dict[str, list[str]] = {}
for case in CASES.values():
    for its_name in case.function.names.split():
        NAMES.setdefault(its_name, []).append(case.name)


def test_the_names_are_the_operators():
    old = {"rms_norm", "add_rms_norm", "fused_add_rms_norm", "rope", "swiglu", "cross_entropy", "linear_cross_entropy"}
    assert old | {"fused_linear_cross_entropy"} <= set(NAMES)
    assert NAMES["swiglu"] == ["swiglu", "swiglu_packed"] and NAMES["fused_add_rms_norm"] == ["add_rms_norm"]


def test_the_names_are_known_without_the_operators():
    have_tests = {
        "mm_int8int2",
        "grpo_loss",
        "fused_linear_scaled_cross_entropy",
        "vocab_parallel_logprob",
        "vocab_parallel_cross_entropy",
    }  # of their own
    assert _exports.names_to_disable() == set(NAMES) | WITHOUT_GRADIENT | have_tests


@pytest.mark.parametrize("value, unknown", [("rope, rmsnorm, ghost", "ghost, rmsnorm;"), ("rope,rms_norm,", None)])
def test_an_unknown_name_is_warned_of_once(value, unknown):
    done = own_process.run(
        "-c", "import liger_kernel.ops as o; [getattr(o, n) for n in o.__all__]", LIGER_DISABLE=value
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("LIGER_DISABLE: no operator is called") == (unknown is not None)
    assert unknown is None or f"is called {unknown}" in done.stderr


def rows_and_columns() -> list[list[str]]:
    """The names as a square: of two that are disabled together in its row, one is disabled without the other in its column.
    So each is seen to do what it does by itself, and to do nothing to any other, in a process for each row and column."""
    names = list(NAMES)
    side = math.isqrt(len(names) - 1) + 1
    return [names[k * side :][:side] for k in range(side) if k * side < len(names)] + [
        names[k::side] for k in range(side)
    ]


@pytest.mark.parametrize("names", rows_and_columns(), ids=",".join)
def test_disabled_by_environment(names, device, tmp_path):
    native_results = []
    for case in CASES.values():
        for dtype in (torch.float32, torch.bfloat16):
            args = on(device, case.make(7), dtype)
            up = upstreams(case(*args))
            native_results.append((case.name, args, up, run(case, args, up)))
    on_torch = [case for name in names for case in NAMES[name]]
    torch.save((on_torch, native_results), tmp_path / "results")
    worker = pathlib.Path(__file__).with_name("disabled_operator_worker.py")
    own_process.output(worker, tmp_path / "results", LIGER_DISABLE=f"nothing_of_ours , {','.join(names)}")


# ---- the formula is the operator: what it takes, and what it answers at the edges --------------------------------------


FUNCTIONS = {case.function for case in CASES.values()}


@pytest.fixture
def in_torch(monkeypatch):
    """Runs a call with every operator disabled."""

    def run_so(call):
        with monkeypatch.context() as patch:
            for function in FUNCTIONS:
                patch.setattr(function, "_plain_torch", True)
            return call()

    return run_so


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_refused_is_refused_in_torch(case, device, in_torch):
    """A tensor that torch would broadcast or promote, in the place of each. Labels outside the vocabulary are values, which
    torch refuses itself."""
    args = on(device, case.make(5))
    refused = 0
    for position, argument in enumerate(args):
        if not isinstance(argument, Tensor):
            continue
        wrong = [argument[:1], argument[..., :1], argument[None], argument[:-1]]
        wrong += [argument.double()] if argument.is_floating_point() and argument.dim() > 1 else []
        for replaced in wrong:
            given = [replaced if i == position else a for i, a in enumerate(args)]
            try:
                case(*given)
            except ValueError:
                refused += 1
                with pytest.raises((ValueError, IndexError)):
                    in_torch(lambda given=given: case(*given))
                with pytest.raises((ValueError, IndexError)):
                    torch.func.vmap(lambda _, given=given: case(*given))(torch.zeros(1))
            else:
                # A narrower vocabulary puts labels outside of it, which on a GPU torch answers by ending its context.
                if device.type == "cpu" or case.function not in LOSSES:
                    in_torch(lambda given=given: case(*given))
    assert refused >= 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_held_gets_no_gradient_in_torch(case, device, in_torch):
    """Angles and class weights, also where they require one."""
    args = on(device, case.make(5))
    if case.function in LOSSES:
        position = list(case.function.parameters).index("weight" if len(args) < 9 else "ce_weight")
        args[position] = torch.rand(37, device=device)
    names = list(case.function.parameters)
    given = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    results = in_torch(lambda: case(*given))
    torch.autograd.backward(results, [torch.ones_like(r) for r in results])
    for name, argument in zip(names, given):
        if isinstance(argument, Tensor) and argument.is_floating_point():
            assert (argument.grad is None) is (name in case.function.held), name


def losses(kind, x, target, weight, reduction, smoothing, dtype):
    """Every result and the gradient of the logits, or of a linear head's input."""
    x = x.to(dtype).requires_grad_()
    options = (weight, -100, 1e-3, smoothing, reduction, None)
    if kind == "logits":
        results = LigerCrossEntropyFunction.apply(x, target, *options, True, True, True)
    else:
        head = torch.eye(x.shape[1], dtype=dtype, device=x.device)
        results = LigerFusedLinearCrossEntropyFunction.apply(
            x, head, target, None, *options, True, None, kind == "scaled", True, True
        )
    results[0].sum().backward()
    return [*results, x.grad]


EDGES = ("usual", "minus infinity", "no rows", "all ignored", "weights of nothing", "weights")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("kind", ["logits", "linear", "scaled"])
def test_losses_in_torch_at_the_edges(device, in_torch, kind, edge, reduction, smoothing):
    if edge == "minus infinity" and kind != "logits":
        pytest.skip("a product with the head is NaN")
    vocab, rows = 8, 0 if edge == "no rows" else 6
    x, target = torch.randn(rows, vocab, device=device), torch.randint(1, vocab, (rows,), device=device)
    target[::3] = -100
    weight = torch.rand(vocab, device=device) if edge == "weights" else None
    if edge == "minus infinity":
        x[:, 0] = -torch.inf
    if edge == "all ignored":
        target[:] = -100
    if edge == "weights of nothing":
        weight = torch.zeros(vocab, device=device)
    for dtype in DTYPES:
        call = lambda dtype=dtype: losses(kind, x.clone(), target, weight, reduction, smoothing, dtype)  # noqa: E731
        both = list(zip(call(), in_torch(call), strict=True))
        if edge == "weights of nothing" and kind != "logits" and dtype is torch.float16:
            both.pop()  # meets 1/0 after the products: rows that are ignored are NaN too
        if kind != "logits":  # whose loss is f32: a head of ones gives both the same logits
            loss, its = both[0]
            most = apart(vocab + rows)
            assert loss.dtype is torch.float32 and torch.allclose(loss, its, rtol=most, atol=most, equal_nan=True)
        for ours, torchs in both:
            assert ours.dtype is torchs.dtype and ours.shape == torchs.shape
            close = 4 * torch.finfo(dtype).eps
            assert torch.allclose(ours.float(), torchs.float(), rtol=close, atol=close, equal_nan=True)
