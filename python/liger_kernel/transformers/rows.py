"""The words of the model table: what a row says about a family.

A row says what is *expected* where, and only that is replaced. Names on Hugging Face's side are strings, looked up when a
patch is applied, so that nothing here holds a class of a module that may be reloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rope:
    """How a family rotates queries and keys: an attribute of its modelling module, and the name and file of our function."""

    attribute: str
    ours: str
    file: str = "rope"


HALF_SPLIT = (Rope("apply_rotary_pos_emb", "liger_rotary_pos_emb"),)
HALF_WIDTH = (Rope("apply_rotary_pos_emb", "liger_rotary_pos_emb_gpt_oss"),)  # cos and sin have a column for each pair
IMAGES = (Rope("apply_rotary_pos_emb", "rotary_pos_emb_of_images"),)  # one table for all, and no axis for the batch
VISION = Rope("apply_rotary_pos_emb_vision", "liger_rotary_pos_emb_vision")  # queries and keys [S, H, D]
# Three planes of cos and sin, which newer releases merge before they rotate.
SECTIONS = (*HALF_SPLIT, Rope("apply_multimodal_rotary_pos_emb", "liger_multimodal_rotary_pos_emb", "qwen2vl_mrope"))
NO_ROPE: tuple[Rope, ...] = ()


@dataclass(frozen=True)
class Head:
    """How a causal-LM class comes from its base model's hidden states to the loss. Paths are dotted, "" is the model.

    base         the base model
    projection   the module that makes logits of hidden states
    config       the config of the text model, below the model's own
    softcap      an entry of that config: logits become c · tanh(logits / c)
    multiplier   an attribute of the model by which logits are multiplied before that
    output       the class of the result, in `model.output_classes`
    router_loss  whether a load-balancing loss is added where router logits are asked for
    eager        whether the family should be trained with eager attention, which caps its scores
    """

    base: str = "model"
    projection: str = "lm_head"
    config: str = ""
    softcap: str = ""
    multiplier: str = ""
    output: str = "LigerCausalLMOutputWithPast"
    router_loss: bool = False
    eager: bool = False


@dataclass(frozen=True)
class Kind:
    """Modules that one flag patches.

    classes      Hugging Face's class, or a dotted name of torch's -> ours
    paths        where they stand, `*` being each member of a list
    part         from where the paths lead: "" is the text model, else a path below the base model
    activation   the config's entry, for an MLP
    replaced     names of the modelling module that are replaced for models that are built later, if not the classes
    """

    flag: str
    classes: Mapping[str, type]
    paths: tuple[str, ...] = ()
    part: str = ""
    activation: str = "hidden_act"
    replaced: tuple[str, ...] | None = None


LANGUAGE_FLAGS: Mapping[str, bool] = {
    "rope": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": True,
    "rms_norm": True,
    "swiglu": True,
}


@dataclass(frozen=True)
class Row:
    """One family.

    name            of its apply function, apply_liger_kernel_to_<name>
    modeling        the module with its classes, below transformers.models
    kinds           norms, MLPs and experts
    heads           causal-LM class -> how its loss is fused
    rope            what is replaced in the modelling module
    flags           of the apply function, with their defaults
    cross_entropy   where the flag of that name takes hold: "global" (torch.nn.functional.cross_entropy, which the loss
                    functions of transformers call), "attribute" (CrossEntropyLoss of the modelling module) or "nn"
                    (torch.nn.CrossEntropyLoss)
    text            the text model below the base model
    parts           paths below the base model of models that are patched by the row of their own model type
    class_rows      names of rows that are applied too, where classes are patched
    model_types     that the apply function serves, if not just its name
    accepts         the only classes of models that may be given, TypeError for others
    alone           what is left alone -> why: classes met at the paths above (no warning), flags (a warning if true)
    more_flags      whether the apply function takes the flags of the parts too
    experts         the class of fused expert tensors, left alone; a warning if their flag is given as true
    refused         flags that are a NotImplementedError if true -> why
    """

    name: str
    modeling: str
    kinds: tuple[Kind, ...] = ()
    heads: Mapping[str, Head] = field(default_factory=dict)
    rope: tuple[Rope, ...] = HALF_SPLIT
    flags: Mapping[str, bool] = field(default_factory=lambda: LANGUAGE_FLAGS)
    cross_entropy: str = "global"
    text: str = ""
    parts: tuple[str, ...] = ()
    class_rows: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    alone: Mapping[str, str] = field(default_factory=dict)
    more_flags: bool = False
    experts: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"transformers.models.{self.modeling}"

    @property
    def types(self) -> tuple[str, ...]:
        return self.model_types or (self.name,)


def norms(classes: Mapping[str, type], *paths: str, part: str = "") -> Kind:
    return Kind("rms_norm", classes, paths, part)


def layer_norms(classes: Mapping[str, type], *paths: str, part: str = "") -> Kind:
    return Kind("layer_norm", classes, paths, part, replaced=())


def swiglu(classes: Mapping[str, type], *paths: str, activation: str = "hidden_act") -> Kind:
    return Kind("swiglu", classes, paths, activation=activation)


def geglu(classes: Mapping[str, type], *paths: str, activation: str = "hidden_activation") -> Kind:
    return Kind("geglu", classes, paths, activation=activation)


def flags(**changes: bool) -> dict[str, bool]:
    """The flags of a language model with some defaults changed."""
    return {**LANGUAGE_FLAGS, **changes}


GEGLU_FLAGS = {("geglu" if name == "swiglu" else name): value for name, value in LANGUAGE_FLAGS.items()}
VISION_FLAGS = {
    "rope": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": True,
    "rms_norm": True,
    "layer_norm": True,
    "swiglu": True,
}
VISION_AND_GEGLU_FLAGS = {
    "rope": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": True,
    "layer_norm": True,
    "rms_norm": True,
    "geglu": True,
}
