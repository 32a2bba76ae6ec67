"""The base of losses on single sequences that are labelled desirable or undesirable, under a linear head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liger_kernel.chunked_loss._head_loss import require_beside, require_head
from liger_kernel.chunked_loss._token_loss import (
    TokenLossFunction,
    flat_head,
    known_log_probs,
    logit_sums,
    reference_log_probs,
    sequence_log_probs,
)


class LigerFusedLinearUnpairedPreferenceBase(TokenLossFunction):
    """A loss on the log-probabilities that a head gives to sequences, each labelled desirable or not.

    A subclass brings `preference_loss_fn` and a public form that begins with `_input, weight, target, preference_labels,
    bias`: see `LigerFusedLinearPreferenceBase`, and hand on the first five of what backward answers.
    """

    bias_position = 4

    @staticmethod
    def preference_loss_fn(
        log_prob_chunk: Tensor, preference_labels_chunk: Tensor, full_target: Tensor, **loss_kwargs: Any
    ) -> Any:
        """The loss of b sequences with log-probabilities [b] and labels [b], divided by full_target.shape[0] = b; or (loss,
        *others to answer). With a reference model it is given `ref_log_prob_chunk` [b] too."""
        raise NotImplementedError("a subclass of LigerFusedLinearUnpairedPreferenceBase needs a preference_loss_fn")

    @staticmethod
    def forward(
        cls: Any,
        ctx: Any,
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        preference_labels: Tensor,
        bias: Tensor | None = None,
        chunk_size: int = 1,
        ignore_index: int = -100,
        compiled: bool = True,
        use_ref_model: bool = False,
        ref_input: Any = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        average_log_prob: bool = False,
        **loss_kwargs: Any,
    ) -> tuple[Tensor, tuple]:
        """(loss, (sum of the desirable log-probabilities, of the undesirable ones, sum of the desirable logits, of the
        undesirable ones, *others)).

        _input [b, T, H], target [b, T], preference_labels [b], true for desirable; the rest as in
        `LigerFusedLinearPreferenceBase`. ref_input may be (the log-probabilities [b] of the reference,).
        """
        name = cls.__name__
        assert preference_labels is not None, f"{name}: preference_labels is None, but every sequence needs a label"
        require_head(name, target, _input, weight, bias)
        require_beside(name, "preference_labels", preference_labels, target.shape[:1], target)
        if use_ref_model:
            if isinstance(ref_input, tuple):
                (known,) = known_log_probs(name, target.shape[0], target, ref_logps=ref_input[0])
            else:
                model = ref_input, ref_weight, ref_bias
                known = reference_log_probs(name, target, *model, ignore_index, average_log_prob)
            loss_kwargs.update(ref_log_prob_chunk=known)
        desirable = preference_labels != 0
        logits = logit_sums(_input, weight, bias)

        def loss_of(log_probs: Tensor) -> tuple:
            answers = sequence_log_probs(log_probs.view(target.shape), target, ignore_index, average_log_prob)
            found = cls.preference_loss_fn(answers, desirable, target, **loss_kwargs)
            loss, *others = found if isinstance(found, tuple) else (found,)
            return loss, (*sums_by_label(answers, desirable), *sums_by_label(logits, desirable), *others)

        return cls.evaluate(ctx, flat_head(_input, weight, target, bias, ignore_index), _input.shape, loss_of)

    @staticmethod
    def backward(ctx: Any, *grad_output: Any) -> tuple:
        """Gradients of _input, weight, target and preference_labels (None), and bias, and None for what else apply was
        given."""
        dx, dweight, dbias = LigerFusedLinearUnpairedPreferenceBase.scaled_gradients(ctx, grad_output)
        return dx, dweight, None, None, dbias, *(None,) * (len(ctx.needs_input_grad) - 5)


def sums_by_label(values: Tensor, desirable: Tensor) -> tuple[Tensor, Tensor]:
    """Of the desirable ones, and of the others. Selected, not multiplied, so that each sum sees its own values alone."""
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    return values.where(desirable, zero).sum(), values.where(~desirable, zero).sum()
