"""Distillation losses on two heads in float64, as their papers have them, and what their tests share."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from reference import assert_close, jensen_shannon, twins
from token_losses import LOGITS

from liger_kernel.chunked_loss.cosine_similarity_loss import LigerFusedLinearCosineSimilarityFunction
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

TOKENS, HIDDEN, TEACHER_HIDDEN, VOCAB, MORE = 23, 16, 11, 61, 67
STUDENT = "student_input", "student_weight", "student_bias"  # what has a gradient
TEACHER = "teacher_input", "teacher_weight", "teacher_bias"


class MeanSquares(LigerFusedLinearDistillationBase):
    """A loss as users derive it, without a beta."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
        per_token = (student_logits - teacher_logits).square().mean(-1)
        return per_token.where(target != ignore_index, 0).sum()

    @classmethod
    def forward(
        cls, ctx, student_input, student_weight, teacher_input, teacher_weight, true_labels, student_bias, teacher_bias,
        weight_hard_loss=0.5, weight_soft_loss=0.5, ignore_index=-100, temperature=1.0, chunk_size=1024,
        return_soft_hard_loss=False,
    ):  # fmt: skip
        return super().forward(
            cls=cls, ctx=ctx, student_input=student_input, student_weight=student_weight, teacher_input=teacher_input,
            teacher_weight=teacher_weight, target=true_labels, student_bias=student_bias, teacher_bias=teacher_bias,
            weight_hard_loss=weight_hard_loss, weight_soft_loss=weight_soft_loss, ignore_index=ignore_index,
            temperature=temperature, chunk_size=chunk_size, return_soft_hard_loss=return_soft_hard_loss,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, grad_output, *args):
        return *LigerFusedLinearDistillationBase.backward(ctx, grad_output, *args)[:6], *(None,) * 7


# ---- distances of each token, from logits in float64 ----------------------------------------------------------------------


def divergence(s, t, beta):
    return jensen_shannon(s.log_softmax(-1), t.log_softmax(-1), beta).sum(-1)


def cosine(s, t, beta):
    return beta * (1 - (s * t).sum(-1) / (s.square().sum(-1) * t.square().sum(-1)).sqrt())


def mean_squares(s, t, beta):
    return (s - t).square().mean(-1)


FORMULAS = {
    LigerFusedLinearJSDFunction: divergence,
    LigerFusedLinearCosineSimilarityFunction: cosine,
    MeanSquares: mean_squares,
}


# ---- problems -------------------------------------------------------------------------------------------------------------


def problem(device="cpu", dtype=torch.float32, shape=(TOKENS,), teacher_vocab=VOCAB, **options):
    """Arguments by name."""
    make = lambda *size, scale=1.0: (scale * torch.randn(*size, device=device)).to(dtype)  # noqa: E731
    labels = torch.randint(0, VOCAB, shape, device=device)
    labels.view(-1)[::3] = -100
    student = make(*shape, HIDDEN), make(VOCAB, HIDDEN, scale=0.3), make(VOCAB)
    teacher = make(*shape, TEACHER_HIDDEN), make(teacher_vocab, TEACHER_HIDDEN, scale=0.3), make(teacher_vocab)
    named = dict(zip(STUDENT, (t.requires_grad_() for t in student))) | dict(zip(TEACHER, teacher))
    return named | {"true_labels": labels} | options


def operands(given):
    return [given[name] for name in STUDENT if given[name] is not None]


def call(function, given):
    """By position."""
    parameters = list(inspect.signature(function.forward).parameters.values())[1:]
    assert set(given) <= {p.name for p in parameters}, given.keys()
    return function.apply(*(given.get(p.name, None if p.default is p.empty else p.default) for p in parameters))


def results(function, given, upstream=1.0):
    """(loss, soft, hard) and the gradients."""
    found = call(function, given | {"return_soft_hard_loss": True})
    above = torch.tensor(upstream, device=found[0].device)
    return *found, *torch.autograd.grad(found[0], operands(given), above)


def rounded(z, dtype):
    """Logits are in the products' dtype; their gradient passes through."""
    return z if dtype is torch.float32 else z + (z.to(dtype).double() - z).detach()


def exact(function, given, dtype):
    """(loss, soft, hard, gradients...) in float64."""
    tensors = dict(zip((*STUDENT, *TEACHER), twins(*(given[n] for n in (*STUDENT, *TEACHER)))))
    labels, options = given["true_labels"].cpu().reshape(-1), given
    z, zt = (rounded(F.linear(*(tensors[n] for n in names)).flatten(0, -2), dtype) for names in (STUDENT, TEACHER))
    temperature, beta = options.get("temperature", 1.0), options.get("beta", 0.5)
    counts = labels != options.get("ignore_index", -100)
    count = max(int(counts.sum()), 1)
    wide = torch.cat((z, torch.zeros(z.shape[0], zt.shape[1] - z.shape[1])), -1)
    distances = FORMULAS[function](wide / temperature, zt / temperature, beta)
    soft = distances.where(counts, 0).sum() / count
    nll = -z.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    hard = nll.where(counts, 0).sum() / count
    weights = options.get("weight_soft_loss", 0.5), options.get("weight_hard_loss", 0.5)
    loss = weights[0] * soft + weights[1] * hard
    gradients = torch.autograd.grad(loss, [tensors[n] for n in STUDENT if tensors[n] is not None])
    return loss.detach(), soft.detach(), hard.detach(), *gradients


def check(function, given, found, dtype, upstream=1.0):
    """Logits of size up to 8 are rounded, then their gradient, and what comes of it."""
    loss, soft, hard, *gradients = exact(function, given, dtype)
    scale = max(float(soft), float(hard), 1.0)
    for ours, wanted in zip(found[:3], (loss, soft, hard)):
        assert ours.dtype is torch.float32 and ours.shape == ()
        assert_close(torch.stack((ours.cpu(), torch.tensor(scale))), torch.stack((wanted.float(), torch.tensor(scale))),
                     torch.float32 if dtype is torch.float32 else dtype, LOGITS if dtype is torch.float32 else 0.25,
                     VOCAB)  # fmt: skip
    for ours, wanted, tensor in zip(found[3:], gradients, operands(given), strict=True):
        assert ours.dtype is tensor.dtype and ours.shape == tensor.shape
        assert_close(ours.flatten(), upstream * wanted.flatten(), dtype, LOGITS, VOCAB)
