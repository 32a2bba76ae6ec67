"""Our stand-in for torch.nn.functional.cross_entropy: the same answers to whatever code calls it."""

from __future__ import annotations

import functools
import pickle
from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import assert_close, assert_same_step, only  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    LigerCrossEntropyLoss,
    apply_liger_kernel_to_llama,
    monkey_patch,
    revert_liger_kernel,
)
from liger_kernel.transformers import functional as liger_functional  # noqa: E402

pytestmark = pytest.mark.usefixtures("unpatched")

OURS = "liger_kernel.transformers.torch_cross_entropy.liger_cross_entropy"


def counted():
    return mock.patch(OURS, wraps=liger_functional.liger_cross_entropy)


def test_cross_entropy_is_replaced_in_torch_and_reverts(device):
    original = torch.nn.functional.cross_entropy
    model, (ids, labels) = tiny_llama.build(device), tiny_llama.batch(device)
    expected_step = tiny_llama.run(model, input_ids=ids, labels=labels)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    assert torch.nn.functional.cross_entropy is not original
    with counted() as ours:
        step = tiny_llama.run(model, input_ids=ids, labels=labels)
    assert ours.call_count == 1
    assert_same_step(step, expected_step)
    revert_liger_kernel()
    assert torch.nn.functional.cross_entropy is original


def test_cross_entropy_leaves_to_torch_what_it_cannot_do(device):
    def moved(value):
        return value.to(device) if isinstance(value, torch.Tensor) else value

    logits, target = torch.randn(5, 7), torch.randint(0, 7, (5,))
    cases = [  # (logits, target, options, whether it is ours)
        (logits.double(), target, {}, False),
        (logits, torch.softmax(torch.randn(5, 7), -1), {"label_smoothing": 0.1}, False),
        (torch.randn(2, 7, 3, 4), torch.randint(0, 7, (2, 3, 4)), {"ignore_index": 3}, False),
        (torch.randn(7), torch.tensor(2), {}, False),
        (logits, target, {"size_average": False}, False),
        (logits, target, {"weight": torch.rand(7), "reduction": "none"}, True),
        (logits, target, {"label_smoothing": 0.2, "reduction": "sum"}, True),
    ]
    cases = [(moved(x), moved(t), {n: moved(v) for n, v in options.items()}, ours) for x, t, options, ours in cases]
    expected = [torch.nn.functional.cross_entropy(x, t, **options) for x, t, options, _ in cases]
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    for (x, target, options, ours), value in zip(cases, expected, strict=True):
        with counted() as operator:
            assert_close(torch.nn.functional.cross_entropy(x, target, **options), value)
            assert operator.called == ours
            if "size_average" not in options:
                assert_close(nn.CrossEntropyLoss(**options)(x, target), value)


# ---- autocast ----------------------------------------------------------------------------------------------------------


def problem(device, dtype=torch.float32, rows=37, vocab=4001):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, vocab, generator=generator)
    target = torch.randint(0, vocab, (rows,), generator=generator)
    target[::7] = -100
    return logits.to(device=device, dtype=dtype).requires_grad_(), target.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"weight": True, "label_smoothing": 0.1}], ids=str)
def test_autocast_keeps_the_loss_in_float32(device, dtype, options):
    logits, target = problem(device, dtype)
    if "weight" in options:
        options = {**options, "weight": torch.rand(logits.shape[1], device=device).to(dtype)}
    original = torch.nn.functional.cross_entropy

    def step(function):
        with torch.autocast(device.type, dtype=torch.float16 if dtype is torch.float16 else torch.bfloat16):
            loss = function(logits, target, **options)
        (gradient,) = torch.autograd.grad(loss.mean() * 65536, logits)  # what a GradScaler multiplies by
        return loss, gradient

    # Of float32 logits: on CUDA torch rounds each row's log-softmax to the dtype of the logits before its loss is float32.
    expected, expected_gradient = step(lambda logits, *args, **kwargs: original(logits.float(), *args, **kwargs))
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    with counted() as ours:
        loss, gradient = step(torch.nn.functional.cross_entropy)
    assert ours.called
    assert loss.dtype is torch.float32 is step(original)[0].dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert gradient.dtype is dtype and torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, expected_gradient)


def test_without_autocast_the_loss_has_the_dtype_of_the_logits(device):
    logits, target = problem(device, torch.bfloat16)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    assert torch.nn.functional.cross_entropy(logits, target).dtype is torch.bfloat16


# ---- transforms, tracing, scripting ------------------------------------------------------------------------------------


def per_sample(x, t):
    return torch.nn.functional.cross_entropy(x[None], t[None])


def whole(x, t):
    return torch.nn.functional.cross_entropy(x, t)


def jvp(logits, target):
    tangent = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(whole(forward_ad.make_dual(logits, tangent), target))
    return dual.primal, dual.tangent


TRANSFORMS = {
    "grad": lambda x, t: torch.func.grad(whole)(x, t),
    "vmap": lambda x, t: torch.func.vmap(per_sample)(x, t),
    "vmap of grad": lambda x, t: torch.func.vmap(torch.func.grad(per_sample))(x, t),
    "jvp": lambda x, t: torch.func.jvp(lambda x: whole(x, t), (x,), (torch.cos(x),)),
    "hessian": lambda x, t: torch.func.hessian(whole)(x[:3, :5], t[:3] % 5),
    "forward mode": jvp,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_functorch_and_forward_mode_get_torchs_own(device, name):
    logits, _ = problem(device, vocab=11)
    logits, target = logits.detach(), torch.arange(37, device=device) % 11
    expected = TRANSFORMS[name](logits, target)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    torch.testing.assert_close(TRANSFORMS[name](logits, target), expected)


@pytest.mark.parametrize("name", ["grad", "vmap"])
def test_compiled_transforms_get_torchs_own(device, name):
    logits, _ = problem(device, vocab=11)
    logits, target = logits.detach(), torch.arange(37, device=device) % 11
    expected = TRANSFORMS[name](logits, target)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    torch.testing.assert_close(torch.compile(TRANSFORMS[name], backend="aot_eager")(logits, target), expected)


def test_compiled_calls_are_ours_without_a_graph_break(device):
    logits, target = problem(device, torch.bfloat16, vocab=11)
    expected = whole(logits.float(), target)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph

    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        torch._dynamo.reset()
        loss = torch.compile(whole, fullgraph=True, backend=backend)(logits, target)
    assert "liger" in graphs[0].code and loss.dtype is torch.float32
    assert_close(loss, expected)


@pytest.mark.parametrize("needs_gradient", [False, True], ids=["no gradient", "gradient"])
def test_a_trace_replays_with_other_logits(device, needs_gradient):
    logits, target = problem(device, vocab=11)
    others = torch.randn_like(logits)
    expected = whole(others, target)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    with torch.set_grad_enabled(needs_gradient):
        traced = torch.jit.trace(whole, (logits.detach().requires_grad_(needs_gradient), target))
    assert_close(traced(others, target), expected)


def test_scripts_compile_torchs_own(device):
    logits, target = problem(device, vocab=11)

    def loss(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(x, t, label_smoothing=0.1)

    expected = loss(logits, target)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    assert_close(torch.jit.script(loss)(logits, target), expected)
    assert_close(torch.jit.script(nn.CrossEntropyLoss(label_smoothing=0.1))(logits, target), expected)


def test_meta_tensors_and_fakes_get_torchs_own():
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    loss = whole(torch.empty(4, 9, device="meta"), torch.empty(4, dtype=torch.int64, device="meta"))
    assert loss.device.type == "meta" and loss.shape == ()


def test_a_double_backward_is_refused_in_words(device):
    logits, target = problem(device, vocab=11)
    apply_liger_kernel_to_llama(**only(cross_entropy=True))
    with pytest.raises(RuntimeError, match="second derivatives are not provided"):
        torch.autograd.grad(whole(logits, target), logits, create_graph=True)


# ---- the class of torch.nn -------------------------------------------------------------------------------------------


def reductions():
    logits, classes = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    flat, targets = logits[:, :, 0, 0], classes[:, 0, 0]
    yield {}, (logits, classes)
    yield {}, (flat, flat.softmax(1))
    yield {"reduce": False}, (flat, targets)
    yield {"reduction": "none"}, (flat.double(), targets)
    yield {"reduction": "sum", "ignore_index": 1, "label_smoothing": 0.1}, (flat, targets)
    yield {"weight": torch.rand(5)}, (flat, targets)


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_torchs_class_of_the_loss_is_patched_where_it_is_built_and_stays_itself(family):
    own, before = nn.CrossEntropyLoss, nn.CrossEntropyLoss()

    class Derived(nn.CrossEntropyLoss):
        def __init__(self):
            super(nn.CrossEntropyLoss, self).__init__()

    expected = [nn.CrossEntropyLoss(**options)(*inputs) for options, inputs in map_seeded()]
    getattr(monkey_patch, f"apply_liger_kernel_to_{family}")(cross_entropy=True, fused_linear_cross_entropy=False)
    assert nn.CrossEntropyLoss is own and isinstance(before, own) and Derived()
    assert pickle.loads(pickle.dumps(functools.partial(nn.CrossEntropyLoss))).func is own
    for (options, inputs), value in zip(map_seeded(), expected, strict=True):
        assert_close(nn.CrossEntropyLoss(**options)(*inputs), value)
    loss, (_, (logits, targets)) = nn.CrossEntropyLoss(), list(map_seeded())[-1]
    assert isinstance(loss, LigerCrossEntropyLoss) and not isinstance(before, LigerCrossEntropyLoss)
    with counted() as operator:
        loss(logits, targets)
        assert operator.called
    assert_close(torch.jit.script(loss)(logits, targets), before(logits, targets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "cross_entropy", lambda *args, **kwargs: "theirs")
        assert loss(logits, targets) == "theirs"
    monkey_patch.revert_liger_kernel()
    assert type(nn.CrossEntropyLoss()) is own


def map_seeded():
    torch.manual_seed(0)
    return reductions()
