"""What the tests of the package's modules share: sizes, a model's configuration, a comparison with torch."""

from __future__ import annotations

import types

import torch
from reference import apart

HIDDEN, INTER, VOCAB = 24, 40, 31


def config(**changes):
    return types.SimpleNamespace(**{**dict(hidden_size=HIDDEN, intermediate_size=INTER, hidden_act="silu"), **changes})


# Two products one after the other, of INTER terms at most, whose magnitudes add up to something of order 1.
TOLERANCE = 2 * apart(INTER)


def assert_close(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
