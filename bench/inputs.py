"""What rows are made of: inputs, and what is known of an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
IGNORE = -100
MROPE_SECTION = [16, 24, 24]  # of the 64 pairs of a head of 128


@dataclass
class Inputs:
    diff: list[Tensor]
    fixed: list[Tensor] = field(default_factory=list)
    upstream: list[Tensor] = field(default_factory=list)
    rotated: int = 1  # how many of `diff` are activations, of which cold copies are made

    def with_new_activations(self) -> Inputs:
        def again(t: Tensor) -> Tensor:
            return t.detach().clone().requires_grad_(t.requires_grad)

        diff = [again(t) if i < self.rotated else t for i, t in enumerate(self.diff)]
        return Inputs(diff, self.fixed, [again(t) for t in self.upstream], self.rotated)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in [*self.diff[: self.rotated], *self.upstream])


def normal(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.empty(shape, dtype=torch.float32, device=device).normal_(0, scale, generator=generator).to(dtype)


def targets(rows: int, vocab: int, device: str) -> Tensor:
    """One in twenty is ignored."""
    generator = torch.Generator(device=device).manual_seed(5)
    target = torch.randint(vocab, (rows,), generator=generator, device=device)
    target[torch.rand(rows, generator=generator, device=device) < 0.05] = IGNORE
    return target


@dataclass(frozen=True)
class Operator:
    """What a row of this operator needs, in one place.

    inputs    makes its inputs; plain: the formula on them
    function  the autograd Function of `liger_kernel.ops.<module>`, in our package and in the reference; or a plain function of
              what has no gradient; or a module of `liger_kernel.chunked_loss`
    options   what `apply` gets after the tensors (a loss with sums to choose: their dtype besides); what the module is made with
    passes    how often a tensor of the row's shape is read or written, forward and backward
    products  how often rows x hidden x vocabulary multiplications and additions are made
    """

    inputs: Callable[..., Inputs]
    plain: Callable[..., object]
    function: str
    module: str
    options: Any = ()
    passes: int = 0
    products: int = 0
