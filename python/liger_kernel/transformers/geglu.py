"""Gated MLPs with GELU, down(gelu(gate(x)) ⊙ up(x)); gelu by its tanh approximation.

Every forward is also bound onto Hugging Face modules with the same sub-module names.
"""

from __future__ import annotations

from typing import Any

from liger_kernel.ops import LigerGELUMulFunction
from liger_kernel.transformers.gated_mlp import GatedMLP, gated
from liger_kernel.transformers.while_stock import while_stock


class LigerGEGLUMLP(GatedMLP):
    """The MLP of Gemma: gate_proj and up_proj H → I, down_proj I → H, no biases. `config`'s activation is not looked at."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)

    @while_stock
    def forward(self, x):
        return self.down_proj(gated(self, LigerGELUMulFunction, self.gate_proj(x), self.up_proj(x)))


class LigerGEGLUMLPForGemma4(LigerGEGLUMLP):
    """As Gemma's; twice as wide in the last `num_kv_shared_layers` layers if `config.use_double_wide_mlp`."""

    def __init__(self, config: Any, layer_idx: int | None = None) -> None:
        width = config.intermediate_size
        shared = getattr(config, "num_kv_shared_layers", 0) if getattr(config, "use_double_wide_mlp", False) else 0
        if layer_idx is not None and shared > 0 and layer_idx >= config.num_hidden_layers - shared:
            width *= 2
        GatedMLP.__init__(self, config, width)


def liger_geglu(a, b):
    """gelu(a) ⊙ b for a and b of one shape."""
    return LigerGELUMulFunction.apply(a, b)
