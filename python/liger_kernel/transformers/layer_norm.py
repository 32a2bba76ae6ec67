"""LayerNorm as a module.

`LigerLayerNorm.forward` is also bound onto the norms of Hugging Face models, so it may read nothing of `self` but what the
patch puts there or what a norm surely has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from liger_kernel import _implementation
from liger_kernel.ops import LigerLayerNormFunction
from liger_kernel.transformers import stock_calls
from liger_kernel.transformers.patching import PatchedAs
from liger_kernel.transformers.while_stock import while_stock


class LigerLayerNorm(nn.Module, metaclass=PatchedAs):
    """y = (x − mean) · rstd · weight + bias over the last dimension, rstd = 1/√(var + eps).

    `hidden_states` [..., hidden_size] in fp32, fp16 or bf16; the result has its shape and dtype, the arithmetic is fp32.
    `weight` starts as ones or zeros (`init_fn`; AssertionError for another). `bias` is always there and trainable: random
    if `bias` is true, else zeros, because checkpoints of towers whose norms this class replaces hold one. `impl` (or its
    old spelling `backend`) and `mode` are kept; there is one implementation.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-6,
        bias: bool = False,
        init_fn: str = "ones",
        impl: str | None = None,
        mode: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        assert init_fn in ("ones", "zeros"), f"init_fn must be 'ones' or 'zeros', got {init_fn!r}"
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.impl = backend if impl is None else impl
        self.mode = mode
        self.weight = nn.Parameter(torch.ones(hidden_size) if init_fn == "ones" else torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.randn(hidden_size) if bias else torch.zeros(hidden_size))

    @property
    def eps(self) -> float:
        return self.variance_epsilon

    @eps.setter
    def eps(self, value: float) -> None:
        self.variance_epsilon = value

    @property
    def backend(self) -> str | None:
        return self.impl

    @backend.setter
    def backend(self, name: str | None) -> None:
        self.impl = name

    @while_stock
    def forward(self, hidden_states: Any) -> Any:
        _implementation.accept("layer_norm", getattr(self, "impl", None), getattr(self, "mode", None))
        # torch's own class may have neither weight nor bias
        args = (hidden_states, self.weight, self.bias, self.variance_epsilon)
        return stock_calls.norm(self, LigerLayerNormFunction, *args, epsilon=self.variance_epsilon)

    def extra_repr(self):
        impl, mode = getattr(self, "impl", None), getattr(self, "mode", None)
        return f"{self.hidden_size}, eps={self.variance_epsilon}, impl={impl!r}, mode={mode!r}"


def liger_layer_norm(X, W, B, eps):
    """LayerNorm of X [..., H] with weight W [H] and bias B [H], each of which may be None: see `LigerLayerNorm`."""
    return LigerLayerNormFunction.apply(X, W, B, eps)
