"""y = x · s for a scalar s that stays on the device: an upstream gradient, or 1 to cast an accumulator."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from liger_kernel import _native
from liger_kernel.ops._memory import fresh, is_plain, take_saved
from liger_kernel.ops._operator import Made, Operator, Single, Wish


@Operator
def scale(
    x: Tensor, factor: Single, target: Tensor | None = None, ignore_index: int = -100, y: Made = Wish.LIKE
) -> Any:  # fmt: skip
    return _native.scale(x, factor, y, target, ignore_index)


class _Free(threading.local):
    """The tensors that a backward pass has found free to be written over, while it runs."""

    places: frozenset[int] = frozenset()


_free = _Free()


@contextlib.contextmanager
def free_of_others(tensors: tuple, free: list[bool]) -> Iterator[None]:
    """What `take_saved` found, for scaled_gradient below the helpers, whose arguments are a public matter."""
    before = _free.places
    _free.places = frozenset(id(t) for t, is_free in zip(tensors, free) if is_free)
    try:
        yield
    finally:
        _free.places = before


def scaled_gradient(saved: Tensor, upstream: Tensor, target: Tensor | None = None, ignore_index: int = -100) -> Tensor:
    """A gradient that forward has formed, times the upstream scalar. Where it has a row for each of `target`, rows that are
    ignored stay zeros, whatever comes from above.

    In its own memory where the backward pass has found that nobody else can see it, and then nothing is moved when the
    upstream is 1. Else in new memory.
    """
    if upstream is None:  # which would be a factor of 1
        raise TypeError("scale: the upstream must be a torch.Tensor, not NoneType")
    if id(saved) not in _free.places or not is_plain(saved, upstream, target):
        return scale(saved, upstream, target, ignore_index)
    _native.scale(saved, upstream.float(), saved, target if target is None else target.contiguous(), ignore_index)
    return saved


def formed_gradient(ctx: Any, upstream: Tensor) -> Tensor:
    """The gradient that forward has formed and saved, with the labels of its rows or None, times the upstream scalar. What comes
    from above does not reach rows whose label is `ctx.ignore_index`."""
    saved, free = take_saved(ctx)
    with free_of_others(saved, free):
        return scaled_gradient(saved[0], upstream, saved[1], ctx.ignore_index)


def scaled_gradients(
    upstream: Tensor, gradients: Sequence[Tensor | None], target: Tensor | None, ignore_index: int
) -> list:
    """The gradients of x, whose rows are those of `target`, weight and bias, times the upstream scalar. Of the latter two
    each is as one row, which is ignored if all rows are: its label is how many are not."""
    valid = None
    if target is not None and any(g is not None for g in gradients[1:3]):
        valid = target.ne(ignore_index).sum(0, keepdim=True)
    labels = ((target, ignore_index), (valid, 0), (valid, 0))
    return [None if g is None else scaled_gradient(g, upstream, *told) for g, told in zip(gradients, labels)]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to another dtype, contiguous."""
    y = fresh(torch.empty_like(x, dtype=dtype))
    _native.scale(x, None, y, None, 0)
    return y
