"""The base of losses on pairs of sequences, one chosen and one rejected, under a linear head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel.chunked_loss._head_loss import require_beside, require_head, require_labels
from liger_kernel.chunked_loss._token_loss import (
    TokenLossFunction,
    flat_head,
    known_log_probs,
    logit_sums,
    reference_log_probs,
    sequence_log_probs,
)
from liger_kernel.ops._formula import at_least_one, unrecorded
from liger_kernel.ops._operator import LigerArgumentError


class LigerFusedLinearPreferenceBase(TokenLossFunction):
    """loss = alpha·nll + preference loss, on the log-probabilities that a head gives to pairs of sequences.

    A subclass brings the formula and a public form:

        class MyFunction(LigerFusedLinearPreferenceBase):
            @staticmethod
            def preference_loss_fn(chosen_logps, rejected_logps, full_target, beta=0.1):
                return -F.logsigmoid(beta * (chosen_logps - rejected_logps)).sum() / (full_target.shape[0] // 2)

            @classmethod
            def forward(cls, ctx, _input, weight, target, bias=None, beta=0.1):
                return super().forward(cls=cls, ctx=ctx, _input=_input, weight=weight, target=target, bias=bias, beta=beta)

            @staticmethod
            def backward(ctx, *grad_output):
                return *LigerFusedLinearPreferenceBase.backward(ctx, grad_output)[:4], None

    Its public form begins with `_input, weight, target, bias`. The formula is torch on a few numbers a pair, differentiated
    by autograd: a few dozen small kernels. Neither logits nor anything else of the vocabulary's size pass through it.
    """

    bias_position = 3

    @staticmethod
    def preference_loss_fn(
        chosen_logps: Tensor, rejected_logps: Tensor, full_target: Tensor, beta: float = 0.1, **loss_kwargs: Any
    ) -> Any:
        """The loss of n pairs with log-probabilities chosen_logps, rejected_logps [n], divided by full_target.shape[0]//2 = n;
        or (loss, *others to answer). With a reference model it is given `ref_chosen_logps`, `ref_rejected_logps` [n] too."""
        raise NotImplementedError("a subclass of LigerFusedLinearPreferenceBase needs a preference_loss_fn")

    @staticmethod
    def forward(
        cls: Any,
        ctx: Any,
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        chunk_size: int = 1,
        ignore_index: int = -100,
        alpha: float = 1.0,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        nll_target: Tensor | None = None,
        compiled: bool = True,
        use_ref_model: bool = False,
        ref_input: Any = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        average_log_prob: bool = True,
        **loss_kwargs: Any,
    ) -> tuple[Tensor, tuple]:
        """(loss, (chosen log-probabilities [n], rejected ones [n], mean chosen logit, mean rejected logit, nll, *others)).

        _input [2n, T, H], target [2n, T]: n chosen sequences, then n rejected ones; weight [V, H], bias [V]. The
        log-probability of a sequence is the sum over its tokens that are not ignore_index, or their mean. nll is the mean of
        -log p over the tokens of the chosen sequences, labelled by nll_target[:n] where it is given. ref_input [2n, T, H'] is
        from the reference model, whose head is ref_weight, ref_bias; or the pair of its log-probabilities, [n] each.
        chunk_size and compiled change nothing.
        """
        name = cls.__name__
        require_head(name, target, _input, weight, bias)
        _require_pairs(name, target)
        pairs, length = target.shape[0] // 2, target.shape[1]
        if use_ref_model:
            if isinstance(ref_input, tuple):
                chosen, rejected = ref_input
                given = dict(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
                references = known_log_probs(name, pairs, target, **given)
            else:
                model = ref_input, ref_weight, ref_bias
                both = reference_log_probs(name, target, *model, ignore_index, average_log_prob)
                references = list(both.view(2, pairs).unbind())
            loss_kwargs.update(ref_chosen_logps=references[0], ref_rejected_logps=references[1])

        labels, second = target, None
        if compute_nll_loss and nll_target is not None:
            labels, second = _labels_for_both(name, target, nll_target, ignore_index)
        means = logit_sums(_input, weight, bias).view(2, pairs).sum(1) / at_least_one(pairs * length * weight.shape[0])

        def loss_of(log_probs: Tensor) -> tuple:
            tokens = log_probs[: target.numel()].view(target.shape)
            answers = tokens if second is None else tokens.where(target != ignore_index, 0)
            both = sequence_log_probs(answers, target, ignore_index, average_log_prob).view(2, pairs)
            chosen, rejected = both.unbind()
            nll = torch.zeros((), dtype=torch.float32, device=target.device)
            if compute_nll_loss:
                texts, text_labels = tokens[:pairs], target[:pairs]
                if second is not None and nll_target is not None:
                    texts = texts.where(second == ignore_index, log_probs[target.numel() :].view(second.shape))
                    text_labels = nll_target[:pairs]
                counts = text_labels != ignore_index
                nll = -texts.where(counts, 0).sum() / counts.sum().clamp(min=1)
            found = cls.preference_loss_fn(chosen, rejected, target, beta=beta, **loss_kwargs)
            preference, *others = found if isinstance(found, tuple) else (found,)
            return alpha * nll + preference, (chosen, rejected, *means.unbind(), nll, *others)

        head = flat_head(_input, weight, labels, bias, ignore_index, None if second is None else second.flatten())
        return cls.evaluate(ctx, head, _input.shape, loss_of)

    @staticmethod
    def backward(ctx: Any, *grad_output: Any) -> tuple:
        """Gradients of _input, weight, target (None) and bias, and None for what else apply was given."""
        dx, dweight, dbias = LigerFusedLinearPreferenceBase.scaled_gradients(ctx, grad_output)
        return dx, dweight, None, dbias, *(None,) * (len(ctx.needs_input_grad) - 4)


@unrecorded
def _require_pairs(function: str, target: Tensor) -> None:
    if target.shape[0] % 2:
        raise LigerArgumentError(
            f"{function}: target has {target.shape[0]} rows, but must have chosen and rejected ones"
        )


@unrecorded
def _require_texts(function: str, nll_target: Any, target: Tensor) -> None:
    pairs, shape = target.shape[0] // 2, getattr(nll_target, "shape", ())
    require_beside(function, "nll_target", nll_target, (*shape[:1], target.shape[1]), target)
    require_labels(function, "nll_target", nll_target)
    if len(nll_target) < pairs:
        raise LigerArgumentError(
            f"{function}: nll_target has {len(nll_target)} rows, but target has {pairs} chosen ones"
        )


def _labels_for_both(function: str, target: Tensor, nll_target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """One label a row, and a second one of the chosen rows that need both: where the preference loss does not count a token, its
    first label is that of nll. Usually both agree on the others, and no row is left with a second label."""
    pairs = target.shape[0] // 2
    _require_texts(function, nll_target, target)
    chosen, texts = target[:pairs], nll_target[:pairs]
    counts = chosen != ignore_index
    second = texts.where(counts & (texts != chosen), ignore_index)
    return torch.cat((chosen.where(counts, texts), target[pairs:])), second
