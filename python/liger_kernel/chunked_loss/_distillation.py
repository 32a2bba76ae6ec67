"""The loop over chunks of tokens of distillation losses: logits of two models, two losses, and the gradient of the student's
logits, consumed at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import Wish
from liger_kernel.chunked_loss._head_loss import formula_of_its_own
from liger_kernel.ops import LigerCrossEntropyFunction
from liger_kernel.ops._distillation import counted_rows, gradient_where
from liger_kernel.ops._linear_head import NAMED_BUDGET, compute_dtype, padded_logits
from liger_kernel.ops._memory import fresh, matrix
from liger_kernel.ops.scale import cast

_SUM = 2  # liger_reduction

# Bytes of a chunk's logits in float32, at most: a GPU makes ten times as much of them meanwhile. On the CPU both losses take a
# chunk in pieces, not too small: each operation on a piece waits for all threads.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
PIECE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
if NAMED_BUDGET:  # half of it for the logits of two models, the other for what is made of a piece's
    CHUNK_BYTES = {device: min(usual, NAMED_BUDGET // 4) for device, usual in CHUNK_BYTES.items()}
    PIECE_BYTES = {device: min(usual, NAMED_BUDGET // 20) for device, usual in PIECE_BYTES.items()}


@dataclass(frozen=True)
class Model:
    """Hidden states [tokens, H] and the head behind them, as their products take them. `dtypes`: as they were given."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    dtypes: tuple

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> Model:
        dtype = dtype or compute_dtype(hidden, weight)
        flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
        given = tuple(None if t is None else t.dtype for t in (hidden, weight, bias))
        return cls(flat, weight.to(dtype), None if bias is None else bias.to(dtype), given)

    def in_memory(self) -> Model:
        """As the library takes them."""
        bias = None if self.bias is None else self.bias.contiguous()
        return Model(matrix(self.hidden), self.weight.contiguous(), bias, self.dtypes)

    def logits(self, labels: Tensor, ignore_index: int) -> Tensor:
        """Of all tokens: float32, of products in the operands' dtype; of those that do not count some."""
        return F.linear(counted_rows(labels, ignore_index, self.hidden), self.weight, self.bias).float()

    def buffer(self, rows: int) -> Tensor:
        """Memory for logits."""
        vocab = self.weight.shape[0]
        return padded_logits(self.hidden, rows, vocab, self.weight.dtype)[:, :vocab]

    def logits_in(self, buffer: Tensor, first: int) -> Tensor:
        """Of as many tokens as the buffer has rows."""
        _native.linear_forward(
            self.hidden.narrow(0, first, buffer.shape[0]), self.weight, self.bias, buffer, Wish.SCRATCH
        )
        return buffer


@dataclass(frozen=True)
class Distillation:
    """`hard` and `soft` are the weights of the two losses; hard None: there is no such loss. The teacher's vocabulary has so many
    tokens more."""

    student: Model
    teacher: Model
    more: int
    labels: Tensor
    ignore_index: int
    hard: float | None
    soft: float
    all_losses: bool
    temperature: float
    distance: Callable[..., Tensor]
    options: dict[str, Any]

    @property
    def has_hard(self) -> bool:
        return self.hard is not None and (self.hard != 0 or self.all_losses)

    @property
    def has_soft(self) -> bool:
        return self.soft != 0 or self.all_losses

    def _soft(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.more:
            student = F.pad(student, (0, self.more))
        if self.temperature != 1:
            student, teacher = student / self.temperature, teacher / self.temperature
        return self.distance(student, teacher, target=labels, ignore_index=self.ignore_index, **self.options)

    def _losses(self, soft: Tensor, hard: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is returned, of sums. A loss without weight does not enter: it may be infinite."""
        soft, hard = soft.float() / count, hard / count
        parts = [weight * loss for weight, loss in ((self.soft, soft), (self.hard, hard)) if weight]
        return sum(parts, torch.zeros_like(soft)), soft, hard  # type: ignore[return-value]

    def _count(self) -> Tensor:
        return self.labels.ne(self.ignore_index).sum().clamp(min=1).float()

    def composed(self) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens at once, from what torch can differentiate."""
        counted = self.labels, self.ignore_index
        logits = self.student.logits(*counted)
        soft = hard = logits.new_zeros(())
        if self.has_soft:
            soft = self._soft(
                gradient_where(*counted, logits),
                self.teacher.logits(*counted),
                self.labels,
            )
        if self.has_hard:
            hard = LigerCrossEntropyFunction.apply(logits, self.labels, None, self.ignore_index, 0.0, 0.0, "sum")[0]
        return self._losses(soft, hard, self._count())

    @torch.no_grad()
    def in_chunks(self, chunk_size: int, needs: tuple) -> tuple[tuple, tuple, Tensor | None]:
        """The losses, and the gradients of the student's hidden states, weight and bias that are needed, times the third answer
        if there is one: the number of tokens, where products are float16, which the gradient of a mean would leave."""
        count = self._count()
        factor = count if self.student.weight.dtype is torch.float16 and any(needs) else None
        share = None if not any(needs) else torch.ones_like(count) if factor is not None else 1 / count
        tokens = self.labels.shape[0]
        rows = chunk_rows(chunk_size, tokens, _rows(CHUNK_BYTES, self.teacher.weight.t()))
        gradients = Gradients(self.student, needs, alone=tokens <= rows and factor is None)
        buffers = self.student.buffer(rows), self.teacher.buffer(rows)
        soft = hard = torch.zeros_like(count)
        for first in range(0, tokens, max(rows, 1)):
            size = min(rows, tokens - first)
            of_soft, of_hard = self._chunk(first, share, *(buffer[:size] for buffer in buffers))
            soft, hard = soft + of_soft, hard + of_hard
            if share is not None:
                gradients.add(first, buffers[0][:size], self.labels.narrow(0, first, size).eq(self.ignore_index))
        return self._losses(soft, hard, count), gradients.rounded(factor is None), factor

    def _chunk(self, first: int, share: Tensor | None, buffer: Tensor, of_teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of both losses. The buffers hold the chunk's logits; with a share the student's then holds their gradient,
        times the share."""
        self.student.logits_in(buffer, first)
        if self.has_soft:
            self.teacher.logits_in(of_teacher, first)
        labels = self.labels.narrow(0, first, buffer.shape[0])
        rows = _rows(PIECE_BYTES, of_teacher)
        soft = hard = torch.zeros((), device=buffer.device, dtype=torch.float32)
        for pieces in zip(buffer.split(rows), of_teacher.split(rows), labels.split(rows)):
            of_soft, of_hard = self._piece(*pieces, share)
            soft, hard = soft + of_soft, hard + of_hard
        return soft, hard

    def _piece(self, buffer: Tensor, of_teacher: Tensor, labels: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = buffer.float()
        soft = hard = logits.new_zeros(())
        dlogits = None
        if self.has_hard and share is None:  # a distance may write over logits that have no gradient
            hard = _hard_loss(logits, labels, self.ignore_index, None)
        if self.has_soft:
            wanted = None if self.soft == 0 else share
            soft, dlogits = self._soft_and_gradient(logits, of_teacher.float(), labels, wanted)
        upstream = None if share is None or not self.hard else share * self.hard
        if self.has_hard and share is not None:
            hard = _hard_loss(logits, labels, self.ignore_index, upstream)
        if share is not None:
            if upstream is not None:
                dlogits = logits if dlogits is None else logits.add_(dlogits)
            ignored = labels.eq(self.ignore_index).unsqueeze(1)  # whatever a distance makes of them
            buffer.zero_() if dlogits is None else buffer.copy_(dlogits)
            buffer.masked_fill_(ignored, 0)
        return soft, hard

    def _soft_and_gradient(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, share: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        leaf = logits.detach().requires_grad_(share is not None)
        with formula_of_its_own(share is not None):
            soft = self._soft(leaf, teacher, labels)
        if share is None or not soft.requires_grad:
            return soft.detach(), None
        (dlogits,) = torch.autograd.grad(soft, leaf, (share * self.soft).to(soft.dtype))
        return soft.detach(), dlogits


def _hard_loss(logits: Tensor, labels: Tensor, ignore_index: int, upstream: Tensor | None) -> Tensor:
    """The sum over tokens. With an upstream its gradient is written over the logits."""
    nothing = (Wish.NOTHING,) * 3
    return _native.cross_entropy_forward(
        logits, labels.contiguous(), None, upstream, Wish.SCALAR, *nothing, Wish.NOTHING if upstream is None else logits,
        ignore_index, 0.0, 0.0, 0.0, _SUM, Wish.SCRATCH,
    )[0]  # fmt: skip


def _rows(most_bytes: dict[str, int], of_vocabulary: Tensor) -> int:
    """Whose float32 logits take so many bytes, at most."""
    most = most_bytes.get(of_vocabulary.device.type, most_bytes["cuda"])
    return max(most // (4 * of_vocabulary.shape[-1]), 1)


def chunk_rows(chunk_size: int, tokens: int, most: int) -> int:
    """Tokens of a chunk: chunks are of the same size, or nearly."""
    chunks = -(-tokens // min(chunk_size, most))
    return -(-tokens // max(chunks, 1))


class Gradients:
    """Sums over chunks. `alone`: there is one chunk, whose products may be rounded at once."""

    def __init__(self, model: Model, needs: tuple, alone: bool):
        self.model, self.added = model, False
        need_dx, need_dweight, need_dbias = needs
        x, weight = model.hidden, model.weight
        exact = weight.dtype if alone and weight.dtype is model.dtypes[1] else torch.float32
        self.dx = _native.new(x, x.shape, x.dtype) if need_dx else None
        self.dweight = fresh(torch.empty(weight.shape, dtype=exact, device=x.device)) if need_dweight else None
        self.dbias = _native.new(x, weight.shape[:1], torch.float32) if need_dbias else None

    def add(self, first: int, dlogits: Tensor, ignored: Tensor) -> None:
        """Hidden states that are `ignored`, which may be anything, would make NaN of the weight's gradient."""
        size = dlogits.shape[0]
        dx = None if self.dx is None else self.dx.narrow(0, first, size)
        hidden = self.model.hidden.narrow(0, first, size)
        if self.dweight is not None:
            hidden = hidden.masked_fill(ignored.unsqueeze(1), 0)
        _native.linear_backward(
            dlogits, hidden, self.model.weight, dx, self.dweight, self.dbias, int(self.added), Wish.SCRATCH
        )
        self.added = True

    def rounded(self, final: bool) -> tuple:
        """In their parameters' dtypes, or as they are if they are to be multiplied first."""
        sums = [self.dweight, self.dbias]
        if not self.added:
            sums = [None if g is None else g.zero_() for g in sums]
        if final:
            dtypes = self.model.dtypes[1:]
            sums = [g if g is None or g.dtype is dtype else cast(g, dtype) for g, dtype in zip(sums, dtypes)]
        return self.dx, *sums
