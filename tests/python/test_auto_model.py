"""AutoLigerKernelForCausalLM: the family is patched, with the flags that it has, before the model is built."""

from __future__ import annotations

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")

import tiny_llama  # noqa: E402
from llama_patching import assert_close, warnings_of  # noqa: E402

from liger_kernel.transformers import (  # noqa: E402
    AutoLigerKernelForCausalLM,
    LigerRMSNorm,
    LigerSwiGLUMLP,
    revert_liger_kernel,
)

pytestmark = pytest.mark.usefixtures("unpatched")


def test_auto_model(tmp_path, caplog):
    tiny_llama.build().save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, swiglu=False, geglu=False)
    assert isinstance(model.model.norm, LigerRMSNorm)
    assert not isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    revert_liger_kernel()
    model = AutoLigerKernelForCausalLM.from_config(tiny_llama.config(), rms_norm=False)
    assert not isinstance(model.model.norm, LigerRMSNorm)
    assert isinstance(model.model.layers[0].mlp, LigerSwiGLUMLP)
    assert warnings_of(caplog) == []


def test_auto_model_of_an_unsupported_type(caplog):
    gpt2 = transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = AutoLigerKernelForCausalLM.from_config(gpt2, rope=True)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert len(warnings_of(caplog)) == 1 and "gpt2" in warnings_of(caplog)[0]


def saved_with_an_adapter(folder):
    """A model in `folder` / "base", an adapter for it in "adapter"."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    tiny_llama.build().save_pretrained(folder / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(4)
    peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False)).save_pretrained(folder / "adapter")


def test_an_adapters_folder(tmp_path, caplog):
    """As AutoModelForCausalLM: the model that it was trained on is loaded, and the adapter onto it."""
    saved_with_an_adapter(tmp_path)
    ids, labels = tiny_llama.batch()
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path / "adapter", swiglu=False)
    assert isinstance(model.model.norm, LigerRMSNorm) and warnings_of(caplog) == []
    expected = stock(input_ids=ids, labels=labels).loss
    assert_close(model(input_ids=ids, labels=labels).loss, expected)
    revert_liger_kernel()
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert abs(plain(input_ids=ids, labels=labels).loss - expected) > 1e-3


def loaded_by_stock(path, **options):
    """By AutoModelForCausalLM, if this release can."""
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        pytest.skip(f"transformers {transformers.__version__} does not load it: {type(error).__name__}")


def assert_loads_as_stock(path, **options):
    ids, labels = tiny_llama.batch()
    expected = loaded_by_stock(path, **options)(input_ids=ids, labels=labels).loss
    model = AutoLigerKernelForCausalLM.from_pretrained(path, **options)
    assert isinstance(model.model.norm, LigerRMSNorm)
    assert_close(model(input_ids=ids, labels=labels).loss, expected)


def test_an_adapter_beside_its_model(tmp_path, caplog):
    """Such a folder is a whole model; the one that the adapter was trained on need not be there any more."""
    saved_with_an_adapter(tmp_path)
    for file in (tmp_path / "adapter").glob("adapter*"):
        text = file.read_bytes().replace(str(tmp_path / "base").encode(), str(tmp_path / "gone").encode())
        (tmp_path / "base" / file.name).write_bytes(text)
    assert_loads_as_stock(tmp_path / "base")
    assert warnings_of(caplog) == []


def test_an_adapter_in_a_folder_of_its_own(tmp_path, caplog):
    saved_with_an_adapter(tmp_path)
    assert_loads_as_stock(str(tmp_path), adapter_kwargs={"subfolder": "adapter"})
    assert warnings_of(caplog) == []


def test_a_path_as_config(tmp_path, caplog):
    """AutoModelForCausalLM reads that of the model."""
    tiny_llama.build().save_pretrained(tmp_path)
    assert_loads_as_stock(tmp_path, config=str(tmp_path))
    assert warnings_of(caplog) == []


OWN_CODE = """
import transformers

class OwnConfig(transformers.LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(transformers.LlamaForCausalLM):
    config_class = OwnConfig
    is_own = True
"""


@pytest.mark.parametrize("own_type", [True, False])
def test_a_model_with_code_of_its_own(own_type, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / f"own_{own_type}".lower()
    tiny_llama.build().save_pretrained(folder)
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.OwnForCausalLM"}
    if own_type:
        config["model_type"] = "own_llama"
        config["auto_map"]["AutoConfig"] = "own.OwnConfig"
    (folder / "config.json").write_text(json.dumps(config))
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    try:
        model = AutoLigerKernelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    except ValueError:
        loaded_by_stock(folder, trust_remote_code=True)  # afterwards: it registers the code for both
        raise
    assert model.is_own
    assert AutoLigerKernelForCausalLM.from_config(config, trust_remote_code=True).is_own


def test_a_config_that_is_given(tmp_path):
    tiny_llama.build().save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, config=tiny_llama.config(rms_norm_eps=0.5))
    assert isinstance(model.model.norm, LigerRMSNorm) and model.model.norm.variance_epsilon == 0.5
