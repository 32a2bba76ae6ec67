"""Models of families without a row, and a norm to put into them, for the tests of probing."""

from __future__ import annotations

import pytest
import tiny_models
import torch
import transformers
from torch import nn


def build(class_name, **changes):
    cls = getattr(transformers, class_name, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    torch.manual_seed(0)
    return cls(cls.config_class(**{**tiny_models.TEXT, **changes})).train()


class Halved(nn.Module):
    """A norm in all but its values."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, 1e-6

    def forward(self, x):
        return 0.5 * self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
