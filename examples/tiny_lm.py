"""The model of dpo.py, grpo.py and distill.py: a causal transformer on bytes, small enough for any machine."""

from __future__ import annotations

import torch
from torch import nn

VOCAB, END = 256, 0  # bytes; the zero byte ends a text


class TinyLM(nn.Module):
    """forward(tokens [B, T]) -> hidden states [B, T, width]. What follows is `head`, which the losses multiply by themselves."""

    def __init__(self, width: int = 64, layers: int = 2, longest: int = 128):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCAB, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.embed(tokens) + self.place(torch.arange(length, device=tokens.device))
        for layer in self.layers:
            x = layer(x, src_mask=future)
        return self.norm(x)


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def megabytes_of_logits(sequences: int, length: int) -> float:
    """Of one float32 tensor [sequences, length, VOCAB], which the losses of this package never make."""
    return sequences * length * VOCAB * 4 / 2**20
