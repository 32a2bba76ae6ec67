"""A table of embeddings as a module."""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerEmbeddingFunction
from liger_kernel.ops.experimental.embedding import padding_row


class LigerEmbedding(nn.Module):
    """`weight` [num_embeddings, embedding_dim], N(0, 1), looked up by `indices` of any shape, int32 or int64.

    The row `padding_idx` (negative: from the end) starts as zeros; its indices give zeros and it gets no gradient.
    """

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None):
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = None if padding_idx is None else padding_row(padding_idx, num_embeddings)
        self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim))
        if padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, indices):
        return LigerEmbeddingFunction.apply(self.weight, indices, self.padding_idx)

    def extra_repr(self):
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
