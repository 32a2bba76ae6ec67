"""Where each model family keeps what we replace: one row per family.

A row is data. Names on Hugging Face's side are strings, looked up when a patch is applied, so that nothing here holds a
class of a module that may be reloaded; what we put there is the class itself, or the name of a function of
`monkey_patch` where programs replace that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.swiglu import LigerSwiGLUMLP


@dataclass(frozen=True)
class Site:
    """Sub-modules of one kind: a path below the base model in which `*` runs over a list, and how to patch them."""

    path: str
    flag: str  # the flag of the apply function that patches them
    module: type | None = None  # whose forward is bound, for an MLP
    options: Mapping[str, Any] = field(default_factory=dict)  # for _patch_rms_norm_module


def norm(path: str, **options: Any) -> Site:
    return Site(path, "rms_norm", None, options)


def mlp(path: str, module: type) -> Site:
    return Site(path, "swiglu", module)


@dataclass(frozen=True)
class ModelRow:
    """One family.

    name            of the apply function, apply_liger_kernel_to_<name>
    modeling        the module with the family's classes
    rope            attribute of that module -> name of our function
    classes         flag -> {attribute of that module: our class}, for models that are built later
    causal_lm       class -> the file and function of its fused-loss forward
    cross_entropy   where the flag of that name takes hold: "global" (torch.nn.functional.cross_entropy, which the loss
                    functions of transformers call) or "attribute" (the CrossEntropyLoss of the modelling module)
    sites           the sub-modules to patch in a model that exists
    """

    name: str
    modeling: str
    rope: Mapping[str, str]
    classes: Mapping[str, Mapping[str, type]]
    causal_lm: Mapping[str, str]
    cross_entropy: str
    sites: tuple[Site, ...]


STANDARD_NORMS = (norm("norm"), norm("layers.*.input_layernorm"), norm("layers.*.post_attention_layernorm"))

LLAMA = ModelRow(
    name="llama",
    modeling="transformers.models.llama.modeling_llama",
    rope={"apply_rotary_pos_emb": "liger_rotary_pos_emb"},
    classes={"rms_norm": {"LlamaRMSNorm": LigerRMSNorm}, "swiglu": {"LlamaMLP": LigerSwiGLUMLP}},
    causal_lm={"LlamaForCausalLM": "llama.lce_forward"},
    cross_entropy="global",
    sites=(*STANDARD_NORMS, mlp("layers.*.mlp", LigerSwiGLUMLP)),
)
