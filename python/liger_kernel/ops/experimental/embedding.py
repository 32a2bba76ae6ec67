"""Embedding: rows of a table by their numbers. The table's gradient is written once, in a fixed order of its sums."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._debug import is_debugging
from liger_kernel.ops._formula import readable
from liger_kernel.ops._function import LigerFunction
from liger_kernel.ops._operator import LigerArgumentError, Made, Rows, Shaped, Wish


class _Embedding(Shaped):
    def shape(self, weight: Tensor, indices: Tensor, *_: Any) -> tuple:
        return (*indices.shape, weight.shape[1])


@_Embedding
def embedding(weight: Rows, indices: Tensor, vocab: int, padding: int, y: Made = Wish.LIKE) -> Any:
    if indices.dim() == 1:  # as the library takes them; a view costs as much as a small call
        _native.embedding_forward(weight, indices, y, padding)
    else:
        _native.embedding_forward(weight, indices.reshape(-1), y.view(indices.numel(), weight.shape[1]), padding)
    return y


class _EmbeddingGradient(Shaped):
    """Backward needs the number of the table's rows, and not the table."""

    def shape(self, dy: Tensor, indices: Tensor, vocab: int, *_: Any) -> tuple:
        return vocab, dy.shape[-1]


@functools.partial(embedding.gradient, kind=_EmbeddingGradient)
def embedding_gradient(dy: Rows, indices: Tensor, vocab: int, padding: int,
                       dweight: Made = Wish.LIKE, scratch: Any = Wish.SCRATCH) -> Any:  # fmt: skip
    if indices.dim() != 1:
        indices = indices.reshape(-1)
        dy = dy.reshape(indices.shape[0], dy.shape[-1])
    _native.embedding_backward(dy, indices, dweight, padding, scratch)
    return dweight


def _check_table(embeddings: Tensor) -> None:
    if embeddings.dim() != 2:
        raise LigerArgumentError(f"embedding: embeddings has {embeddings.dim()} dimensions, but must have 2")


def _check_indices(indices: Tensor, vocab: int) -> None:
    wrong = (indices < 0) | (indices >= vocab)
    if bool(wrong.any()):
        value = int(indices[wrong][0])
        raise LigerArgumentError(f"embedding: indices has {value}, which is out of bounds: it must be in [0, {vocab})")


def padding_row(padding_idx: int | None, vocab: int) -> int:
    """The row's number, also where it is counted from the end; -1: there is none."""
    if padding_idx is None:
        return -1
    if not -vocab <= padding_idx < vocab:
        raise LigerArgumentError(f"embedding: padding_idx is {padding_idx}, but there are {vocab} embeddings")
    return padding_idx % vocab


class LigerEmbeddingFunction(LigerFunction):
    """`apply(embeddings, indices, padding_idx=None)` -> embeddings[indices], of shape [*indices.shape, D].

    embeddings [V, D] float32, float16 or bfloat16; indices int32 or int64 of any shape. Where an index is padding_idx, which
    may be negative and counts from the end then, the result is 0 and there is no gradient. An index outside [0, V) is a
    ValueError on the CPU; on CUDA its result is NaN and its upstream reaches no row (with LIGER_DEBUG=1 a ValueError too).
    The gradient's sums are f32, in the order of the indices, and rounded once.
    """

    operator = embedding
    gradients = ("embeddings",)
    held = ("indices",)

    @staticmethod
    def arguments(embeddings, indices, padding_idx=None):
        _check_table(embeddings)
        vocab = embeddings.shape[0]
        if is_debugging(indices):
            _check_indices(indices, vocab)
        return embeddings, indices, vocab, padding_row(padding_idx, vocab)

    @staticmethod
    def require(embeddings, indices, padding_idx=None):
        _check_table(embeddings)
        if indices.dtype not in (torch.int32, torch.int64):
            raise LigerArgumentError(f"embedding: indices is {indices.dtype}, but must be int32 or int64")

    @classmethod
    def check(cls, embeddings, indices, padding_idx=None):
        super().check(embeddings, indices, padding_idx)
        values = readable(indices)
        if values is not None:
            _check_indices(values, embeddings.shape[0])

    @staticmethod
    def torch_forward(embeddings, indices, padding_idx=None):
        vocab = embeddings.shape[0]
        padding, known = padding_row(padding_idx, vocab), (indices >= 0) & (indices < vocab)
        safe = torch.where(known, indices, 0) if embeddings.is_cuda else indices  # where torch would end the context
        y = torch.nn.functional.embedding(safe, embeddings)
        y = torch.where(known[..., None], y, torch.nan) if embeddings.is_cuda else y
        return y if padding < 0 else torch.where((indices == padding)[..., None], 0.0, y)
