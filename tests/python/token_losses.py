"""What the tests of losses on the tokens of a linear head share: sizes, the call by position, results with their gradients."""

from __future__ import annotations

import inspect

import torch
from reference import assert_close

HIDDEN, VOCAB = 16, 61
OPERANDS = "_input", "weight", "bias"  # what has a gradient
LOGITS = 8 + 4  # roundings: of logits of size up to 8, once more of their gradients; and what follows


def arguments(function, given):
    """All arguments of `apply`, by position."""
    parameters = list(inspect.signature(function.forward).parameters.values())[1:]
    assert set(given) <= {p.name for p in parameters}, given.keys()
    return [given.get(p.name, None if p.default is p.empty else p.default) for p in parameters]


def operands(given):
    return [given[name] for name in OPERANDS if given[name] is not None]


def call(function, given):
    """(loss, auxiliary outputs...)"""
    loss, aux = function.apply(*arguments(function, given))
    return loss, *aux


def results(function, given):
    """And the gradients."""
    found = call(function, given)
    return *found, *torch.autograd.grad(found[0], operands(given))


def same(ours, others):
    for one, other in zip(ours, others, strict=True):
        assert torch.equal(one, other)


def about(ours, others, roundings=8, dtype=torch.float32):
    for one, other in zip(ours, others, strict=True):
        assert_close(one.flatten(), other.detach().double().flatten(), dtype, roundings, VOCAB)


def compiled(function, **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)
