"""The projections of a gated MLP, down(f(gate(x)) ⊙ up(x)).

They are ordinary nn.Linear, so that adapters, quantisation and sharding apply to them; only the activation is ours.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class GatedMLP(nn.Module):
    """gate_proj and up_proj H → I, down_proj I → H. The sizes are those of `config` unless `intermediate_size` is given."""

    def __init__(self, config: Any, intermediate_size: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=bias)
