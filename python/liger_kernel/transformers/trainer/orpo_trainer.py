"""TRL's ORPO trainer without logits."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from liger_kernel.chunked_loss import LigerFusedLinearORPOLoss
from liger_kernel.transformers.fsdp import _FSDPForwardRedirection, instead_of_forward
from liger_kernel.transformers.model.causal_lm import router_loss
from liger_kernel.transformers.model.lm_head import computed_in_head, obstacle

try:
    from trl.trainer import ORPOTrainer  # type: ignore[attr-defined]
except ImportError:  # TRL 1 has moved it
    from trl.experimental.orpo import ORPOTrainer


class LigerORPOTrainer(ORPOTrainer):
    """ORPOTrainer whose forward runs the model without its head, and LigerFusedLinearORPOLoss on the head's weight."""

    def concatenated_forward(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, tuple]:
        """(the loss, with that of the router where it is enabled, what `LigerFusedLinearORPOLoss` answers beside it)."""
        inputs = self.concatenated_inputs(
            batch,
            is_encoder_decoder=self.is_encoder_decoder,
            padding_value=self.padding_value,
            device=self.accelerator.device,
        )
        if isinstance(model, FullyShardedDataParallel):
            return _FSDPForwardRedirection()(model, functools.partial(self._loss, model.module), inputs)
        inner = self.accelerator.unwrap_model(model)
        return instead_of_forward(model, inner, functools.partial(self._loss, inner), inputs)

    def _loss(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple]:
        """Runs in the place of the model's forward: sharded parameters are there, and what comes out is synchronised."""
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
        head = model.get_output_embeddings()
        reason = obstacle(head)
        if reason is None and model.base_model is model:
            reason = f"{type(model).__name__} has no base model of its own"
        if reason is not None:
            raise ValueError(
                f"LigerORPOTrainer: the loss cannot be fused with the model's head: {reason}. Use ORPOTrainer"
            )
        labels, mask = inputs["concatenated_labels"], inputs["concatenated_attention_mask"]
        ignored = getattr(self, "label_pad_token_id", -100)
        options: dict[str, Any] = {"output_router_logits": True} if self.aux_loss_enabled else {}
        if self.is_encoder_decoder:
            options["decoder_input_ids"] = self._shift_right(labels)
        with self.accelerator.autocast():
            outputs = model.base_model(
                inputs["concatenated_input_ids"], attention_mask=mask, use_cache=False, return_dict=True, **options
            )
            hidden, texts = outputs.last_hidden_state, labels
            if not self.is_encoder_decoder:
                texts = torch.where(mask == 1, inputs["concatenated_input_ids"], ignored)
                hidden, labels, texts = hidden[:, :-1], labels[:, 1:], texts[:, 1:]
            others: list[Any] = []

            def orpo(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
                found = LigerFusedLinearORPOLoss(ignored, self.beta)(weight, hidden, labels, bias, texts)
                others.extend(found[1])
                return found[0]

            loss = computed_in_head(head, hidden, orpo)
            if self.aux_loss_enabled:
                loss = loss + self.aux_loss_coef * router_loss(model, outputs, mask)
        return loss, tuple(others)

    def get_batch_loss_metrics(self, model: nn.Module, batch: dict[str, Any], train_eval: str = "train"):
        """(loss, TRL's metrics by their names)."""
        loss, others = self.concatenated_forward(model, batch)
        chosen, rejected, chosen_logits, rejected_logits, nll, chosen_rewards, rejected_rewards, ratio, odds = others
        values = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "rewards/margins": chosen_rewards - rejected_rewards,
            "logps/rejected": rejected,
            "logps/chosen": chosen,
            "logits/rejected": rejected_logits,
            "logits/chosen": chosen_logits,
            "nll_loss": nll,
            "log_odds_ratio": ratio,
            "log_odds_chosen": odds,
        }
        prefix = "eval_" if train_eval == "eval" else ""
        gather = self.accelerator.gather_for_metrics
        return loss, {f"{prefix}{name}": gather(value).mean().item() for name, value in values.items()}


__all__ = ["LigerORPOTrainer", "_FSDPForwardRedirection"]
