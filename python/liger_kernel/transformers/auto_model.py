"""AutoModelForCausalLM that patches the model's family before it builds the model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import find_adapter_config_file

from liger_kernel.transformers.monkey_patch import (
    LIGER_FLAGS,
    MODEL_TYPE_TO_APPLY_LIGER_FN,
    _apply_liger_kernel,
)

# Of the keywords of `from_pretrained`, those that say where a file of an adapter is found too; its folder is its own.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def _without_liger_options(model_type: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` without what was meant for the patching function, which the model's constructor would refuse."""
    names = set(LIGER_FLAGS)
    apply_fn = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type) if model_type else None
    if apply_fn is not None:
        names.update(inspect.signature(apply_fn).parameters)
    return {name: value for name, value in kwargs.items() if name not in names}


def _with_base_model(path: Any, kwargs: dict[str, Any]) -> Any:
    """`path`, or, where only a PEFT adapter is stored there, that of the model which it was trained on."""
    where = {name: kwargs[name] for name in _WHERE if kwargs.get(name) is not None}
    adapter = find_adapter_config_file(path, **{**where, **(kwargs.get("adapter_kwargs") or {})})
    if adapter is None or (Path(path) / CONFIG_NAME).exists():
        return path
    return json.loads(Path(adapter).read_text())["base_model_name_or_path"]


class AutoLigerKernelForCausalLM(AutoModelForCausalLM):
    """Drop-in for AutoModelForCausalLM. The patching flags of the family (rope, rms_norm, ...) may be given as keywords.

    A model type that is not supported gives a warning and the unpatched model.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Read the config, patch its family, load the model, or an adapter and the model below it."""
        config = kwargs.get("config")
        if not isinstance(config, PretrainedConfig):
            found = {name: value for name, value in kwargs.items() if name != "config"}
            config = AutoConfig.from_pretrained(_with_base_model(pretrained_model_name_or_path, kwargs), **found)
        model_type = getattr(config, "model_type", None)
        _apply_liger_kernel(model_type, **kwargs)
        return AutoModelForCausalLM.from_pretrained(  # by its name: a model's own code is registered for that
            pretrained_model_name_or_path, *model_args, **_without_liger_options(model_type, kwargs)
        )

    @classmethod
    def from_config(cls, config, **kwargs):
        """Patch the family of `config`, build the model with fresh weights."""
        model_type = getattr(config, "model_type", None)
        _apply_liger_kernel(model_type, **kwargs)
        return AutoModelForCausalLM.from_config(config, **_without_liger_options(model_type, kwargs))
