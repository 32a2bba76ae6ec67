"""GRPO and its relatives on a linear head: a policy's loss from hidden states, the head's weight and the sampled tokens."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase
from liger_kernel.ops._policy_loss import (
    PolicyLoss,
    clip_coef_fn,
    get_gamma_weights,
    k3_loss_fn,
    masked_mean,
    reduced,
    require_level,
    sapo_loss_fn,
)


class LigerFusedLinearGRPOFunction(LigerFusedLinearPPOBase):
    """`apply(_input [B, T, H], weight [V, H], selected_token_ids [B, T], attention_mask [B, T], advantages [B], bias=None,
    ref_per_token_logps=None, old_per_token_logps=None, ref_input=None, ref_weight=None, ref_bias=None, beta=0.04,
    epsilon_low=0.2, epsilon_high=0.2, loss_type="dapo", max_completion_length=None, importance_sampling_level="token",
    sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, temperature=1.0, compiled=True, use_ref_model=True, chunk_size=1,
    vllm_is_ratio=None, delta=None, use_bias_correction_kl=False, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
    vespo_lambda_neg=2.0, num_items_in_batch=None, valid_rows=None)` -> (loss float32, metrics).

    p [B, T] = log softmax((_input·weightᵀ + bias)/temperature) at the selected tokens; o old_per_token_logps, or p held constant;
    q the reference's log-probabilities: given, or of ref_input and its head, or p held constant without a reference; m the
    mask, of any dtype; A the advantages; w = exp(p - o), or at the level "sequence" exp of the mean of p - o of each sequence.
    The terms of a token, with C = min(min(w, delta)·A, clip(w, 1 - epsilon_low, 1 + epsilon_high)·A):

        grpo, bnpo, dr_grpo, dapo, luspo   -C
        cispo                              -min(w, epsilon_high)·A·p, the weight held constant
        sapo                               -A·4/τ·σ(τ·(w - 1)), τ by the sign of A
        vespo                              -φ·A·p, φ = w^k·exp(λ·(1 - w)) of the whole sequence, held constant

    times vllm_is_ratio, [B], [B, 1] or [B, T] (within φ for vespo), plus beta·k with k = exp(q - p) - (q - p) - 1, which
    use_bias_correction_kl multiplies by w. Their reduction, Σ over the tokens where m is not 0:

        grpo, sapo            the mean over sequences of the mean over tokens
        bnpo                  Σ / tokens
        dr_grpo               Σ / (B·max_completion_length)
        dapo, cispo, vespo    Σ / max(1, num_items_in_batch, or else the tokens of all processes, / processes)
        luspo                 the mean of (term·length of its sequence) over all positions, masked ones too

    metrics: the mean of k over the tokens where beta is not 0, then the part of the tokens whose weight is clipped. Gradients
    reach _input, weight and bias through the loss alone. valid_rows, an integer on the host, bounds the tokens where the mask
    is not 0: so many rows are multiplied on a GPU. Too small a bound makes the loss NaN there, and is an error on the CPU.
    """

    @staticmethod
    def reads_masked(**options: Any) -> bool:
        return _loss(options).reads_masked(options["vllm_is_ratio"])

    @staticmethod
    def ppo_loss_fn(
        per_token_logps: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        full_attention_mask: Tensor,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        options = {**_DEFAULTS, **options}
        terms, kl, is_clipped = _loss(options).terms(
            per_token_logps,
            attention_mask,
            advantages,
            old_per_token_logps,
            ref_per_token_logps,
            options["vllm_is_ratio"],
        )
        loss = reduced(
            terms,
            full_attention_mask,
            options["loss_type"],
            options["max_completion_length"],
            options["num_items_in_batch"],
        )
        metrics = tuple(
            masked_mean(values.detach().float(), attention_mask) for values in (kl, is_clipped) if values is not None
        )
        return loss, metrics

    @classmethod
    def forward(
        cls,
        ctx,
        _input,
        weight,
        selected_token_ids,
        attention_mask,
        advantages,
        bias=None,
        ref_per_token_logps=None,
        old_per_token_logps=None,
        ref_input=None,
        ref_weight=None,
        ref_bias=None,
        beta=0.04,
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type="dapo",
        max_completion_length=None,
        importance_sampling_level="token",
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        temperature=1.0,
        compiled=True,
        use_ref_model=True,
        chunk_size=1,
        vllm_is_ratio=None,
        delta=None,
        use_bias_correction_kl=False,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        num_items_in_batch=None,
        valid_rows=None,
    ):
        require_level(importance_sampling_level, loss_type)
        assert loss_type != "dr_grpo" or max_completion_length is not None, "dr_grpo needs max_completion_length"
        if loss_type == "sapo":
            _require_temperatures(sapo_temperature_pos, sapo_temperature_neg)
        if use_ref_model:
            _require_reference(ref_per_token_logps, ref_input)
        return super().forward(
            cls=cls,
            ctx=ctx,
            _input=_input,
            weight=weight,
            selected_token_ids=selected_token_ids,
            attention_mask=attention_mask,
            advantages=advantages,
            bias=bias,
            ref_per_token_logps=ref_per_token_logps,
            old_per_token_logps=old_per_token_logps,
            ref_input=ref_input,
            ref_weight=ref_weight,
            ref_bias=ref_bias,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
            beta=beta,
            loss_type=loss_type,
            max_completion_length=max_completion_length,
            importance_sampling_level=importance_sampling_level,
            temperature=temperature,
            compiled=compiled,
            use_ref_model=use_ref_model and beta != 0,  # else nothing would read it
            chunk_size=chunk_size,
            sapo_temperature_pos=sapo_temperature_pos,
            sapo_temperature_neg=sapo_temperature_neg,
            vllm_is_ratio=vllm_is_ratio,
            delta=delta,
            use_bias_correction_kl=use_bias_correction_kl,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            num_items_in_batch=num_items_in_batch,
            valid_rows=valid_rows,
        )


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(LigerFusedLinearPPOBase.forward).parameters.items()
    if parameter.default is not parameter.empty
}


def _loss(options: dict[str, Any]) -> PolicyLoss:
    return PolicyLoss(
        loss_type=options["loss_type"],
        level=options["importance_sampling_level"],
        beta=options["beta"],
        epsilon_low=options["epsilon_low"],
        epsilon_high=options["epsilon_high"],
        delta=options["delta"],
        sapo_temperatures=(options["sapo_temperature_pos"], options["sapo_temperature_neg"]),
        corrects_kl=options["use_bias_correction_kl"],
        vespo_numbers=(
            options["vespo_k_pos"],
            options["vespo_lambda_pos"],
            options["vespo_k_neg"],
            options["vespo_lambda_neg"],
        ),
    )


def _require_temperatures(positive: float, negative: float) -> None:
    for name, value in (("sapo_temperature_pos", positive), ("sapo_temperature_neg", negative)):
        if value <= 0:
            raise ValueError(f"{name} must be larger than 0, but is {value}")


def _require_reference(ref_per_token_logps: Tensor | None, ref_input: Tensor | None) -> None:
    assert ref_per_token_logps is not None or ref_input is not None, (
        "use_ref_model needs ref_per_token_logps, or ref_input and ref_weight"
    )
    both = ref_per_token_logps is not None and ref_input is not None
    if both and not torch.compiler.is_compiling():  # a warning would break the graph
        warnings.warn("ref_per_token_logps and ref_input are both given: ref_input is not used", stacklevel=2)


class LigerFusedLinearGRPOLoss(nn.Module):
    """`LigerFusedLinearGRPOFunction` with its numbers at construction; a delta or a temperature of SAPO that is not larger than
    0 is a ValueError there."""

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ):
        super().__init__()
        _require_temperatures(sapo_temperature_pos, sapo_temperature_neg)
        if delta is not None and delta <= 0:
            raise ValueError(f"delta must be larger than 0, but is {delta}")
        self.beta = beta
        self.compiled = compiled
        self.use_ref_model = use_ref_model
        self.chunk_size = chunk_size
        self.epsilon_low = epsilon_low
        self.epsilon_high = epsilon_high
        self.loss_type = loss_type
        self.max_completion_length = max_completion_length
        self.importance_sampling_level = importance_sampling_level
        self.sapo_temperature_pos = sapo_temperature_pos
        self.sapo_temperature_neg = sapo_temperature_neg
        self.temperature = temperature
        self.delta = delta
        self.use_bias_correction_kl = use_bias_correction_kl
        self.vespo_k_pos = vespo_k_pos
        self.vespo_lambda_pos = vespo_lambda_pos
        self.vespo_k_neg = vespo_k_neg
        self.vespo_lambda_neg = vespo_lambda_neg

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        valid_rows: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return LigerFusedLinearGRPOFunction.apply(
            _input,
            lin_weight,
            selected_token_ids,
            attention_mask,
            advantages,
            bias,
            ref_per_token_logps,
            old_per_token_logps,
            ref_input,
            ref_weight,
            ref_bias,
            self.beta,
            self.epsilon_low,
            self.epsilon_high,
            self.loss_type,
            self.max_completion_length,
            self.importance_sampling_level,
            self.sapo_temperature_pos,
            self.sapo_temperature_neg,
            self.temperature,
            self.compiled,
            self.use_ref_model,
            self.chunk_size,
            vllm_is_ratio,
            self.delta,
            self.use_bias_correction_kl,
            self.vespo_k_pos,
            self.vespo_lambda_pos,
            self.vespo_k_neg,
            self.vespo_lambda_neg,
            num_items_in_batch,
            valid_rows,
        )


__all__ = [
    "LigerFusedLinearGRPOFunction",
    "LigerFusedLinearGRPOLoss",
    "clip_coef_fn",
    "get_gamma_weights",
    "k3_loss_fn",
    "sapo_loss_fn",
]
