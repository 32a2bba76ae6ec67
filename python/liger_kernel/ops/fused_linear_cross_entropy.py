"""A linear head and its cross entropy, over chunks of rows or slices of the vocabulary: there is no memory for the full logits."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from liger_kernel import _implementation, _native
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._distillation import counted_rows
from liger_kernel.ops._formula import of_tensors, require_shape
from liger_kernel.ops._function import LigerFunction, refuse_second_derivative
from liger_kernel.ops._linear_head import (
    COMPUTE,
    accumulates_in,
    accumulator,
    compute_dtype,
    finished,
    padded_logits,
    require_matrices,
)
from liger_kernel.ops._memory import kept, kept_labels, matrix, require_float, take_saved
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Operator, Wish
from liger_kernel.ops.cross_entropy import (
    ROWS,
    check_flags,
    check_losses,
    check_targets,
    class_weights,
    plain_cross_entropy,
    reduction_number,
)
from liger_kernel.ops.scale import free_of_others, scaled_gradients

# ---- the operator ------------------------------------------------------------------------------------------------------


class _LinearCrossEntropy(Operator):
    differentiable = (0, 1, 3)

    def prepared(self, *args: Any) -> Any:
        return self.eager(*args)

    def fake(self, *args: Any) -> tuple:
        """z_loss is of the products' dtype; gradients of float16 products are f32."""
        dtype = COMPUTE[args[12]]
        loss, z_loss, accuracy, predicted, *gradients = super().fake(*args)
        if dtype is torch.float16:
            gradients = [g.float() if wanted else g for g, wanted in zip(gradients, args[-3:])]
        return (loss, z_loss.to(dtype), accuracy, predicted, *gradients)

    def wish(self, result: Any, given: tuple) -> Wish:
        return ROWS.get(result.wish, result.wish) if given[9] == 0 else result.wish

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        """Gradients that were formed in forward are what is saved; those of row losses would not know their upstreams."""
        x, weight, target, bias, class_weight, _upstream, *options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.formed = options[-3:] if options[3] != 0 else (False,) * 3
        ctx.options = options[:8]
        if any(ctx.formed):
            ctx.save_for_backward(*output[4:], kept_labels(target))
        else:
            ctx.save_for_backward(x, weight, kept(target), bias, kept(class_weight))

    def backward(self, ctx: Any, *upstreams: Tensor | None) -> tuple:
        dloss, needs = upstreams[0], [ctx.needs_input_grad[i] for i in self.differentiable]
        found: Any = (None, None, None)
        if dloss is not None and any(ctx.formed):
            saved, free = take_saved(ctx)
            with free_of_others(saved, free):
                found = scaled_gradients(
                    dloss, [g if f else None for g, f in zip(saved, ctx.formed)], saved[3], ctx.options[0]
                )
        elif dloss is not None:
            found = _recomputed(ctx, dloss, needs)
        gradients: list = [None] * len(ctx.needs_input_grad)
        for position, gradient, need in zip(self.differentiable, found, needs):
            gradients[position] = gradient if need else None
        return tuple(gradients)


@_LinearCrossEntropy
def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Tensor | None, upstream: Tensor | None,
    ignore_index: int, lse_square_scale: float, label_smoothing: float, reduction: int, softcap: float,
    token_scaling: bool, compute: int, round_per_chunk: bool,
    loss: Made = Wish.SCALAR, z_loss: Asked = Wish.SCALAR_SAME, accuracy: Asked = Wish.SCALAR,
    predicted: Asked = Wish.PER_ROW_I64, dx: Asked = Wish.LIKE, dweight: Asked = Wish.LIKE[1],
    dbias: Asked = Wish.LIKE[3],
) -> Any:  # fmt: skip
    """Gradients are those of the reduced loss, or of the sum of upstream times row losses; from float16 products they are
    f32, because they meet the upstream before they are rounded, and have met everything else."""
    dtype = COMPUTE[compute]
    head = (matrix(x.to(dtype)), weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous(),
            target.contiguous(), class_weight, upstream)  # fmt: skip
    wanted = [wish != Wish.NOTHING for wish in (dx, dweight, dbias)]
    raw = dtype is torch.float16 and any(wanted)
    options = (ignore_index, label_smoothing, lse_square_scale, softcap, reduction, token_scaling, raw)
    rows, vocab = x.shape[0], weight.shape[0]
    once = wanted[1] and weight.dtype is dtype and not raw and not round_per_chunk
    wished = [like if want else None for like, want in zip(head[:2], wanted)]  # dx and dweight: no memory yet
    likes = (*(None,) * 5, *wished, None, None)
    cols = _native.linear_cross_entropy_forward_slice_cols(*head, *likes, *options) if once else vocab
    two = cols < vocab  # passes
    chunk = rows if two else _native.linear_cross_entropy_forward_chunk_rows(*head, *likes, *options)
    chunks = -(-rows // chunk) if chunk and not two else 1
    lean = not raw and (round_per_chunk or (chunks <= 1 and weight.dtype is not torch.float32))  # no sum
    sums = accumulator(weight, dtype, lean) if wanted[1] else None
    bias_sums = x.new_empty(vocab, dtype=torch.float32) if wanted[2] else None
    counts = x.new_empty(4, dtype=torch.float32)
    logits = padded_logits(x, chunk, cols, dtype)[:, :cols] if chunk else None
    values = [ROWS[w] if reduction == 0 and w in ROWS else w for w in (loss, z_loss, accuracy)]
    *made, x_sums = _native.linear_cross_entropy_forward(
        *head, logits, *values, predicted, dx, sums, bias_sums, counts, *options, Wish.SCRATCH
    )
    del logits  # the rounded gradient may take its memory
    factor = _normaliser(counts, class_weight is not None) if raw and reduction == 1 else None
    gradients = [
        finished(g, like, raw, factor, targets, ignore_index) if g is not None and like is not None else None
        for g, like, targets in ((x_sums, x, head[3]), (sums, weight, None), (bias_sums, bias, None))
    ]
    return (*made, *gradients)


linear_cross_entropy.register_derivative()


def _recomputed(ctx: Any, dloss: Tensor, needs: list) -> tuple:
    """The gradients for one upstream value per row: the logits are made again."""
    upstream = dloss.float().contiguous()
    return linear_cross_entropy(*ctx.saved_tensors, upstream, *ctx.options, False, False, False, *needs)[4:]


def _normaliser(counts: Tensor, weighted: bool) -> Tensor:
    """1 over what a mean divides by, on the device; 1 where there are no rows to average."""
    valid, weight_sum = counts[0], counts[1]
    return torch.where(valid == 0, 1.0, 1.0 / (weight_sum if weighted else valid))


def _count_products(x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """For FlopCounterMode: 2 N V H of the logits, and as many for each gradient but the bias's."""
    need_dx, need_dweight = rest[-3:-1]
    return 2 * x[0] * x[1] * weight[0] * (1 + bool(need_dx) + bool(need_dweight))


register_flop_formula(torch.ops.liger.linear_cross_entropy)(_count_products)

# ---- helpers and the Function -----------------------------------------------------------------------------------------


def _accept(ce_impl: str | None, ce_mode: str | None, chunk_mem_const: int) -> None:
    """What is there for callers of other implementations: looked at, and without effect."""
    if isinstance(chunk_mem_const, bool) or not isinstance(chunk_mem_const, int) or chunk_mem_const < 1:
        raise LigerArgumentError(f"chunk_mem_const must be a positive integer, but is {chunk_mem_const!r}")
    _implementation.accept("fused_linear_cross_entropy", ce_impl, ce_mode)


def _operator_arguments(
    _input: Tensor,
    weight: Tensor,
    target: Tensor,
    ce_weight: Tensor | None,
    bias: Tensor | None,
    ignore_index: int,
    lse_square_scale: float,
    label_smoothing: float,
    reduction: str,
    softcap: float | None,
    accum_dtype: torch.dtype | None,
    use_token_scaling: bool,
) -> tuple[tuple, tuple]:
    """The public arguments, checked, as the operator takes them: tensors and options."""
    number = reduction_number(reduction)
    require_matrices("linear_cross_entropy", _input=_input, weight=weight)
    require_float("linear_cross_entropy", _input=_input, weight=weight, bias=bias)
    dtype = compute_dtype(_input, weight)
    class_weight = class_weights(ce_weight, weight.shape[0])
    if is_debugging(target):
        check_targets(target, weight.shape[0], ignore_index)
    numbers = (float(lse_square_scale), float(label_smoothing), number, float(softcap or 0.0))
    options = (
        ignore_index,
        *numbers,
        bool(use_token_scaling),
        COMPUTE.index(dtype),
        accumulates_in("linear_cross_entropy", accum_dtype, dtype),
    )
    return (_input, weight, target, bias, class_weight), options


_OPERATOR_ARGUMENTS = tuple(inspect.signature(_operator_arguments).parameters)


@of_tensors
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
    ce_impl: str | None = None,
    ce_mode: str | None = None,
    token_grad_output: Tensor | None = None,
    compute_gradients: bool | None = None,
    weight_requires_grad: bool | None = None,
    chunk_mem_const: int = 1,
    bias_requires_grad: bool | None = None,
) -> tuple:
    """(loss, z_loss | None, accuracy | None, predicted | None, grad_input | None, grad_weight | None, grad_bias | None).

    The gradients are those of the reduced loss, or of Σ token_grad_output·loss_i where that is given. compute_gradients,
    weight_requires_grad and bias_requires_grad override what _input, weight and bias say of themselves. From float16
    operands the gradients come as float32: they meet the upstream before they are rounded. ce_impl, ce_mode and
    chunk_mem_const as in the Function.
    """
    _accept(ce_impl, ce_mode, chunk_mem_const)
    check_flags(return_z_loss, return_token_accuracy, return_predicted_tokens)
    need_dx = _input.requires_grad if compute_gradients is None else compute_gradients
    need_dweight = weight.requires_grad if weight_requires_grad is None else weight_requires_grad
    need_dbias = bias is not None and (bias.requires_grad if bias_requires_grad is None else bias_requires_grad)
    tensors, options = _operator_arguments(
        _input, weight, target, ce_weight, bias,
        ignore_index, lse_square_scale, label_smoothing, reduction, softcap, accum_dtype, use_token_scaling,
    )  # fmt: skip
    upstream = token_grad_output.float().contiguous() if token_grad_output is not None else None
    wanted = (return_z_loss, return_token_accuracy, return_predicted_tokens, need_dx, need_dweight, need_dbias)
    loss, *others = linear_cross_entropy(*tensors, upstream, *options, *wanted)
    return (loss, *(other if want else None for other, want in zip(others, wanted)))


@of_tensors
def fused_linear_cross_entropy_backward(
    grad_output: Tensor, grad_input: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that forward formed, times the upstream scalar. Where a backward pass has found that nobody else
    can see them they are scaled in their own memory, else in new memory. It does not know the targets: an upstream that is
    infinite or NaN makes NaN of the zeros of ignored rows too, which the Function's own backward leaves zeros."""
    dx, dweight, dbias = scaled_gradients(grad_output, (grad_input, grad_weight, grad_bias), None, 0)
    return dx, dweight, dbias


class LigerFusedLinearCrossEntropyFunction(LigerFunction):
    """`apply(_input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0,
    label_smoothing=0.0, reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False,
    return_token_accuracy=False, return_predicted_tokens=False, ce_impl=None, ce_mode=None, chunk_mem_const=1)`
    -> (loss, z_loss | None, token_accuracy | None, predicted_tokens | None).

    _input [BT, H], weight [V, H], target [BT], bias [V] or None, ce_weight [V] class weights or None. The loss is float32.
    Gradients of weight and bias accumulate in f32 (or in `accum_dtype`) and are rounded once. With "mean" and "sum" they
    are formed in forward; with "none" backward makes the logits again and multiplies each row by its own upstream.
    Under autocast the products run in its dtype, for CPU tensors too. Rows that are ignored have a gradient of 0, but are
    part of the products: a NaN or Inf in such a row of _input reaches weight's gradient, as in an unfused head. What comes
    from above does not reach them: backward reads the labels again, so they must not be changed in place before it
    (RuntimeError, as in torch's own loss).
    ce_impl and ce_mode name an implementation of the inner loss and change nothing; chunk_mem_const, a positive integer
    (ValueError), is a hint that is not needed: the size of a chunk is chosen by its cost.
    """

    supports_inner_impl_dispatch = True  # asked by callers before they pass the last three arguments
    operator = linear_cross_entropy
    names = "fused_linear_cross_entropy linear_cross_entropy"
    gradients = ("_input", "weight", "bias")
    held = ("target", "ce_weight")

    @staticmethod
    def forward(ctx, *args):
        cls, needs = LigerFusedLinearCrossEntropyFunction, ctx.needs_input_grad
        cls.check_shapes(args)
        given = dict(zip(cls.parameters, cls.complete(args)))
        bias = given["bias"]
        ctx.needs = (needs[0], needs[1], bias is not None and needs[3])
        ctx.formed = given["reduction"] != "none"
        loss, z_loss, accuracy, predicted, *gradients = cls._forward(given, ctx.needs if ctx.formed else (False,) * 3)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(r for r in (z_loss, accuracy, predicted) if r is not None))
        ctx.dtypes = [None if t is None else t.dtype for t in (given["_input"], given["weight"], bias)]
        ctx.ignore_index = given["ignore_index"]
        if ctx.formed:
            gradients.append(kept_labels(given["target"]))
        else:
            operands, ctx.options = _operator_arguments(*(given[name] for name in _OPERATOR_ARGUMENTS))
            gradients = map(kept, operands)
        ctx.save_for_backward(*gradients)
        return loss, z_loss, accuracy, predicted

    @staticmethod
    def _forward(given: dict, needs: tuple) -> tuple:
        """The helper, with the decision whose gradients are formed."""
        of_x, of_weight, of_bias = needs
        return fused_linear_cross_entropy_forward(
            **given, compute_gradients=of_x, weight_requires_grad=of_weight, bias_requires_grad=of_bias
        )

    @staticmethod
    def backward(ctx, dloss, *_others):
        refuse_second_derivative("LigerFusedLinearCrossEntropyFunction")
        count = len(ctx.needs_input_grad)
        if dloss is None:
            return (None,) * count
        if ctx.formed:
            saved, free = take_saved(ctx)
            with free_of_others(saved, free):
                gradients = scaled_gradients(dloss, saved, saved[3], ctx.ignore_index)
        else:
            gradients = _recomputed(ctx, dloss, ctx.needs)
        wanted = zip(gradients, ctx.dtypes, ctx.needs)
        dx, dweight, dbias = (g.to(dtype) if g is not None and need else None for g, dtype, need in wanted)
        return (dx, dweight, None, dbias, *(None,) * 14)[:count]

    @classmethod
    def compiled(cls, *args):
        given = dict(zip(cls.parameters, args))
        now = torch.is_grad_enabled() and given.get("reduction", "mean") != "none"
        heads = (given["_input"], given["weight"], given.get("bias"))
        results = cls._forward(given, tuple(now and t is not None and t.requires_grad for t in heads))
        return (results[0], *(r if r is None else r.detach() for r in results[1:4]))

    @classmethod
    def check(cls, *args):
        given = dict(zip(cls.parameters, args))
        _accept(given.get("ce_impl"), given.get("ce_mode"), given.get("chunk_mem_const", 1))
        name, x, weight, bias = cls.operator.name, given["_input"], given["weight"], given.get("bias")
        require_float(name, _input=x, weight=weight, bias=bias)
        require_matrices(name, _input=x, weight=weight)
        require_shape(name, "weight", weight, (weight.shape[0], x.shape[1]))
        require_shape(name, "bias", bias, weight.shape[:1])
        check_losses(name, (x.shape[0], weight.shape[0]), given["target"], given.get("ce_weight"), given)

    @staticmethod
    def torch_forward(
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
        ce_impl=None,
        ce_mode=None,
        chunk_mem_const=1,
    ):
        dtype = compute_dtype(_input, weight)
        _input = counted_rows(target, ignore_index, _input)
        logits = torch.nn.functional.linear(*(None if t is None else t.to(dtype) for t in (_input, weight, bias)))
        options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
        loss, z, accuracy, predicted = plain_cross_entropy(logits, target, ce_weight, *options, use_token_scaling)
        return (
            loss,
            z.to(logits.dtype).detach() if return_z_loss else None,
            accuracy if return_token_accuracy else None,
            predicted if return_predicted_tokens else None,
        )


__all__ = [
    "LigerArgumentError",
    "LigerFusedLinearCrossEntropyFunction",
    "fused_linear_cross_entropy_backward",
    "fused_linear_cross_entropy_forward",
]
