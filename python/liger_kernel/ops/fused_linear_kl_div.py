"""A linear head and its divergence from a teacher's probabilities, over chunks of rows: there is no memory for the full logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _native
from liger_kernel.ops._distillation import (
    FormedLoss,
    FormsGradients,
    called,
    check_labels,
    check_temperature,
    counted_rows,
    finish,
    formed_backward,
    formed_forward,
    gradient_where,
    share_of_a_row,
    total,
)
from liger_kernel.ops._formula import of_tensors, require_shape
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._linear_head import (
    COMPUTE,
    accumulates_in,
    accumulator,
    compute_dtype,
    padded_logits,
    require_matrices,
)
from liger_kernel.ops._memory import matrix, require_float
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Wish
from liger_kernel.ops.scale import scaled_gradients

REDUCTIONS = ("batchmean", "mean", "sum")  # by the library's number

# ---- the operator ------------------------------------------------------------------------------------------------------


@FormsGradients
def linear_kl_div(
    x: Tensor, weight: Tensor, target: Tensor, labels: Tensor | None,
    ignore_index: int, temperature: float, eps: float, reduction: int, compute: int, round_per_chunk: bool,
    loss: Made = Wish.SCALAR, dx: Asked = Wish.LIKE, dweight: Asked = Wish.LIKE[1],
) -> Any:  # fmt: skip
    dtype, vocab = COMPUTE[compute], weight.shape[0]
    operands = (matrix(x.to(dtype)), weight.to(dtype).contiguous(), matrix(target),
                None if labels is None else labels.contiguous())  # fmt: skip
    raw = dtype is torch.float16 and (dx != Wish.NOTHING or dweight != Wish.NOTHING)
    options = (ignore_index, temperature, eps, reduction, raw)
    chunk = _native.linear_kl_div_chunk_rows(
        *operands, None, None, None, operands[1] if dweight != Wish.NOTHING else None, *options
    )
    one = chunk == 0 or chunk >= x.shape[0]
    lean = not raw and (round_per_chunk or (one and weight.dtype is not torch.float32))
    sums = accumulator(weight, dtype, lean) if dweight != Wish.NOTHING else None
    logits = padded_logits(x, chunk, vocab, dtype)[:, :vocab] if chunk else None
    loss, x_sums = _native.linear_kl_div(*operands, logits, loss, dx, sums, *options, Wish.SCRATCH)
    del logits  # the rounded gradient may take its memory
    factor = None
    if raw and REDUCTIONS[reduction] != "sum":
        share = 1.0 / vocab if REDUCTIONS[reduction] == "mean" else 1.0
        factor = share_of_a_row(labels, ignore_index, x, share)
    return (loss, *finish((x_sums, sums), (x, weight), factor, raw, operands[3], ignore_index))


linear_kl_div.register_derivative()


def _count_products(x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """For FlopCounterMode: 2 N V H of the logits, and as many for each gradient."""
    return 2 * x[0] * x[1] * weight[0] * (1 + sum(map(bool, rest[-2:])))


register_flop_formula(torch.ops.liger.linear_kl_div)(_count_products)

# ---- helpers and the Function -----------------------------------------------------------------------------------------


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise LigerArgumentError(f"reduction must be one of {', '.join(REDUCTIONS)}, but is {reduction!r}")


def _check(
    x: Tensor, weight: Tensor, target: Tensor, labels: Tensor | None, reduction: str, temperature: float
) -> None:
    _check_reduction(reduction)
    check_temperature(temperature)
    require_float("linear_kl_div", student_input=x, student_weight=weight, target=target)
    require_matrices("linear_kl_div", student_input=x, student_weight=weight)
    require_shape("linear_kl_div", "student_weight", weight, (weight.shape[0], x.shape[1]))
    require_shape("linear_kl_div", "target", target, (x.shape[0], weight.shape[0]))
    check_labels(labels, x.shape[0])


def _operator_arguments(
    student_input: Tensor, student_weight: Tensor, target: Tensor, shift_labels: Tensor | None, reduction: str,
    ignore_index: int, temperature: float, eps: float, accum_dtype: torch.dtype | None,
) -> tuple:  # fmt: skip
    """The public arguments, checked, as the operator takes them."""
    tensors = (student_input, student_weight, target, shift_labels)
    _check(*tensors, reduction, temperature)
    dtype = compute_dtype(student_input, student_weight)
    return (*tensors, ignore_index, float(temperature), float(eps), REDUCTIONS.index(reduction), COMPUTE.index(dtype),
            accumulates_in("linear_kl_div", accum_dtype, dtype))  # fmt: skip


@of_tensors
def fused_linear_kl_div_forward(
    student_input: Tensor,
    student_weight: Tensor,
    target: Tensor,
    shift_labels: Tensor | None,
    reduction: str,
    ignore_index: int,
    has_label: bool,
    temperature: float,
    eps: float,
    accum_dtype: torch.dtype | None = None,
    input_requires_grad: bool | None = None,
    weight_requires_grad: bool | None = None,
) -> tuple:
    """(loss, grad_input | None, grad_weight | None). The last two arguments override what the tensors say of themselves. From
    float16 operands the gradients come as float32: they meet the upstream before they are rounded."""
    labels = shift_labels if has_label else None
    tensors = (student_input, student_weight, target, labels)
    given = _operator_arguments(*tensors, reduction, ignore_index, temperature, eps, accum_dtype)
    return called(linear_kl_div, given, input_requires_grad, weight_requires_grad)


@of_tensors
def fused_linear_kl_div_backward(
    grad_output: Tensor, grad_input: Tensor | None, grad_weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that forward formed, times the upstream scalar."""
    dx, dweight = scaled_gradients(grad_output, (grad_input, grad_weight), None, 0)
    return dx, dweight


class LigerFusedLinearKLDivFunction(FormedLoss, LigerFunction):
    """`apply(student_input, student_weight, target, shift_labels=None, reduction="batchmean", ignore_index=-100,
    temperature=1.0, eps=1e-10, accum_dtype=None)` -> loss, a float32 scalar.

    student_input [BT, H], student_weight [V, H], target [BT, V] probabilities of any of the three dtypes, shift_labels [BT] or
    None. With z = x·Wᵀ/temperature a row is Σ q·(log max(q, eps) - z) + logsumexp(z)·Σ q; the loss is their sum, with
    "batchmean" over the rows whose label is not ignore_index, with "mean" over their elements. Gradients of student_input and
    student_weight are formed in forward; the weight's accumulates in f32 (or in `accum_dtype`) and is rounded once. The target
    gets none. Under autocast the products run in its dtype. Errors: ValueError.
    """

    operator = linear_kl_div
    names = "fused_linear_kl_div linear_kl_div"
    evaluate = staticmethod(fused_linear_kl_div_forward)
    held = ("target", "shift_labels")

    @staticmethod
    def forward(ctx, *args):
        return formed_forward(LigerFusedLinearKLDivFunction, ctx, args)

    @staticmethod
    def backward(ctx, dloss):
        return formed_backward(LigerFusedLinearKLDivFunction, ctx, dloss)

    @staticmethod
    def arguments(*args):
        return _operator_arguments(*LigerFusedLinearKLDivFunction.complete(args))

    @classmethod
    def check(cls, *args):
        given = dict(zip(cls.parameters, cls.complete(args)))
        names = ("student_input", "student_weight", "target", "shift_labels", "reduction", "temperature")
        _check(*(given[name] for name in names))

    @staticmethod
    def torch_forward(
        student_input,
        student_weight,
        target,
        shift_labels=None,
        reduction="batchmean",
        ignore_index=-100,
        temperature=1.0,
        eps=1e-10,
        accum_dtype=None,
    ):
        dtype = compute_dtype(student_input, student_weight)
        student_input = counted_rows(shift_labels, ignore_index, student_input)
        z = torch.nn.functional.linear(student_input.to(dtype), student_weight.to(dtype)).float() / temperature
        z = gradient_where(shift_labels, ignore_index, z)
        q = target.float()
        terms = torch.where(q == 0, 0, q * (q.clamp(min=eps).log() - z)).sum(-1)
        loss = total(terms + z.logsumexp(-1) * q.sum(-1), shift_labels, ignore_index, reduction != "sum")
        return loss / z.shape[-1] if reduction == "mean" else loss


__all__ = [
    "LigerFusedLinearKLDivFunction",
    "fused_linear_kl_div_backward",
    "fused_linear_kl_div_forward",
]
