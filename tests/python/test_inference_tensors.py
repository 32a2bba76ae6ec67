"""What a model without training makes under torch.inference_mode() may stand beside what is trained: autograd saves no such
tensor, so whoever keeps one keeps a copy."""

from __future__ import annotations

import pytest
import torch
from distillation_formulas import STUDENT, TEACHER, problem, results
from operator_case import Case
from test_operators import CASES, HIDDEN, VOCAB, leaves, on, upstreams
from torch import Tensor

from liger_kernel import ops
from liger_kernel.chunked_loss.cosine_similarity_loss import LigerFusedLinearCosineSimilarityFunction
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction
from liger_kernel.ops import _operator


def rows_of(n, width):
    return torch.randn(n, width).softmax(-1)


# Options in which backward reads what forward has been given.
READ_AGAIN = {
    "kl_div none": Case("kl_div", ops.LigerKLDivLossFunction, lambda n: [torch.randn(n, VOCAB), rows_of(n, VOCAB), "none"],
                        (0,)),
    "tvd none": Case("tvd", ops.LigerTVDLossFunction,
                     lambda n: [rows_of(n, VOCAB), rows_of(n, VOCAB), torch.arange(n) - 1, "none", -1], (0,)),
    "cross_entropy weighted": Case("cross_entropy", ops.LigerCrossEntropyFunction,
                                   lambda n: [torch.randn(n, VOCAB), torch.arange(n) % VOCAB, torch.rand(VOCAB), -100, 0.0,
                                              0.1, "none"], (0,)),
    "linear_cross_entropy weighted": Case("linear_cross_entropy", ops.LigerFusedLinearCrossEntropyFunction,
                                          lambda n: [torch.randn(n, HIDDEN), torch.randn(VOCAB, HIDDEN),
                                                     torch.arange(n) % VOCAB, None, torch.rand(VOCAB), -100, 0.0, 0.1,
                                                     "none"], (0, 1)),
    "linear_logprob selected": Case("linear_logprob", ops.LigerLinearLogProbFunction,
                                    lambda n: [torch.randn(n, HIDDEN), torch.randn(VOCAB, HIDDEN), torch.arange(n) % VOCAB,
                                               None, torch.arange(3)], (0, 1), 2),
}  # fmt: skip
HELD = {name: case for name, case in CASES.items() if case.function.held} | READ_AGAIN


def made_in_inference_mode(values, but=()):
    with torch.inference_mode():
        return [v.detach().clone() if isinstance(v, Tensor) and i not in but else v for i, v in enumerate(values)]


def gradients(case, args, call, inference=False):
    args = leaves(case, args)
    trained = [args[i] for i in case.trained]
    results = call(*(made_in_inference_mode(args, case.trained) if inference else args))
    results = (results,) if isinstance(results, Tensor) else results[: case.results]
    return [*results, *torch.autograd.grad(results, trained, upstreams(results))]


@pytest.mark.parametrize("way", ["kernels", "operator", "plain torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", HELD.values(), ids=HELD)
def test_what_a_function_is_given_beside(case, device, dtype, way, monkeypatch):
    """Also of float16, of which gradients are not formed in forward."""
    monkeypatch.setattr(case.function, "_plain_torch", way == "plain torch")
    call = case.function.apply
    if way == "operator":  # torch.ops.liger.<name>
        call = case.function.compiled
        monkeypatch.setattr(_operator, "_is_compiling", lambda: True)
    args = on(device, case.make(5), dtype)
    assert all(map(torch.equal, gradients(case, args, call, True), gradients(case, args, call)))


@pytest.mark.parametrize("case", HELD.values(), ids=HELD)
def test_under_transforms(case, device):
    args = on(device, case.make(5))
    given = made_in_inference_mode(args, case.trained)

    def first_result(*values):
        for position, value in zip(case.trained, values):
            given[position] = value
        found = case.function.apply(*given)
        return (found if isinstance(found, Tensor) else found[0]).float().sum()

    values = [args[i] for i in case.trained]
    assert all(g.isfinite().all() for g in torch.func.grad(first_result, tuple(range(len(values))))(*values))


def test_what_a_formula_of_a_users_own_keeps(device):
    """Of labels and masks, by which it may gather and multiply."""

    class Policy(LigerFusedLinearPPOBase):
        @staticmethod
        def ppo_loss_fn(per_token_logps, attention_mask, **others):
            return (per_token_logps * attention_mask).sum(), ()

    class Distance(LigerFusedLinearDistillationBase):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
            return (student_logits * teacher_logits).gather(1, target.unsqueeze(1)).sum()

    x, weight = torch.randn(2, 3, 8, device=device), torch.randn(11, 8, device=device, requires_grad=True)
    ids, mask, advantages = torch.arange(6, device=device).view(2, 3), torch.ones(2, 3), torch.ones(2)
    with torch.inference_mode():
        ids, mask, advantages = ids.clone(), mask.to(device), advantages.to(device)
    loss, _ = call_base(Policy, x, weight, ids, mask, advantages)
    distance = call_base(Distance, x, weight, x, weight.detach(), ids)
    assert all(torch.autograd.grad(found, weight)[0].any() for found in (loss, distance))


def call_base(function, *args):
    """The public form that the base has."""

    class Form(function):
        @classmethod
        def forward(cls, ctx, *given):
            return super().forward(cls, ctx, *given)

        @staticmethod
        def backward(ctx, *upstreams):
            return function.backward(ctx, *upstreams)

    return Form.apply(*args)


@pytest.mark.parametrize("form", ["chunks", "composed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("function", [LigerFusedLinearJSDFunction, LigerFusedLinearCosineSimilarityFunction])
def test_a_teacher_on_a_head(device, function, dtype, form, monkeypatch):
    if form == "composed":
        monkeypatch.setattr(LigerFusedLinearDistillationBase, "forms_gradients", staticmethod(lambda *tensors: False))
    given = problem(device, dtype)
    right = results(function, given)
    beside = [n for n, v in given.items() if n not in STUDENT and isinstance(v, Tensor)]
    assert {*TEACHER, "true_labels"} <= set(beside)
    found = results(function, given | dict(zip(beside, made_in_inference_mode([given[n] for n in beside]))))
    assert all(map(torch.equal, found, right))
