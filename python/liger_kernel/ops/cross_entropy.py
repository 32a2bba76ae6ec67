"""Softmax cross entropy with the gradient of the logits formed in forward: one read and one write of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import of_tensors, readable, require_shape, unrecorded
from liger_kernel.ops._function import LigerFunction, refuse_second_derivative
from liger_kernel.ops._memory import kept, kept_labels, require_float
from liger_kernel.ops._operator import Asked, LigerArgumentError, Made, Matrix, Operator, Single, Wish
from liger_kernel.ops.scale import formed_gradient, scale, scaled_gradient

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def reduction_number(reduction: str, known: dict[str, int] = REDUCTIONS) -> int:
    if not isinstance(reduction, str) or reduction not in known:
        raise LigerArgumentError(f"reduction is {reduction!r}, but must be one of {list(known)}")
    return known[reduction]


FLAGS = ("return_z_loss", "return_token_accuracy", "return_predicted_tokens")


def check_flags(*flags: Any) -> None:
    """Of FLAGS."""
    for name, value in zip(FLAGS, flags):
        if value is not False and value is not True:
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


def check_targets(target: Tensor, vocab: int, ignore_index: int) -> None:
    wrong = (target != ignore_index) & ((target < 0) | (target >= vocab))
    refuse_strays("target", target, wrong, vocab, f" or ignore_index ({ignore_index})")


@unrecorded
def refuse_strays(name: str, values: Tensor, wrong: Tensor, vocab: int, besides: str = "") -> None:
    """An error about the first of the labels that are wrong. Looking at them waits for a device."""
    if bool(wrong.any()):
        row = wrong.nonzero()[0].tolist()
        raise LigerArgumentError(
            f"{name}[{', '.join(map(str, row))}] is {int(values.expand(wrong.shape)[tuple(row)])}, which is out of bounds: it must be in "
            f"[0, {vocab}){besides}"
        )


# ---- the operator -----------------------------------------------------------------------------------------------------


# with reduction "none", in the place of a single value
ROWS = {Wish.SCALAR: Wish.PER_ROW, Wish.SCALAR_SAME: Wish.PER_ROW_SAME}


class _CrossEntropy(Operator):
    def eager(self, logits, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap,
              need_z_loss, need_accuracy, need_predicted, need_dlogits):  # fmt: skip
        one, same = (Wish.PER_ROW, Wish.PER_ROW_SAME) if reduction == 0 else (Wish.SCALAR, Wish.SCALAR_SAME)
        no = Wish.NOTHING
        return _native.cross_entropy_forward(
            logits, target, weight, None, same, same if need_z_loss else no, one if need_accuracy else no,
            Wish.PER_ROW_I64 if need_predicted else no, Wish.LIKE if need_dlogits else no,
            ignore_index, label_smoothing, lse_square_scale, softcap, reduction, Wish.SCRATCH,
        )  # fmt: skip

    def wish(self, result: Any, given: tuple) -> Wish:
        return ROWS.get(result.wish, result.wish) if given[6] == 0 else result.wish

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        """A gradient that was formed in forward is what is saved."""
        ctx.formed = inputs[-1]
        super().setup_context(ctx, inputs, output)
        if ctx.formed:
            ctx.ignore_index = inputs[3]
            ctx.save_for_backward(output[-1], kept_labels(inputs[1]))

    def backward(self, ctx: Any, *upstreams: Tensor | None) -> tuple:
        if not ctx.formed or upstreams[0] is None:
            return super().backward(ctx, *upstreams)
        return (_formed(ctx, upstreams[0]), *(None,) * (len(ctx.needs_input_grad) - 1))


@_CrossEntropy
def cross_entropy(logits: Matrix, target: Tensor, weight: Tensor | None, ignore_index: int, lse_square_scale: float,
                  label_smoothing: float, reduction: int, softcap: float, loss: Made = Wish.SCALAR_SAME,
                  z_loss: Asked = Wish.SCALAR_SAME, accuracy: Asked = Wish.SCALAR, predicted: Asked = Wish.PER_ROW_I64,
                  dlogits: Asked = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.cross_entropy_forward(
        logits, target, weight, None, loss, z_loss, accuracy, predicted, dlogits,
        ignore_index, label_smoothing, lse_square_scale, softcap, reduction, scratch,
    )  # fmt: skip


@cross_entropy.gradient
def cross_entropy_gradient(logits: Matrix, target: Tensor, weight: Tensor | None, dloss: Single, ignore_index: int,
                           lse_square_scale: float, label_smoothing: float, reduction: int, softcap: float,
                           dlogits: Made = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    return _native.cross_entropy_backward(
        logits, target, weight, dloss, dlogits,
        ignore_index, label_smoothing, lse_square_scale, softcap, reduction, scratch,
    )  # fmt: skip


# ---- helpers and the Function -----------------------------------------------------------------------------------------


def _vocabulary(_input: Tensor) -> int:
    if _input.dim() != 2:
        raise LigerArgumentError(f"cross_entropy: _input has {_input.dim()} dimensions, but must have 2")
    return _input.shape[1]


def _operator_arguments(
    _input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    lse_square_scale: float,
    label_smoothing: float,
    reduction: str,
    softcap: float | None,
    *flags: bool,
) -> tuple:
    """The public arguments, checked, as the operator takes them."""
    check_flags(*flags)
    if weight is not None:
        weight = class_weights(weight, _vocabulary(_input))
    if is_debugging(target):
        check_targets(target, _vocabulary(_input), ignore_index)
    numbers = (float(lse_square_scale), float(label_smoothing), reduction_number(reduction), float(softcap or 0.0))
    return (_input, target, weight, ignore_index, *numbers, *flags)


def _in_forward(logits: Tensor, reduction: int) -> bool:
    """Is the gradient formed there? Not where an upstream must meet it before it is rounded."""
    return reduction != 0 and logits.dtype is not torch.float16


@of_tensors
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
    flags = (return_z_loss, return_token_accuracy, return_predicted_tokens)
    options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
    given = _operator_arguments(_input, target, weight, *options, *flags)
    wanted = _input.requires_grad if form_gradient is None else form_gradient
    loss, z_loss, accuracy, predicted, dlogits = cross_entropy(*given, wanted)
    return (
        loss,
        z_loss if return_z_loss else None,
        accuracy if return_token_accuracy else None,
        predicted if return_predicted_tokens else None,
        dlogits if wanted else _input,
    )


@of_tensors
def cross_entropy_backward(_input: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient that cross_entropy_forward formed, times a scalar or one value per row. It does not know the targets: an
    upstream that is infinite or NaN makes NaN of the zeros of ignored rows too, which the Function's own backward leaves
    zeros."""
    if grad_output.dim() == 0:
        return scaled_gradient(_input, grad_output)
    return (_input.float() * grad_output.float().unsqueeze(1)).to(_input.dtype)


def _formed(ctx: Any, upstream: Tensor) -> Tensor:
    """The gradient that is saved, scaled: in its own memory if nobody else can see it. What comes from above does not reach
    rows that are ignored."""
    if upstream.dim() == 0:
        return formed_gradient(ctx, upstream)
    gradient, labels = ctx.saved_tensors
    return cross_entropy_backward(gradient, upstream.masked_fill(labels == ctx.ignore_index, 0))


class LigerCrossEntropyFunction(LigerFunction):
    """`apply(_input, target, weight, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean",
    softcap=None, return_z_loss=False, return_token_accuracy=False, return_predicted_tokens=False)`
    -> (loss, z_loss | None, token_accuracy | None, predicted_tokens | None).

    _input [BT, V], target [BT] int32 or int64, weight [V] class weights or None. Row losses and sums are f32, the result
    has _input's dtype. The logits are never changed. With "mean" or "sum" the gradient is formed in forward; with "none",
    and in float16, where the upstream must meet it before it is rounded, it is formed in backward. What comes from above
    does not reach rows that are ignored: backward reads the labels again, so they must not be changed in place before it
    (RuntimeError, as in torch's own loss).
    """

    operator = cross_entropy
    gradients = ("_input",)
    held = ("target", "weight")

    @staticmethod
    def forward(ctx, *args):
        given = _operator_arguments(*LigerCrossEntropyFunction.complete(args))
        needed = ctx.needs_input_grad[0]
        now = needed and _in_forward(given[0], given[6])
        loss, z_loss, accuracy, predicted, dlogits = LigerCrossEntropyFunction.now(args, (*given, now))
        results = (loss, z_loss if given[8] else None, accuracy if given[9] else None, predicted if given[10] else None)
        if needed:
            ctx.materialize_grads = False
            if given[8] or given[9] or given[10]:
                ctx.mark_non_differentiable(*(r for r in results[1:] if r is not None))
            ctx.options = None if now else given[3:8]
            ctx.ignore_index = given[3]
            ctx.to_save = (dlogits, kept_labels(given[1])) if now else tuple(map(kept, given[:3]))
        return results

    @staticmethod
    def backward(ctx, dloss, *_others):
        refuse_second_derivative("LigerCrossEntropyFunction")
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if dloss is None:
            return (None, *nothing)
        if ctx.options is None:
            return (_formed(ctx, dloss), *nothing)
        return (*cross_entropy.gradients(ctx.saved_tensors, ctx.options, (dloss,), [True]), *nothing)

    @classmethod
    def compiled(cls, *args):
        args = cls.complete(args)
        now = torch.is_grad_enabled() and args[0].requires_grad and _in_forward(args[0], reduction_number(args[6]))
        loss, *others, _ = cross_entropy_forward(*args, form_gradient=now)
        return (loss, *(r if r is None else r.detach() for r in others))

    @classmethod
    def check(cls, *args):
        given, name = dict(zip(cls.parameters, args)), cls.operator.name
        logits = given["_input"]
        _vocabulary(logits)
        require_float(name, _input=logits)
        check_losses(name, logits.shape, given["target"], given["weight"], given)

    @staticmethod
    def torch_forward(
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
        options = (ignore_index, lse_square_scale, label_smoothing, reduction, softcap)
        loss, z, accuracy, predicted = plain_cross_entropy(_input, target, weight, *options)
        return (
            loss.to(_input.dtype),
            z.to(_input.dtype).detach() if return_z_loss else None,
            accuracy if return_token_accuracy else None,
            predicted if return_predicted_tokens else None,
        )


def check_losses(operator: str, shape: tuple, target: Tensor, class_weight: Tensor | None, given: dict) -> None:
    """What is refused of the public arguments that both losses have, for their formulas."""
    check_flags(*(given.get(name, False) for name in FLAGS))
    reduction_number(given.get("reduction", "mean"))
    require_shape(operator, "target", target, shape[:1])
    labels = readable(target)
    if labels is not None:
        check_targets(labels, shape[1], given.get("ignore_index", -100))
    class_weights(class_weight, shape[1])


def plain_cross_entropy(logits, target, weight, ignore_index, lse_square_scale, label_smoothing, reduction, softcap,
                        scale_tokens=False):  # fmt: skip
    """(loss, z loss, accuracy, predicted) from differentiable torch operations, in f32."""
    x = logits.float()
    x = softcap * torch.tanh(x / softcap) if softcap else x
    valid = target != ignore_index
    x = torch.where(valid[:, None], x, 0.0)  # ignored rows may hold anything
    count = valid.sum()
    vocab = x.shape[1]
    known = valid & (target >= 0) & (target < vocab)
    safe = torch.where(known, target, 0).long()
    offset = x.detach().amax(-1, keepdim=True)  # of a row in common: only the z-loss is to see it
    offset = torch.where(offset.isfinite(), offset, 0.0)
    x = x - offset
    log_sum = torch.logsumexp(x, -1)
    w = torch.ones(vocab, dtype=x.dtype, device=x.device) if weight is None else weight.float()
    loss = w[safe] * (log_sum - x.gather(1, safe[:, None]).squeeze(1))
    if label_smoothing:  # a logit of -inf is part of the smoothing sum, but 0 times it is not
        smooth = label_smoothing / vocab * (w * (log_sum[:, None] - x)).sum(-1)
        loss = (1 - label_smoothing) * loss + smooth
    z = torch.zeros_like(log_sum)
    if lse_square_scale:
        z = lse_square_scale * (log_sum + offset.squeeze(-1)) ** 2
    if reduction == "mean":
        divisor = count if weight is None else (w[safe] * known).sum()
        loss = loss / torch.where(count == 0, 1.0, divisor.float())  # weights that sum to 0 are a mean of nothing: NaN
        z = z / count.clamp(min=1)
    # of a label that is none the row is NaN, and its gradient
    factor = torch.ones_like(log_sum).masked_fill(valid & ~known, torch.nan)
    if scale_tokens:
        factor = factor * torch.softmax(x, -1).gather(1, safe[:, None]).squeeze(1).detach()
    loss, z = torch.where(valid, (loss + z) * factor, 0.0), torch.where(valid, z * factor, 0.0)
    predicted = torch.where(valid, x.argmax(-1), -1)
    accuracy = ((predicted == target) & valid).float()
    if reduction != "none":
        no_rows = torch.ones_like(accuracy).sum() == 0
        loss, z, accuracy = loss.sum(), z.sum(), accuracy.sum() / torch.where(no_rows, 1, count)
    return loss, z, accuracy, predicted


__all__ = ["LigerCrossEntropyFunction", "cross_entropy_backward", "cross_entropy_forward", "scale"]
