"""A student's and a teacher's linear head and their Jensen-Shannon divergence: the full logits of neither ever exist."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _implementation, _native
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
from liger_kernel.ops._jensen_shannon import values
from liger_kernel.ops._linear_head import (
    COMPUTE,
    accumulates_in,
    accumulator,
    autocast_dtype,
    compute_dtype,
    padded_logits,
    require_matrices,
)
from liger_kernel.ops._memory import matrix, require_float
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Wish
from liger_kernel.ops.scale import scaled_gradients

# ---- the operator ------------------------------------------------------------------------------------------------------


@FormsGradients
def linear_jsd(
    x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, labels: Tensor | None,
    ignore_index: int, beta: float, temperature: float, compute: int, teacher_compute: int, round_per_chunk: bool,
    loss: Made = Wish.SCALAR, dx: Asked = Wish.LIKE, dweight: Asked = Wish.LIKE[1],
) -> Any:  # fmt: skip
    dtype, teacher_dtype, vocab = COMPUTE[compute], COMPUTE[teacher_compute], weight.shape[0]
    operands = (matrix(x.to(dtype)), weight.to(dtype).contiguous(), matrix(teacher_x.to(teacher_dtype)),
                teacher_weight.to(teacher_dtype).contiguous(), None if labels is None else labels.contiguous())  # fmt: skip
    formed = dx != Wish.NOTHING or dweight != Wish.NOTHING
    raw = dtype is torch.float16 and formed
    options = (ignore_index, beta, temperature, raw)
    chunk = _native.linear_jsd_chunk_rows(
        *operands, None, None, None, operands[1] if dweight != Wish.NOTHING else None, *options
    )
    one = chunk == 0 or chunk >= x.shape[0]
    lean = not raw and (round_per_chunk or (one and weight.dtype is not torch.float32))
    sums = accumulator(weight, dtype, lean) if dweight != Wish.NOTHING else None
    dlogits = padded_logits(x, chunk, vocab, dtype)[:, :vocab] if formed and chunk else None
    loss, x_sums = _native.linear_jsd(*operands, dlogits, loss, dx, sums, *options, Wish.SCRATCH)
    del dlogits  # the rounded gradient may take its memory
    factor = share_of_a_row(labels, ignore_index, x, 1.0) if raw else None
    return (loss, *finish((x_sums, sums), (x, weight), factor, raw, operands[4], ignore_index))


linear_jsd.register_derivative()


def _count_products(x: Any, weight: Any, teacher_x: Any, *rest: Any, **_: Any) -> int:
    """For FlopCounterMode: 2 N V H of either's logits, and of the student's as many for each gradient."""
    return 2 * x[0] * weight[0] * (x[1] * (1 + sum(map(bool, rest[-2:]))) + teacher_x[1])


register_flop_formula(torch.ops.liger.linear_jsd)(_count_products)

# ---- helpers and the Function -----------------------------------------------------------------------------------------


def _check(
    x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, labels: Tensor | None, beta: float,
    temperature: float,
) -> None:  # fmt: skip
    name = "linear_jsd"
    check_temperature(temperature)
    if not 0 <= beta <= 1:
        raise LigerArgumentError(f"{name}: jsd_beta is {beta}, but must be in [0, 1]")
    given = dict(student_input=x, student_weight=weight, teacher_input=teacher_x, teacher_weight=teacher_weight)
    require_float(name, **given)
    require_matrices(name, **given)
    require_shape(name, "student_weight", weight, (weight.shape[0], x.shape[1]))
    require_shape(name, "teacher_input", teacher_x, (x.shape[0], teacher_x.shape[1]))
    require_shape(name, "teacher_weight", teacher_weight, (weight.shape[0], teacher_x.shape[1]))
    check_labels(labels, x.shape[0])


def _operator_arguments(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor,
    shift_labels: Tensor | None, jsd_beta: float, ignore_index: int, temperature: float, accum_dtype: torch.dtype | None,
) -> tuple:  # fmt: skip
    """The public arguments, checked, as the operator takes them."""
    heads = (student_input, student_weight, teacher_input, teacher_weight)
    _check(*heads, shift_labels, jsd_beta, temperature)
    dtype, teacher_dtype = compute_dtype(*heads[:2]), compute_dtype(*heads[2:])
    return (*heads, shift_labels, ignore_index, float(jsd_beta), float(temperature), COMPUTE.index(dtype),
            COMPUTE.index(teacher_dtype), accumulates_in("linear_jsd", accum_dtype, dtype))  # fmt: skip


@of_tensors
def fused_linear_jsd_forward(
    student_input: Tensor,
    student_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    shift_labels: Tensor | None,
    jsd_beta: float,
    ignore_index: int,
    has_label: bool,
    temperature: float,
    jsd_impl: str | None = None,
    jsd_mode: str | None = None,
    accum_dtype: torch.dtype | None = None,
    input_requires_grad: bool | None = None,
    weight_requires_grad: bool | None = None,
) -> tuple:
    """(loss, grad_input | None, grad_weight | None). The last two arguments override what the tensors say of themselves. From
    float16 operands the gradients come as float32: they meet the upstream before they are rounded. jsd_impl and jsd_mode as in
    the Function."""
    _implementation.accept("fused_linear_jsd", jsd_impl, jsd_mode)
    heads = (student_input, student_weight, teacher_input, teacher_weight)
    labels = shift_labels if has_label else None
    given = _operator_arguments(*heads, labels, jsd_beta, ignore_index, temperature, accum_dtype)
    return called(linear_jsd, given, input_requires_grad, weight_requires_grad)


@of_tensors
def fused_linear_jsd_backward(
    grad_output: Tensor, grad_input: Tensor | None, grad_weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that forward formed, times the upstream scalar."""
    dx, dweight = scaled_gradients(grad_output, (grad_input, grad_weight), None, 0)
    return dx, dweight


class LigerFusedLinearJSDFunction(FormedLoss, LigerFunction):
    """`apply(student_input, student_weight, teacher_input, teacher_weight, shift_labels=None, jsd_beta=0.5,
    ignore_index=-100, temperature=1.0, accum_dtype=None, jsd_impl=None, jsd_mode=None)` -> loss, a float32 scalar.

    student_input [BT, H], student_weight [V, H], teacher_input [BT, H'], teacher_weight [V, H'], shift_labels [BT] or None. With
    Q = softmax(student logits/temperature) and P the teacher's the loss is the mean, over rows whose label is not ignore_index, of
    KL(P ‖ Q) for jsd_beta 0, KL(Q ‖ P) for 1, and between of jsd_beta·KL(P ‖ M) + (1 - jsd_beta)·KL(Q ‖ M) with M = jsd_beta·P +
    (1 - jsd_beta)·Q (Lin, 1991; GKD, arXiv 2306.13649). Logits are f32 and never rounded to 16 bits. Gradients of the student's
    two are formed in forward; the weight's accumulates in f32 (or in `accum_dtype`) and is rounded once. Under autocast the
    products run in its dtype. jsd_impl and jsd_mode name an implementation of the divergence and change nothing. Errors:
    ValueError.
    """

    operator = linear_jsd
    names = "fused_linear_jsd linear_jsd"
    evaluate = staticmethod(fused_linear_jsd_forward)
    held = ("teacher_input", "teacher_weight", "shift_labels")

    @staticmethod
    def forward(ctx, *args):
        return formed_forward(LigerFusedLinearJSDFunction, ctx, args)

    @staticmethod
    def backward(ctx, dloss):
        return formed_backward(LigerFusedLinearJSDFunction, ctx, dloss)

    @staticmethod
    def arguments(*args):
        return _operator_arguments(*LigerFusedLinearJSDFunction.complete(args)[:9])

    @classmethod
    def check(cls, *args):
        given = dict(zip(cls.parameters, cls.complete(args)))
        _implementation.accept("fused_linear_jsd", given["jsd_impl"], given["jsd_mode"])
        heads = ("student_input", "student_weight", "teacher_input", "teacher_weight")
        _check(*(given[name] for name in (*heads, "shift_labels", "jsd_beta", "temperature")))

    @staticmethod
    def torch_forward(
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        shift_labels=None,
        jsd_beta=0.5,
        ignore_index=-100,
        temperature=1.0,
        accum_dtype=None,
        jsd_impl=None,
        jsd_mode=None,
    ):
        def logits_of(x, weight):
            """Of f32 logits: a product of operands that are rounded, and not itself."""
            dtype, x = compute_dtype(x, weight), counted_rows(shift_labels, ignore_index, x)
            wide = (x.to(dtype).float(), weight.to(dtype).float())
            inside = autocast_dtype(x.device.type) is not None
            with torch.autocast(x.device.type, enabled=False) if inside else contextlib.nullcontext():
                return torch.nn.functional.linear(*wide) / temperature

        student = gradient_where(shift_labels, ignore_index, logits_of(student_input, student_weight))
        log_q, log_p = student.log_softmax(-1), logits_of(teacher_input, teacher_weight).log_softmax(-1)
        return total(values(log_q, log_p, jsd_beta).sum(-1), shift_labels, ignore_index, True)


__all__ = [
    "LigerFusedLinearJSDFunction",
    "fused_linear_jsd_backward",
    "fused_linear_jsd_forward",
]
