"""Model outputs with two more fields, `token_accuracy` and `predicted_tokens`.

Each class extends the one that the family's own forward returns. Where the installed transformers has no such class,
the name is still there, over the general output class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast


@dataclass
class LigerCausalLMOutputWithPast(CausalLMOutputWithPast):
    """CausalLMOutputWithPast, the mean accuracy over the targets (0-d, fp32) and the predicted tokens (int64)."""

    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None


@dataclass
class LigerMoeCausalLMOutputWithPast(MoeCausalLMOutputWithPast):
    """MoeCausalLMOutputWithPast with the same two fields."""

    token_accuracy: torch.Tensor | None = None
    predicted_tokens: torch.Tensor | None = None
