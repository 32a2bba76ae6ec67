"""Softmax cross entropy with the gradient of the logits formed in forward: one read and one write of the logits."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._operator import (
    LigerArgumentError,
    LigerFunction,
    Operator,
    absent,
    new_rows,
    refuse_second_derivative,
    workspace,
)
from liger_kernel.ops.scale import scale, scaled_gradient

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def reduction_number(reduction: str) -> int:
    if reduction not in REDUCTIONS:
        raise LigerArgumentError(f"reduction is {reduction!r}, but must be one of {list(REDUCTIONS)}")
    return REDUCTIONS[reduction]


def check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise LigerArgumentError(f"{name} must be True or False, but is {value!r}")


def class_weights(weight: Tensor | None, vocab: int) -> Tensor | None:
    """Class weights as kernels take them: f32, one per class."""
    if weight is None:
        return None
    if not torch.is_floating_point(weight):
        raise LigerArgumentError(f"class weights must be floating point, but are {weight.dtype}")
    if weight.dim() != 1 or weight.shape[0] != vocab:
        raise LigerArgumentError(f"class weights have shape {tuple(weight.shape)}, but there are {vocab} classes")
    return weight.detach().float().contiguous()


def check_targets_if_debugging(target: Tensor, vocab: int, ignore_index: int) -> None:
    """LIGER_DEBUG=1: the check that CUDA calls leave out, because it waits for the device."""
    if not target.is_cuda or os.environ.get("LIGER_DEBUG") != "1" or torch.compiler.is_compiling():
        return
    wrong = (target != ignore_index) & ((target < 0) | (target >= vocab))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise LigerArgumentError(
            f"target[{row}] is {int(target[row])}, which is out of bounds: it must be in [0, {vocab}) or ignore_index "
            f"({ignore_index})"
        )


def _matrix(logits: Tensor) -> Tensor:
    """Any row stride will do, but the last dimension must be contiguous and rows must not overlap."""
    if logits.dim() == 2 and (logits.stride(1) != 1 or 0 <= logits.stride(0) < logits.shape[1]):
        return logits.contiguous()
    return logits


# ---- the operators ----------------------------------------------------------------------------------------------------


def _values(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    lse_square_scale: float,
    label_smoothing: float,
    reduction: int,
    softcap: float,
    with_z_loss: bool,
    with_accuracy: bool,
    with_predicted: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    logits, target = _matrix(logits), target.contiguous()
    rows = logits.shape[:1] if reduction == 0 else ()
    loss = logits.new_empty(rows)
    z_loss = logits.new_empty(rows) if with_z_loss else None
    accuracy = logits.new_empty(rows, dtype=torch.float32) if with_accuracy else None
    predicted = logits.new_empty(logits.shape[:1], dtype=torch.int64) if with_predicted else None
    dlogits = new_rows(logits) if with_gradient else None
    args = (logits, target, weight, None, loss, z_loss, accuracy, predicted, dlogits)
    options = (ignore_index, label_smoothing, lse_square_scale, softcap, reduction)
    scratch = workspace(logits, _native.cross_entropy_forward_workspace(*args, *options))
    _native.cross_entropy_forward(*args, *options, scratch)
    return loss, z_loss, accuracy, predicted, dlogits


def _forward(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    loss, z_loss, accuracy, predicted, dlogits = _values(logits, *args)
    return (
        loss,
        z_loss if z_loss is not None else absent(logits),
        accuracy if accuracy is not None else absent(logits, torch.float32),
        predicted if predicted is not None else absent(logits, torch.int64),
        dlogits if dlogits is not None else absent(logits),
    )


def _forward_fake(
    logits,
    target,
    weight,
    ignore_index,
    lse_square_scale,
    label_smoothing,
    reduction,
    softcap,
    with_z_loss,
    with_accuracy,
    with_predicted,
    with_gradient,
):
    rows = logits.shape[:1] if reduction == 0 else ()
    return (
        logits.new_empty(rows),
        logits.new_empty(rows) if with_z_loss else absent(logits),
        logits.new_empty(rows, dtype=torch.float32) if with_accuracy else absent(logits, torch.float32),
        logits.new_empty(logits.shape[:1], dtype=torch.int64) if with_predicted else absent(logits, torch.int64),
        torch.empty_like(logits, memory_format=torch.contiguous_format) if with_gradient else absent(logits),
    )


def _backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor,
    ignore_index: int,
    lse_square_scale: float,
    label_smoothing: float,
    reduction: int,
    softcap: float,
) -> Tensor:
    logits = _matrix(logits)
    dlogits = new_rows(logits)
    args = (logits, target.contiguous(), weight, upstream.float().contiguous(), dlogits)
    options = (ignore_index, label_smoothing, lse_square_scale, softcap, reduction)
    scratch = workspace(logits, _native.cross_entropy_backward_workspace(*args, *options))
    _native.cross_entropy_backward(*args, *options, scratch)
    return dlogits


def _backward_fake(logits, *_rest):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


cross_entropy = Operator(
    "cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, float lse_square_scale, "
    "float label_smoothing, int reduction, float softcap, bool with_z_loss, bool with_accuracy, bool with_predicted, "
    "bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    eager=_values,
)
cross_entropy_gradient = Operator(
    "cross_entropy_backward(Tensor logits, Tensor target, Tensor? weight, Tensor upstream, int ignore_index, "
    "float lse_square_scale, float label_smoothing, int reduction, float softcap) -> Tensor",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, target, weight, *options = inputs
    ctx.options = options[:5]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight)


def _gradient(ctx: Any, dloss: Tensor | None, *_others: Any) -> tuple:
    nothing = (None,) * 11
    if dloss is None:
        return (None, *nothing)
    return (cross_entropy_gradient(*ctx.saved_tensors, dloss, *ctx.options), *nothing)


cross_entropy.register_gradient(_setup_context, _gradient)

# ---- helpers and the Function -----------------------------------------------------------------------------------------


def cross_entropy_forward(
    _input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    lse_square_scale: float,
    label_smoothing: float,
    reduction: str,
    softcap: float | None,
    return_z_loss: bool,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    *,
    form_gradient: bool | None = None,
) -> tuple:
    """(loss, z_loss | None, token_accuracy | None, predicted_tokens | None, gradient of the logits).

    The gradient is that of the reduced loss (of each row's own loss with "none"), in memory of its own; where _input
    requires none it is _input itself. `form_gradient` overrides that decision.
    """
    check_flags(
        return_z_loss=return_z_loss,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
    )
    number = reduction_number(reduction)
    vocab = _input.shape[-1]
    weight = class_weights(weight, vocab)
    check_targets_if_debugging(target, vocab, ignore_index)
    wanted = _input.requires_grad if form_gradient is None else form_gradient
    loss, z_loss, accuracy, predicted, dlogits = cross_entropy(
        _input,
        target,
        weight,
        ignore_index,
        float(lse_square_scale),
        float(label_smoothing),
        number,
        float(softcap or 0.0),
        return_z_loss,
        return_token_accuracy,
        return_predicted_tokens,
        wanted,
    )
    return (
        loss,
        z_loss if return_z_loss else None,
        accuracy if return_token_accuracy else None,
        predicted if return_predicted_tokens else None,
        dlogits if wanted else _input,
    )


def cross_entropy_backward(_input: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient that cross_entropy_forward formed, times a scalar or one value per row."""
    if grad_output.dim() == 0:
        return scaled_gradient(_input, grad_output)
    return (_input.float() * grad_output.float().unsqueeze(1)).to(_input.dtype)


class LigerCrossEntropyFunction(LigerFunction):
    """`apply(_input, target, weight, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean",
    softcap=None, return_z_loss=False, return_token_accuracy=False, return_predicted_tokens=False)`
    -> (loss, z_loss | None, token_accuracy | None, predicted_tokens | None).

    _input [BT, V], target [BT] int32 or int64, weight [V] class weights or None. Row losses and sums are f32, the result
    has _input's dtype. The logits are never changed. With "mean" or "sum" the gradient is formed in forward; with "none",
    and in float16, where the upstream must meet it before it is rounded, it is formed in backward.
    """

    operator = "cross_entropy"
    differentiable = (0,)
    optional = (8, 9, 10)

    @staticmethod
    def forward(
        ctx,
        _input,
        target,
        weight,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
    ):
        needed = ctx.needs_input_grad[0]
        now = needed and reduction != "none" and _input.dtype is not torch.float16
        *results, dlogits = cross_entropy_forward(
            _input,
            target,
            weight,
            ignore_index,
            lse_square_scale,
            label_smoothing,
            reduction,
            softcap,
            return_z_loss,
            return_token_accuracy,
            return_predicted_tokens,
            form_gradient=now,
        )
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(r for r in results[1:] if r is not None))
        ctx.options = None
        if now:
            ctx.save_for_backward(dlogits)
        elif needed:
            ctx.options = (
                ignore_index,
                float(lse_square_scale),
                float(label_smoothing),
                reduction_number(reduction),
                float(softcap or 0.0),
            )
            ctx.save_for_backward(_input, target, class_weights(weight, _input.shape[-1]))
        return tuple(results)

    @staticmethod
    def backward(ctx, dloss, *_others):
        refuse_second_derivative("LigerCrossEntropyFunction")
        nothing = (None,) * 10
        if dloss is None:
            return (None, *nothing)
        if ctx.options is None:
            return (cross_entropy_backward(ctx.saved_tensors[0], dloss), *nothing)
        return (cross_entropy_gradient(*ctx.saved_tensors, dloss, *ctx.options), *nothing)

    @staticmethod
    def torch_forward(
        _input,
        target,
        weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
        scale_tokens=False,
    ):
        x = _input.float()
        x = softcap * torch.tanh(x / softcap) if softcap else x
        valid = target != ignore_index
        x = torch.where(valid[:, None], x, 0.0)  # ignored rows may hold anything
        count = valid.sum()
        safe, vocab = torch.where(valid, target, 0).long(), x.shape[1]
        lse = torch.logsumexp(x, -1)
        w = torch.ones(vocab, device=x.device) if weight is None else weight.float()
        base = w[safe] * (lse - x.gather(1, safe[:, None]).squeeze(1))
        smooth = label_smoothing / vocab * (w * (lse[:, None] - x)).sum(-1)
        loss, z = (1 - label_smoothing) * base + smooth, lse_square_scale * lse**2
        if reduction == "mean":
            loss = loss / (count if weight is None else (w[safe] * valid).sum()).clamp(min=1e-38)
            z = z / count.clamp(min=1)
        factor = torch.softmax(x, -1).gather(1, safe[:, None]).squeeze(1).detach() if scale_tokens else 1.0
        loss, z = torch.where(valid, (loss + z) * factor, 0.0), torch.where(valid, z * factor, 0.0)
        predicted = torch.where(valid, x.argmax(-1), -1)
        accuracy = ((predicted == target) & valid).float()
        if reduction != "none":
            loss, z, accuracy = loss.sum(), z.sum(), accuracy.sum() / count
        dtype = torch.float32 if scale_tokens is None else _input.dtype
        return (
            loss.to(dtype),
            z.to(_input.dtype).detach() if return_z_loss else None,
            accuracy if return_token_accuracy else None,
            predicted if return_predicted_tokens else None,
        )


__all__ = ["LigerCrossEntropyFunction", "cross_entropy_backward", "cross_entropy_forward", "scale"]
