"""What the tests of the package's modules share: sizes, a model's configuration, a comparison with torch."""

from __future__ import annotations

import types

import torch

HIDDEN, INTER, VOCAB = 24, 40, 31


def config(**changes):
    return types.SimpleNamespace(**{**dict(hidden_size=HIDDEN, intermediate_size=INTER, hidden_act="silu"), **changes})


def assert_close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
