"""Model outputs with two more fields, `token_accuracy` and `predicted_tokens`.

Each class extends the one that the family's own forward returns. Where the installed transformers has no such class, the
name is still there, over a general output class. The families' classes are made when they are first asked for: their
bases stand in modelling modules, which take long to import.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any

from transformers import modeling_outputs

_FIELDS: list[Any] = [
    (name, "torch.Tensor | None", dataclasses.field(default=None)) for name in ("token_accuracy", "predicted_tokens")
]


def _extended(name: str, base: type) -> Any:
    """`base` with the mean accuracy over the targets (0-d, fp32) and the predicted tokens (int64)."""
    namespace = {"__module__": __name__, "__doc__": f"{base.__name__} with token_accuracy and predicted_tokens."}
    return dataclasses.make_dataclass(name, _FIELDS, bases=(base,), namespace=namespace)


LigerCausalLMOutputWithPast = _extended("LigerCausalLMOutputWithPast", modeling_outputs.CausalLMOutputWithPast)
LigerMoeCausalLMOutputWithPast = _extended("LigerMoeCausalLMOutputWithPast", modeling_outputs.MoeCausalLMOutputWithPast)

# family -> (modelling module, whether its experts are routed); Liger<family>CausalLMOutputWithPast is made from it
_FAMILIES = {
    "Gemma3": ("gemma3.modeling_gemma3", False),
    "Gemma4": ("gemma4.modeling_gemma4", False),
    "Glm4vMoe": ("glm4v_moe.modeling_glm4v_moe", True),
    "InternVL": ("internvl.modeling_internvl", False),
    "Llava": ("llava.modeling_llava", False),
    "MuseGlimmer": ("muse_glimmer.modeling_muse_glimmer", False),
    "PaliGemma": ("paligemma.modeling_paligemma", False),
    "Qwen2VL": ("qwen2_vl.modeling_qwen2_vl", False),
    "Qwen2_5_VL": ("qwen2_5_vl.modeling_qwen2_5_vl", False),
    "Qwen3VL": ("qwen3_vl.modeling_qwen3_vl", False),
    "Qwen3VLMoe": ("qwen3_vl_moe.modeling_qwen3_vl_moe", True),
    "Qwen3_5": ("qwen3_5.modeling_qwen3_5", False),
    "Qwen3_5Moe": ("qwen3_5_moe.modeling_qwen3_5_moe", True),
    "SmolVLM": ("smolvlm.modeling_smolvlm", False),
}
_PREFIX, _SUFFIX = "Liger", "CausalLMOutputWithPast"


def _base(family: str) -> type:
    home, routed = _FAMILIES[family]
    try:
        own = getattr(importlib.import_module(f"transformers.models.{home}"), f"{family}{_SUFFIX}", None)
    except ModuleNotFoundError:  # a family that this transformers has not
        own = None
    general = f"{'Moe' if routed else ''}{_SUFFIX}"
    found = own or getattr(modeling_outputs, f"Multimodal{general}", None) or getattr(modeling_outputs, general)
    return found


def __getattr__(name: str) -> Any:
    family = name[len(_PREFIX) : -len(_SUFFIX)] if name.startswith(_PREFIX) and name.endswith(_SUFFIX) else ""
    if family not in _FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _extended(name, _base(family))
    setattr(sys.modules[__name__], name, made)
    return made
