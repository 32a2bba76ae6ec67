"""A linear head and its cross entropy in one pass over chunks of rows: the full logits never exist."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._operator import (
    LigerArgumentError,
    LigerFunction,
    Operator,
    absent,
    fresh,
    new_rows,
    refuse_second_derivative,
    workspace,
)
from liger_kernel.ops.cross_entropy import (
    LigerCrossEntropyFunction,
    check_flags,
    check_targets_if_debugging,
    class_weights,
    reduction_number,
)
from liger_kernel.ops.scale import cast, scaled_gradient

# what becomes of the weight's gradient
ROUND_ONCE, KEEP_F32, ROUND_PER_CHUNK = 0, 1, 2


def _matrix(x: Tensor) -> Tensor:
    plain = x.dim() != 2 or (x.stride(1) == 1 and x.stride(0) >= x.shape[1])
    return x if plain else x.contiguous()


def _weight_gradient(weight: Tensor, chunks: int, mode: int) -> Tensor:
    """The buffer that products accumulate in: f32, but for a single chunk, which needs no accumulator."""
    lean = mode == ROUND_PER_CHUNK or (mode == ROUND_ONCE and chunks <= 1)
    return fresh(torch.empty_like(weight, dtype=weight.dtype if lean else torch.float32))


def _values(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    upstream: Tensor | None,
    ignore_index: int,
    lse_square_scale: float,
    label_smoothing: float,
    reduction: int,
    softcap: float,
    token_scaling: bool,
    raw_gradient: bool,
    with_z_loss: bool,
    with_accuracy: bool,
    with_predicted: bool,
    need_dx: bool,
    need_dbias: bool,
    need_dweight: bool,
    dweight_mode: int,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    x, weight, target = _matrix(x), weight.contiguous(), target.contiguous()
    bias = bias.contiguous() if bias is not None else None
    options = (ignore_index, label_smoothing, lse_square_scale, softcap, reduction, token_scaling, raw_gradient)
    head = (x, weight, bias, target, class_weight, upstream)
    chunk = _native.linear_cross_entropy_forward_chunk_rows(*head, *(None,) * 9, *options)
    rows, vocab = x.shape[0], weight.shape[0]
    shape = (rows,) if reduction == 0 else ()
    loss = x.new_empty(shape, dtype=torch.float32)
    z_loss = x.new_empty(shape) if with_z_loss else None
    accuracy = x.new_empty(shape, dtype=torch.float32) if with_accuracy else None
    predicted = x.new_empty(rows, dtype=torch.int64) if with_predicted else None
    counts = x.new_empty(4, dtype=torch.float32)
    dx = new_rows(x) if need_dx else None
    chunks = -(-rows // chunk) if chunk else 0
    dweight = _weight_gradient(weight, chunks, dweight_mode) if need_dweight else None
    dbias = x.new_empty(vocab, dtype=torch.float32) if need_dbias else None
    # rows padded to 16 bytes: the products are faster, and an odd vocabulary is not special
    logits = fresh(x.new_empty(chunk, -(-vocab // 8) * 8))[:, :vocab] if chunk else None
    outputs = (logits, loss, z_loss, accuracy, predicted, dx, dweight, dbias, counts)
    scratch = workspace(x, _native.linear_cross_entropy_forward_workspace(*head, *outputs, *options))
    _native.linear_cross_entropy_forward(*head, *outputs, *options, scratch)
    del logits, outputs  # the rounded gradient may take the logits' memory
    if dweight is not None and dweight_mode == ROUND_ONCE and dweight.dtype is not weight.dtype:
        dweight = cast(dweight, weight.dtype)
    return loss, z_loss, accuracy, predicted, dx, dweight, dbias, counts


def _run(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    loss, z_loss, accuracy, predicted, dx, dweight, dbias, counts = _values(x, *args)
    return (
        loss,
        z_loss if z_loss is not None else absent(x),
        accuracy if accuracy is not None else absent(x, torch.float32),
        predicted if predicted is not None else absent(x, torch.int64),
        dx if dx is not None else absent(x),
        dweight if dweight is not None else absent(x),
        dbias if dbias is not None else absent(x, torch.float32),
        counts,
    )


def _run_fake(
    x,
    weight,
    target,
    bias,
    class_weight,
    upstream,
    ignore_index,
    lse_square_scale,
    label_smoothing,
    reduction,
    softcap,
    token_scaling,
    raw_gradient,
    with_z_loss,
    with_accuracy,
    with_predicted,
    need_dx,
    need_dbias,
    need_dweight,
    dweight_mode,
):
    shape = x.shape[:1] if reduction == 0 else ()
    dweight_dtype = torch.float32 if dweight_mode == KEEP_F32 else weight.dtype
    return (
        x.new_empty(shape, dtype=torch.float32),
        x.new_empty(shape) if with_z_loss else absent(x),
        x.new_empty(shape, dtype=torch.float32) if with_accuracy else absent(x, torch.float32),
        x.new_empty(x.shape[:1], dtype=torch.int64) if with_predicted else absent(x, torch.int64),
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_dx else absent(x),
        weight.new_empty(weight.shape, dtype=dweight_dtype) if need_dweight else absent(x),
        x.new_empty(weight.shape[:1], dtype=torch.float32) if need_dbias else absent(x, torch.float32),
        x.new_empty(4, dtype=torch.float32),
    )


linear_cross_entropy = Operator(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor target, Tensor? bias, Tensor? class_weight, Tensor? upstream, "
    "int ignore_index, float lse_square_scale, float label_smoothing, int reduction, float softcap, bool token_scaling, "
    "bool raw_gradient, bool with_z_loss, bool with_accuracy, bool with_predicted, bool need_dx, bool need_dbias, "
    "bool need_dweight, int dweight_mode) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _run_fake,
    eager=_values,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, target, bias, class_weight, _upstream, *options = inputs
    ctx.options = options[:6]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, target, bias, class_weight)


def _gradient(ctx: Any, dloss: Tensor | None, *_others: Any) -> tuple:
    """From the inputs again: the operator's own derivative, for callers without the Function."""
    nothing = (None,) * 20
    if dloss is None:
        return nothing
    x, weight, target, bias, class_weight = ctx.saved_tensors
    need_dx, need_dweight = ctx.needs_input_grad[:2]
    need_dbias = bias is not None and ctx.needs_input_grad[3]
    results = linear_cross_entropy(
        x, weight, target, bias, class_weight, dloss.float(), *ctx.options, False, False, False, False,
        need_dx, need_dbias, need_dweight, ROUND_ONCE,
    )  # fmt: skip
    gradients = list(nothing)
    gradients[0] = results[4] if need_dx else None
    gradients[1] = results[5] if need_dweight else None
    gradients[3] = results[6].to(bias.dtype) if need_dbias else None
    return tuple(gradients)


linear_cross_entropy.register_gradient(_setup_context, _gradient)

# ---- helpers and the Function -----------------------------------------------------------------------------------------


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _operands(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias in one dtype: autocast's, or the one that torch promotes to."""
    dtype = _autocast_dtype(x.device.type)
    if dtype is None:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    return x.to(dtype), weight.to(dtype), bias.to(dtype) if bias is not None else None


def _normaliser(counts: Tensor, weighted: bool) -> Tensor:
    """1 over what a mean divides by, on the device; 1 where there are no rows to average."""
    valid, weight_sum = counts[0], counts[1]
    return torch.where(valid == 0, 1.0, 1.0 / (weight_sum if weighted else valid))


def fused_linear_cross_entropy_forward(
    _input: Tensor,
    weight: Tensor,
    target: Tensor,
    ce_weight: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    token_grad_output: Tensor | None = None,
    compute_gradients: bool | None = None,
    weight_requires_grad: bool | None = None,
    bias_requires_grad: bool | None = None,
) -> tuple:
    """(loss, z_loss | None, accuracy | None, predicted | None, grad_input | None, grad_weight | None, grad_bias | None).

    The gradients are those of the reduced loss, or of Σ token_grad_output·loss_i where that is given. compute_gradients,
    weight_requires_grad and bias_requires_grad override what _input, weight and bias say of themselves. From float16 operands the gradients come
    as float32: they meet the upstream before they are rounded.
    """
    check_flags(
        return_z_loss=return_z_loss,
        return_token_accuracy=return_token_accuracy,
        return_predicted_tokens=return_predicted_tokens,
    )
    number = reduction_number(reduction)
    need_dx = _input.requires_grad if compute_gradients is None else compute_gradients
    need_dweight = weight.requires_grad if weight_requires_grad is None else weight_requires_grad
    need_dbias = bias is not None and (bias.requires_grad if bias_requires_grad is None else bias_requires_grad)
    x, head, head_bias = _operands(_input.detach(), weight.detach(), bias.detach() if bias is not None else None)
    class_weight = class_weights(ce_weight, weight.shape[0])
    check_targets_if_debugging(target, weight.shape[0], ignore_index)
    raw = x.dtype is torch.float16 and (need_dx or need_dweight or need_dbias)
    mode = KEEP_F32 if raw or weight.dtype is torch.float32 else ROUND_ONCE
    if accum_dtype is not None and accum_dtype is x.dtype and not raw:
        mode = ROUND_PER_CHUNK
    loss, z_loss, accuracy, predicted, dx, dweight, dbias, counts = linear_cross_entropy(
        x, head, target, head_bias, class_weight,
        token_grad_output.float().contiguous() if token_grad_output is not None else None,
        ignore_index, float(lse_square_scale), float(label_smoothing), number, float(softcap or 0.0),
        bool(use_token_scaling), raw, return_z_loss, return_token_accuracy, return_predicted_tokens,
        need_dx, need_dbias, need_dweight, mode,
    )  # fmt: skip
    gradients = [dx if need_dx else None, dweight if need_dweight else None, dbias if need_dbias else None]
    if raw:
        factor = _normaliser(counts, class_weight is not None) if reduction == "mean" else None
        gradients = [None if g is None else g.float() if factor is None else g.float().mul_(factor) for g in gradients]
    else:
        wanted = (_input.dtype, weight.dtype, bias.dtype if bias is not None else None)
        gradients = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, wanted)]
    return (
        loss,
        z_loss if return_z_loss else None,
        accuracy if return_token_accuracy else None,
        predicted if return_predicted_tokens else None,
        *gradients,
    )


def fused_linear_cross_entropy_backward(
    grad_output: Tensor, grad_input: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that forward formed, times the upstream scalar. While a backward pass frees its graph they are scaled
    in their own memory, else in new memory."""
    scaled = [None if g is None else scaled_gradient(g, grad_output) for g in (grad_input, grad_weight, grad_bias)]
    return scaled[0], scaled[1], scaled[2]


class LigerFusedLinearCrossEntropyFunction(LigerFunction):
    """`apply(_input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0,
    label_smoothing=0.0, reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False,
    return_token_accuracy=False, return_predicted_tokens=False)`
    -> (loss, z_loss | None, token_accuracy | None, predicted_tokens | None).

    _input [BT, H], weight [V, H], target [BT], bias [V] or None, ce_weight [V] class weights or None. The loss is float32.
    Gradients of weight and bias accumulate in f32 (or in `accum_dtype`) and are rounded once. With "mean" and "sum" they
    are formed in forward; with "none" backward makes the logits again and multiplies each row by its own upstream.
    Under autocast the products run in its dtype, for CPU tensors too. Rows that are ignored have a gradient of 0, but are
    part of the products: a NaN or Inf in such a row of _input reaches weight's gradient, as in an unfused head.
    """

    operator = "fused_linear_cross_entropy linear_cross_entropy"
    differentiable = (0, 1, 3)
    optional = (10, 13, 14)

    @staticmethod
    def forward(
        ctx,
        _input,
        weight,
        target,
        bias=None,
        ce_weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        accum_dtype=None,
        use_token_scaling=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
    ):
        needs = ctx.needs_input_grad
        now = reduction != "none"
        ctx.bias_needed = bias is not None and needs[3]
        loss, z_loss, accuracy, predicted, dx, dweight, dbias = fused_linear_cross_entropy_forward(
            _input=_input,
            weight=weight,
            target=target,
            ce_weight=ce_weight,
            bias=bias,
            ignore_index=ignore_index,
            lse_square_scale=lse_square_scale,
            label_smoothing=label_smoothing,
            reduction=reduction,
            softcap=softcap,
            return_z_loss=return_z_loss,
            accum_dtype=accum_dtype,
            use_token_scaling=use_token_scaling,
            return_token_accuracy=return_token_accuracy,
            return_predicted_tokens=return_predicted_tokens,
            compute_gradients=now and needs[0],
            weight_requires_grad=now and needs[1],
            bias_requires_grad=now and ctx.bias_needed,
        )
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(r for r in (z_loss, accuracy, predicted) if r is not None))
        ctx.dtypes = (_input.dtype, weight.dtype, bias.dtype if bias is not None else None)
        ctx.recompute = None
        if now:
            ctx.save_for_backward(dx, dweight, dbias)
        else:
            ctx.recompute = {
                "ignore_index": ignore_index,
                "lse_square_scale": lse_square_scale,
                "label_smoothing": label_smoothing,
                "reduction": reduction,
                "softcap": softcap,
                "accum_dtype": accum_dtype,
                "use_token_scaling": use_token_scaling,
            }
            ctx.autocast = (_input.device.type, _autocast_dtype(_input.device.type))
            ctx.save_for_backward(_input, weight, target, bias, ce_weight)
        return loss, z_loss, accuracy, predicted

    @staticmethod
    def backward(ctx, dloss, *_others):
        refuse_second_derivative("LigerFusedLinearCrossEntropyFunction")
        nothing = (None,) * 11
        if dloss is None:
            return (None,) * 15
        if ctx.recompute is None:
            gradients = fused_linear_cross_entropy_backward(dloss, *ctx.saved_tensors)
        else:
            gradients = _recompute(ctx, dloss)
        dx, dweight, dbias = (None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes))
        return (dx, dweight, None, dbias, *nothing)

    @staticmethod
    def torch_forward(_input, weight, target, bias=None, ce_weight=None, *options):
        names = (
            "ignore_index",
            "lse_square_scale",
            "label_smoothing",
            "reduction",
            "softcap",
            "return_z_loss",
            "accum_dtype",
            "use_token_scaling",
            "return_token_accuracy",
            "return_predicted_tokens",
        )
        given = dict(zip(names, options))
        given.pop("accum_dtype", None)
        scaled = bool(given.pop("use_token_scaling", False))
        logits = torch.nn.functional.linear(*_operands(_input, weight, bias))
        loss, *others = LigerCrossEntropyFunction.torch_forward(logits, target, ce_weight, **given, scale_tokens=scaled)
        return (loss.float(), *others)


def _recompute(ctx: Any, dloss: Tensor) -> tuple:
    """The gradients for one upstream value per row, under the autocast state of forward."""
    _input, weight, target, bias, ce_weight = ctx.saved_tensors
    device_type, dtype = ctx.autocast
    state = (
        torch.autocast(device_type, dtype=dtype)
        if dtype is not None
        else torch.autocast(device_type, enabled=False)
        if torch.is_autocast_enabled(device_type)
        else contextlib.nullcontext()
    )
    with state:
        results = fused_linear_cross_entropy_forward(
            _input=_input.detach(),
            weight=weight.detach(),
            target=target,
            ce_weight=ce_weight,
            bias=bias,
            token_grad_output=dloss,
            compute_gradients=ctx.needs_input_grad[0],
            weight_requires_grad=ctx.needs_input_grad[1],
            bias_requires_grad=ctx.bias_needed,
            **ctx.recompute,
        )
    return results[4:]


__all__ = [
    "LigerArgumentError",
    "LigerFusedLinearCrossEntropyFunction",
    "fused_linear_cross_entropy_backward",
    "fused_linear_cross_entropy_forward",
]
