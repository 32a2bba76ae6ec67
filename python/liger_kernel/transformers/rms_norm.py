"""RMSNorm as a module, and the presets of the model families.

`LigerRMSNorm.forward` is also bound onto the norms of Hugging Face models, so it may read nothing of `self` but what the
patch puts there or what a norm surely has.
"""

from __future__ import annotations

import torch
from torch import nn

from liger_kernel.ops import LigerRMSNormFunction
from liger_kernel.transformers import stock_calls
from liger_kernel.transformers.patching import PatchedAs
from liger_kernel.transformers.while_stock import while_stock


class LigerRMSNorm(nn.Module, metaclass=PatchedAs):
    """y = x · rstd · (weight + offset), rstd = 1/√(mean(x²) + eps), over the last dimension.

    `hidden_states` [..., hidden_size] in fp32, fp16 or bf16; the result has its shape and dtype. `weight` [hidden_size]
    starts as ones or zeros (`init_fn`) and is None without `elementwise_affine`, when `hidden_size` may be None too.
    `casting_mode` says what is rounded to x's dtype before the end: "llama" rounds x·rstd, "gemma" nothing, "none" eps
    and offset. `in_place` and `row_mode` permit, and never change results. AssertionError for another `init_fn`.
    """

    def __init__(
        self,
        hidden_size: int | None,
        eps: float = 1e-6,
        offset: float = 0.0,
        casting_mode: str = "llama",
        init_fn: str = "ones",
        in_place: bool = True,
        row_mode: bool | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__()
        assert init_fn in ("ones", "zeros"), f"init_fn must be 'ones' or 'zeros', got {init_fn!r}"
        self.elementwise_affine = elementwise_affine
        if elementwise_affine:
            fill = torch.ones if init_fn == "ones" else torch.zeros
            self.weight = nn.Parameter(fill(hidden_size))  # type: ignore[arg-type]
        else:
            self.register_parameter("weight", None)
        self.variance_epsilon = eps
        self.offset = offset
        self.casting_mode = casting_mode
        self.in_place = in_place
        self.row_mode = row_mode

    @property
    def eps(self) -> float:
        """The other name that it has in Hugging Face's norms."""
        return self.variance_epsilon

    @eps.setter
    def eps(self, value: float) -> None:
        self.variance_epsilon = value

    @while_stock
    def forward(self, hidden_states):
        epsilon, casting_mode = self.variance_epsilon, getattr(self, "casting_mode", "llama")
        args = (
            hidden_states,
            getattr(self, "weight", None),
            epsilon,
            getattr(self, "offset", 0.0),
            casting_mode,
            getattr(self, "in_place", True),
            getattr(self, "row_mode", None),
        )
        return stock_calls.norm(self, LigerRMSNormFunction, *args, epsilon=epsilon, promotes=casting_mode == "llama")

    def extra_repr(self):
        weight = getattr(self, "weight", None)
        shape = None if weight is None else tuple(weight.shape)
        return (
            f"weight_shape={shape}, eps={self.variance_epsilon}, offset={getattr(self, 'offset', 0.0)}, "
            f"in_place={getattr(self, 'in_place', True)}, row_mode={getattr(self, 'row_mode', None)}"
        )


class LigerRMSNormForGemma(LigerRMSNorm):
    """Gemma: the weight is stored minus one, and nothing is rounded before the end."""

    def __init__(
        self, hidden_size, eps=1e-6, offset=1.0, casting_mode="gemma", init_fn="zeros", in_place=True, row_mode=None
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForGemma2(LigerRMSNorm):
    """Gemma 2: as Gemma; its norms stand on both sides of a residual, hence not in place."""

    def __init__(
        self, hidden_size, eps=1e-6, offset=1.0, casting_mode="gemma", init_fn="zeros", in_place=False, row_mode=None
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForGemma3(LigerRMSNorm):
    """Gemma 3: as Gemma 2, with the parameter names that Hugging Face's class has there."""

    def __init__(self, dim, eps=1e-6, offset=1.0, casting_mode="gemma", init_fn="zeros", in_place=False):
        super().__init__(dim, eps, offset, casting_mode, init_fn, in_place)


class LigerRMSNormForGemma4(LigerRMSNorm):
    """Gemma 4: a plain weight, fp32 arithmetic throughout; no weight at all if not `with_scale` (`dim` may be None)."""

    def __init__(
        self, dim, eps=1e-6, offset=0.0, casting_mode="gemma", init_fn="ones", in_place=False, with_scale=True
    ):
        super().__init__(dim, eps, offset, casting_mode, init_fn, in_place, None, elementwise_affine=with_scale)
        self.with_scale = with_scale


class LigerRMSNormForOlmo2(LigerRMSNorm):
    """OLMo 2 and 3: multiplied before it is rounded; norms after the block instead of before it, hence not in place."""

    def __init__(
        self, hidden_size, eps=1e-6, offset=0.0, casting_mode="gemma", init_fn="ones", in_place=False, row_mode=None
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForGlm4(LigerRMSNorm):
    """GLM 4: norms on both sides of a residual, hence not in place."""

    def __init__(
        self, hidden_size, eps=1e-6, offset=0.0, casting_mode="llama", init_fn="ones", in_place=False, row_mode=None
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForQwen3Next(LigerRMSNorm):
    """Qwen3-Next: the weight is stored minus one, as in Gemma."""

    def __init__(
        self, hidden_size, eps=1e-6, offset=1.0, casting_mode="gemma", init_fn="zeros", in_place=False, row_mode=None
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


class LigerRMSNormForMuseGlimmer(LigerRMSNorm):
    """Muse Glimmer: as Gemma 4; its embeddings, queries and keys have norms without a weight."""

    def __init__(
        self, dim=None, eps=1e-6, offset=0.0, casting_mode="gemma", init_fn="ones", in_place=False, with_scale=True
    ):
        super().__init__(dim, eps, offset, casting_mode, init_fn, in_place, None, elementwise_affine=with_scale)
        self.with_scale = with_scale


class LigerRMSNormForMuseGlimmerTextCentered(LigerRMSNorm):
    """Muse Glimmer's text layers: the weight is stored minus one, as in Gemma."""

    def __init__(
        self, hidden_size, eps=1e-6, offset=1.0, casting_mode="gemma", init_fn="zeros", in_place=False, row_mode=None
    ):
        super().__init__(hidden_size, eps, offset, casting_mode, init_fn, in_place, row_mode)


def liger_rms_norm(X, W, eps, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True):
    """RMSNorm of X [..., H] with weight W [H] or None: see `LigerRMSNorm`."""
    return LigerRMSNormFunction.apply(X, W, eps, offset, casting_mode, in_place)
