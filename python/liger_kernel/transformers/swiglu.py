"""Gated MLPs, down(silu(gate(x)) ⊙ up(x)), one class per layout of the weights.

Every forward is also bound onto Hugging Face modules with the same sub-module names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction, LigerSiLUMulFunction
from liger_kernel.transformers.gated_mlp import GatedMLP, gated, is_bare_product
from liger_kernel.transformers.patching import PatchedAs
from liger_kernel.transformers.while_stock import while_stock


def _require_silu(activation: str) -> None:
    if activation not in ("silu", "swish"):
        raise ValueError(f"Activation function {activation} not supported.")


class _SwiGLUMLP(GatedMLP):
    """`activation` is that of `config` unless it is given; ValueError unless it is "silu" or "swish"."""

    def __init__(
        self, config: Any, intermediate_size: int | None = None, bias: bool = False, activation: str | None = None
    ) -> None:
        _require_silu(config.hidden_act if activation is None else activation)
        super().__init__(config, intermediate_size, bias)

    @while_stock
    def forward(self, x):
        return self.down_proj(gated(self, LigerSiLUMulFunction, self.gate_proj(x), self.up_proj(x)))


def _has_bias(config: Any) -> bool:
    return bool(getattr(config, "mlp_bias", False))


class LigerSwiGLUMLP(_SwiGLUMLP):
    """The MLP of Llama: gate_proj and up_proj H → I, down_proj I → H, biases if `config.mlp_bias` is true.

    Reads hidden_size, intermediate_size, hidden_act and, where it exists, mlp_bias of `config`; `intermediate_size`
    overrides that of `config`. ValueError unless hidden_act is "silu" or "swish".
    """

    def __init__(self, config: Any, intermediate_size: int | None = None) -> None:
        super().__init__(config, intermediate_size, bias=_has_bias(config))


class LigerSwiGLUMLPForMuseGlimmer(LigerSwiGLUMLP):
    """As Llama's without biases; the activation is `config.hidden_activation`, or hidden_act where that is not set."""

    def __init__(self, config: Any) -> None:
        _SwiGLUMLP.__init__(self, config, activation=getattr(config, "hidden_activation", None) or config.hidden_act)


class LigerQwen3MoeSwiGLUMLP(_SwiGLUMLP):
    """As Llama's without biases; `intermediate_size` overrides that of `config` (experts are narrower)."""

    def __init__(self, config: Any, intermediate_size: int | None = None) -> None:
        super().__init__(config, intermediate_size)


class LigerHunyuanV1SwiGLUMLP(_SwiGLUMLP):
    """As Llama's without biases; `layer_idx` and `is_shared_mlp` are part of Hugging Face's call."""

    def __init__(self, config: Any, layer_idx: int | None = None, is_shared_mlp: bool = False) -> None:
        super().__init__(config)
        self.layer_idx = layer_idx


class LigerFalconH1SwiGLUMLP(_SwiGLUMLP):
    """down_multiplier · down(silu(gate_multiplier · gate(x)) ⊙ up(x)), multipliers from `config.mlp_multipliers`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, bias=_has_bias(config))
        self.gate_multiplier, self.down_multiplier = config.mlp_multipliers

    @while_stock
    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        if is_bare_product(self.down_proj):  # with which the multiplier commutes
            return self.down_proj(
                gated(self, LigerSiLUMulFunction, gate, up, self.gate_multiplier, self.down_multiplier)
            )
        return self.down_proj(gated(self, LigerSiLUMulFunction, gate, up, self.gate_multiplier)) * self.down_multiplier


class LigerBlockSparseTop2MLP(nn.Module, metaclass=PatchedAs):
    """One expert of Mixtral: w1 is the gate, w3 the up and w2 the down projection, without biases."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        _require_silu(config.hidden_act)
        self.ffn_dim = config.intermediate_size
        self.hidden_dim = config.hidden_size
        self.w1 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)
        self.w2 = nn.Linear(self.ffn_dim, self.hidden_dim, bias=False)
        self.w3 = nn.Linear(self.hidden_dim, self.ffn_dim, bias=False)

    @while_stock
    def forward(self, x):
        return self.w2(gated(self, LigerSiLUMulFunction, self.w1(x), self.w3(x)))


class LigerPhi3SwiGLUMLP(nn.Module, metaclass=PatchedAs):
    """The MLP of Phi-3: gate and up in one projection gate_up_proj H → 2I, the gate in its first half."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        _require_silu(config.hidden_act)
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.gate_up_proj = nn.Linear(self.hidden_size, 2 * self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    @while_stock
    def forward(self, x):
        return self.down_proj(gated(self, LigerFusedGateUpSiLUMulFunction, self.gate_up_proj(x)))


class LigerExperts(nn.Module):
    """The experts of a mixture, their weights in two tensors: gate_up_proj [E, 2I, H], the gate first, and down_proj [E, H, I].

    Both start uninitialised. Reads num_experts (or num_local_experts, or n_routed_experts), hidden_size and
    moe_intermediate_size (or intermediate_size) of `config`; ValueError unless hidden_act is "silu" or "swish".
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        _require_silu(config.hidden_act)
        self.num_experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts")
        self.intermediate_dim = _first(config, "moe_intermediate_size", "intermediate_size")
        self.hidden_dim = config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """Of each token in hidden_states [..., H], the sum of its experts' outputs, weighted by top_k_weights [..., K].

        top_k_index [..., K], of any integer dtype, may name an expert twice; one outside [0, E) contributes nothing. The
        sum is in fp32 and rounded once. Waits for the device once, to learn how many tokens each expert has.
        """
        experts, k, width = self.gate_up_proj.shape[0], top_k_index.shape[-1], hidden_states.shape[-1]
        chosen = top_k_index.reshape(-1).long()
        chosen = torch.where((chosen < 0) | (chosen >= experts), experts, chosen)
        order = torch.argsort(chosen, stable=True)
        counts = torch.bincount(chosen, minlength=experts + 1).tolist()
        # a row for each slot, moved but never added up on the way: gradients have the same bits each time
        slots = hidden_states.unsqueeze(-2).expand(*hidden_states.shape[:-1], k, width).reshape(-1, width)[order]
        outputs = [
            nn.functional.linear(
                LigerFusedGateUpSiLUMulFunction.apply(nn.functional.linear(rows, self.gate_up_proj[expert])),
                self.down_proj[expert],
            )
            for expert, rows in enumerate(slots.split(counts)[:experts])
            if rows.shape[0]
        ]
        outputs.append(slots.new_zeros(counts[experts], width))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        weighted = torch.cat([rows.float() for rows in outputs])[back] * top_k_weights.reshape(-1, 1).float()
        return (
            weighted.view(top_k_index.numel() // k, k, width).sum(1).to(hidden_states.dtype).view(hidden_states.shape)
        )


def _first(config: Any, *names: str) -> int:
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


def liger_swiglu(a, b):
    """silu(a) ⊙ b for a and b of one shape."""
    return LigerSiLUMulFunction.apply(a, b)
