"""Cross entropy with labels and total variation distance to a teacher's logits, both of each row, from one read of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import of_tensors, readable, require_shape
from liger_kernel.ops._function import LigerFunction, refuse_second_derivative
from liger_kernel.ops._memory import is_plain, kept, new_rows, require_float, single
from liger_kernel.ops._operator import AnyRows, LigerArgumentError, Made, Operator, Single, Wish
from liger_kernel.ops.cross_entropy import check_targets


@Operator
def ce_tvd(student_logits: AnyRows, teacher_logits: AnyRows, target: Tensor, ignore_index: int, ce: Made = Wish.PER_ROW,
           tvd: Made = Wish.PER_ROW, student_max: Made = Wish.PER_ROW, student_log_sum: Made = Wish.PER_ROW,
           teacher_max: Made = Wish.PER_ROW, teacher_log_sum: Made = Wish.PER_ROW,
           sigma: Made = Wish.PER_ROW) -> Any:  # fmt: skip
    softmaxes = student_max, student_log_sum, teacher_max, teacher_log_sum
    return _native.ce_tvd_forward(
        student_logits, teacher_logits, target, ce, tvd, *softmaxes, sigma, None, None, ignore_index
    )


@ce_tvd.gradient
def ce_tvd_gradient(student_logits: AnyRows, teacher_logits: AnyRows, target: Tensor, student_max: Tensor,
                    student_log_sum: Tensor, teacher_max: Tensor, teacher_log_sum: Tensor, sigma: Tensor, dce: Single | None,
                    dtvd: Single | None, ignore_index: int, dstudent_logits: Made = Wish.LIKE) -> Any:  # fmt: skip
    softmaxes = student_max, student_log_sum, teacher_max, teacher_log_sum
    return _native.ce_tvd_backward(
        student_logits, teacher_logits, target, *softmaxes, sigma, dce, dtvd, None, dstudent_logits, ignore_index
    )


# ---- what forward leaves for backward -----------------------------------------------------------------------------------

LEAST_ROW, MOST_ROW = 16 << 10, 384 << 10  # bytes: nothing is left of less, or of what shared memory does not hold


def _leaves(ctx: Any, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> bool:
    """Is it worth memory from forward on? Not where it would be held although autograd's own saved tensors are not (hooks: a
    checkpoint, offloading), or for a forward that is captured, and replayed while its gradient is somebody's."""
    if not (ctx.needs_input_grad[0] and student_logits.is_cuda and student_logits.dim() == 2):
        return False
    if not is_plain(student_logits, teacher_logits, target):  # before anything is asked of memory or of a device
        return False
    row = student_logits.shape[1] * student_logits.element_size()
    return (
        LEAST_ROW <= row <= MOST_ROW
        and row % 16 == 0
        and student_logits.shape[0] > 0
        and teacher_logits.shape == student_logits.shape
        and teacher_logits.dtype is student_logits.dtype
        and student_logits.stride(1) == teacher_logits.stride(1) == 1
        and _has_room(student_logits.device)
        and _has_no_hooks()
        and not torch.cuda.is_current_stream_capturing()
    )


def _has_room(device: torch.device) -> bool:
    """Clusters of blocks, and the shared memory of a data centre's GPUs (227 KB, where others have 99)."""
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= 9 and getattr(properties, "shared_memory_per_block_optin", MOST_ROW) > 200 << 10


def _has_no_hooks() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(True) is None


def _forward_that_leaves(
    ctx: Any, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, ignore_index: int
) -> Any:
    """The results, as of `ce_tvd`, and in `ctx.left` the memory of the gradient with what backward need not ask the teacher for.
    None: that is for somebody else."""
    if not _leaves(ctx, student_logits, teacher_logits, target):
        return None
    left = new_rows(student_logits), target.new_empty(target.shape, dtype=torch.int32)
    try:
        made = [Wish.PER_ROW] * 7
        results = _native.ce_tvd_forward(student_logits, teacher_logits, target, *made, *left, ignore_index)
    except LigerArgumentError:  # in words where somebody prepares them
        return None
    ctx.left = left
    return results


def _gradient_over_left(ctx: Any, upstreams: tuple) -> Tensor | None:
    """Once: the gradient takes the place of what was left. None: nothing is, or it may be needed twice, as what is captured may be
    replayed."""
    left = vars(ctx).pop("left", None)
    if left is None or not is_plain(*upstreams) or torch.cuda.is_current_stream_capturing():
        return None
    *tensors, dce, dtvd, ignore_index = ce_tvd.gradient_arguments(ctx.saved_tensors, ctx.options, upstreams)
    dce, dtvd = (None if u is None else single(u) for u in (dce, dtvd))
    dstudent_logits, has_signs = left
    try:
        _native.ce_tvd_backward(*tensors, dce, dtvd, has_signs, dstudent_logits, ignore_index)
    except LigerArgumentError:
        return None
    return dstudent_logits


# ---- the public names ---------------------------------------------------------------------------------------------------


def _require(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> None:
    """In this order."""
    name = "fused_ce_tvd"
    if student_logits.shape != teacher_logits.shape:
        raise LigerArgumentError(
            f"{name}: student_logits has shape {tuple(student_logits.shape)}, but teacher_logits has "
            f"{tuple(teacher_logits.shape)}"
        )
    if student_logits.dim() != 2:
        raise LigerArgumentError(f"{name}: student_logits has {student_logits.dim()} dimensions, but must have 2")
    require_shape(name, "target", target, student_logits.shape[:1])
    require_float(name, student_logits=student_logits, teacher_logits=teacher_logits)


def _debug(student_logits: Tensor, target: Tensor, ignore_index: int) -> None:
    if is_debugging(target):
        check_targets(target, student_logits.shape[-1], ignore_index)


@of_tensors
def fused_ce_tvd_forward(student_logits: Tensor, teacher_logits: Tensor, target: Tensor, ignore_index: int) -> tuple:
    """(ce, tvd, student_lse, teacher_lse, sigma), each float32 [BT]; the last three are for `fused_ce_tvd_backward`: log Σ exp
    of either logits, and Σ p·sign(p - q)."""
    _require(student_logits, teacher_logits, target)
    _debug(student_logits, target, ignore_index)
    ce, tvd, *softmaxes, sigma = ce_tvd(student_logits, teacher_logits, target, ignore_index)
    student_max, student_log_sum, teacher_max, teacher_log_sum = softmaxes
    return ce, tvd, student_max + student_log_sum, teacher_max + teacher_log_sum, sigma


@of_tensors
def fused_ce_tvd_backward(
    grad_ce: Tensor | None,
    grad_tvd: Tensor | None,
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    sigma: Tensor,
    ignore_index: int,
) -> Tensor:
    """The gradient of the student's logits; an upstream that is None counts as 0. As a log-sum-exp is rounded, probabilities are
    right to about 2^-24 (1 + |lse|) of themselves, where the Function knows them better."""
    none = torch.zeros_like(student_lse)
    return ce_tvd.derivative(  # type: ignore[misc]
        student_logits,
        teacher_logits,
        target,
        student_lse,
        none,
        teacher_lse,
        none,
        sigma,
        grad_ce,
        grad_tvd,
        ignore_index,
    )


class LigerFusedCETVDFunction(LigerFunction):
    """`apply(student_logits, teacher_logits, target, ignore_index=-100)` -> (ce, tvd), each float32 [BT], unreduced.

    With p = softmax(student_logits), q = softmax(teacher_logits), both [BT, V], and target [BT] int32 or int64:
    ce = log Σ exp(x) - x_target, tvd = ½ Σ |p - q|, and both are 0 where the target is ignore_index. Differentiable in the
    student's logits alone, each output with an upstream of its own for every row: dce/dx = p - onehot,
    dtvd/dx = ½ p (s - Σ p s) with s = sign(p - q), which is 0 where they are equal.

    Kept for backward are both logits, the target and five numbers a row. H100s and their successors take the memory of the
    gradient in forward and leave there, in a sixteenth of it, what the first backward then spares, where rows are of 16 to 384 KB
    and whole multiples of 16 bytes. Logits of two dtypes are widened to float32.
    A target out of range is an error on the CPU; on a GPU ce and the gradient of its row are NaN.
    """

    operator = ce_tvd
    names = "ce_tvd fused_ce_tvd"
    gradients = ("student_logits",)
    held = ("teacher_logits", "target")

    @staticmethod
    def arguments(student_logits, teacher_logits, target, ignore_index=-100):
        _debug(student_logits, target, ignore_index)
        return student_logits, teacher_logits, target, ignore_index

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, target, ignore_index=-100):
        args = student_logits, teacher_logits, target, ignore_index
        given = LigerFusedCETVDFunction.arguments(*args)
        results = _forward_that_leaves(ctx, *given) or LigerFusedCETVDFunction.now(args, given)
        known = (*given, *results)
        ctx.options = ce_tvd._options_of(known)
        ctx.to_save = tuple(map(kept, ce_tvd._saved_of(known)))
        ctx.materialize_grads = False  # None is the upstream of what nobody used
        return results[:2]

    @staticmethod
    def backward(ctx, *upstreams):
        refuse_second_derivative("LigerFusedCETVDFunction")
        gradient = None
        if any(u is not None for u in upstreams):
            gradient = _gradient_over_left(ctx, upstreams)
        if gradient is None:
            (gradient,) = ce_tvd.gradients(ctx.saved_tensors, ctx.options, upstreams, [True])
        return gradient, None, None, None

    @staticmethod
    def require(student_logits, teacher_logits, target, ignore_index=-100):
        _require(student_logits, teacher_logits, target)

    @classmethod
    def check(cls, *args):
        super().check(*args)
        student_logits, _, target, ignore_index = cls.complete(args)
        labels = readable(target)
        if labels is not None:
            check_targets(labels, student_logits.shape[1], ignore_index)

    @staticmethod
    def torch_forward(student_logits, teacher_logits, target, ignore_index=-100):
        vocab = student_logits.shape[1]
        valid = target != ignore_index
        known = valid & (target >= 0) & (target < vocab)
        x, t = (torch.where(valid[:, None], logits.float(), 0.0) for logits in (student_logits, teacher_logits))
        chosen = x.gather(1, torch.where(known, target, 0).long()[:, None]).squeeze(1)
        ce = x.logsumexp(-1) - chosen
        ce = ce * torch.ones_like(ce).masked_fill(valid & ~known, torch.nan)
        tvd = 0.5 * (x.softmax(-1) - t.softmax(-1)).abs().sum(-1)
        return torch.where(valid, ce, 0.0), torch.where(valid, tvd, 0.0)


__all__ = ["LigerFusedCETVDFunction", "fused_ce_tvd_backward", "fused_ce_tvd_forward"]
