"""AutoLigerKernelForCausalLM: the family is patched, with the flags that it has, before the model is built."""

from __future__ import annotations

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


def test_an_adapters_folder(tmp_path, caplog):
    """As AutoModelForCausalLM: the model that it was trained on is loaded, and the adapter onto it."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ids, labels = tiny_llama.batch()
    tiny_llama.build().save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(4)
    peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path / "adapter", swiglu=False)
    assert isinstance(model.model.norm, LigerRMSNorm) and warnings_of(caplog) == []
    expected = stock(input_ids=ids, labels=labels).loss
    assert_close(model(input_ids=ids, labels=labels).loss, expected)
    revert_liger_kernel()
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert abs(plain(input_ids=ids, labels=labels).loss - expected) > 1e-3


def test_a_config_that_is_given(tmp_path):
    tiny_llama.build().save_pretrained(tmp_path)
    model = AutoLigerKernelForCausalLM.from_pretrained(tmp_path, config=tiny_llama.config(rms_norm_eps=0.5))
    assert isinstance(model.model.norm, LigerRMSNorm) and model.model.norm.variance_epsilon == 0.5
