"""The words of the model table: what a row says about a family.

A row says what is *expected* where, and only that is replaced. Names on Hugging Face's side are strings, looked up when a
patch is applied, so that nothing here holds a class of a module that may be reloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rope:
    """How a family rotates queries and keys: an attribute of its modelling module, and the name of our function."""

    attribute: str
    ours: str


HALF_SPLIT = (Rope("apply_rotary_pos_emb", "liger_rotary_pos_emb"),)
HALF_WIDTH = (Rope("apply_rotary_pos_emb", "liger_rotary_pos_emb_gpt_oss"),)  # cos and sin have a column for each pair
NO_ROPE: tuple[Rope, ...] = ()


@dataclass(frozen=True)
class Head:
    """How a causal-LM class comes from its base model's hidden states to the loss. Paths are dotted, "" is the model.

    base         the base model
    config       the config of the text model, below the model's own
    softcap      an entry of that config: logits become c · tanh(logits / c)
    multiplier   an attribute of the model by which logits are multiplied before that
    output       the class of the result, in `model.output_classes`
    router_loss  whether a load-balancing loss is added where router logits are asked for
    """

    base: str = "model"
    config: str = ""
    softcap: str = ""
    multiplier: str = ""
    output: str = "LigerCausalLMOutputWithPast"
    router_loss: bool = False


@dataclass(frozen=True)
class Kind:
    """Modules that one flag patches. `classes`: Hugging Face's class -> ours; a bare name stands in the row's modelling
    module, a dotted one where it says. `paths` lead from the text model, `*` standing for each member of a list."""

    flag: str
    classes: Mapping[str, type]
    paths: tuple[str, ...]
    activation: str = "hidden_act"  # the config's entry, for an MLP
    class_level: bool = True  # whether the names of the modelling module are replaced for models that are built later


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
    parts           path below the base model -> entry of the config whose model_type has the row for that part
    model_types     that the apply function serves, if not just its name
    accepts         the only classes of models that may be given, TypeError for others
    alone           what is left alone -> why: classes met at the paths above (no warning), flags (a warning if true)
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
    parts: Mapping[str, str] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    alone: Mapping[str, str] = field(default_factory=dict)
    experts: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"transformers.models.{self.modeling}"


def norms(classes: Mapping[str, type], *paths: str) -> Kind:
    return Kind("rms_norm", classes, paths)


def swiglu(classes: Mapping[str, type], *paths: str, activation: str = "hidden_act") -> Kind:
    return Kind("swiglu", classes, paths, activation)


def geglu(classes: Mapping[str, type], *paths: str, activation: str = "hidden_activation") -> Kind:
    return Kind("geglu", classes, paths, activation)


def flags(**changes: bool) -> dict[str, bool]:
    """The flags of a language model with some defaults changed."""
    return {**LANGUAGE_FLAGS, **changes}


GEGLU_FLAGS = {("geglu" if name == "swiglu" else name): value for name, value in LANGUAGE_FLAGS.items()}
