"""The package as its users call it: names, where they can be imported from, signatures."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pathlib
import sys

import own_process
import pytest

import liger_kernel
import liger_kernel.transformers as lk
import liger_kernel.transformers.functional as F


def parameters(function):
    return {
        p.name: (p.default if p.default is not p.empty else ...)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    }


# ---- the package -----------------------------------------------------------------------------------------------------


def test_version():
    assert liger_kernel.__version__ == "0.9.0"
    assert {name for name in vars(liger_kernel) if not name.startswith("__")} <= {
        module.rpartition(".")[2] for module in sys.modules if module.startswith("liger_kernel.")
    }
    for spelling in ("liger-kernel", "liger_kernel"):
        try:
            assert importlib.metadata.version(spelling) == "0.9.0"
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("run from a checkout: no distribution metadata")


def test_typed():
    assert pathlib.Path(liger_kernel.__file__).with_name("py.typed").is_file()


def test_all_names_are_there_and_sorted():
    for name in lk.__all__:
        getattr(lk, name)
    assert set(lk.__all__) <= set(dir(lk))
    assert not {"LigerExperts", "LigerVocabParallelCrossEntropy"} & set(lk.__all__)


def test_unknown_names():
    with pytest.raises(AttributeError, match="no_such_name"):
        lk.no_such_name  # noqa: B018
    assert not hasattr(lk, "apply_liger_kernel_to_no_such_model")


def test_lazy_names():
    pytest.importorskip("transformers", reason="needs transformers")
    patching = importlib.import_module("liger_kernel.transformers.monkey_patch")
    for name in ("apply_liger_kernel_to_llama", "_apply_liger_kernel", "_apply_liger_kernel_to_instance"):
        assert getattr(lk, name) is getattr(patching, name) and name in lk.__all__
    assert lk.revert_liger_kernel is patching.revert_liger_kernel
    assert lk.monkey_patch is patching
    integration = importlib.import_module("liger_kernel.transformers.trainer_integration")
    assert integration._apply_liger_kernel is patching._apply_liger_kernel
    auto = importlib.import_module("liger_kernel.transformers.auto_model")
    assert lk.AutoLigerKernelForCausalLM is auto.AutoLigerKernelForCausalLM
    import transformers

    assert issubclass(lk.AutoLigerKernelForCausalLM, transformers.AutoModelForCausalLM)


def test_import_needs_torch_only():
    said = own_process.output(
        "-c",
        """
import sys
for absent in ("transformers", "triton", "peft", "trl", "rich", "accelerate"):
    sys.modules[absent] = None
import liger_kernel.transformers as lk
assert not lk.is_transformers_available()
assert lk.LigerRMSNorm and lk.LigerSwiGLUMLP and lk.liger_rotary_pos_emb
import liger_kernel.transformers.functional, liger_kernel.utils, liger_kernel.ops.utils
assert "apply_liger_kernel_to_llama" not in lk.__all__
for name in ("AutoLigerKernelForCausalLM", "apply_liger_kernel_to_llama", "_apply_liger_kernel", "monkey_patch"):
    try:
        getattr(lk, name)
    except ImportError as error:
        assert "transformers" in str(error)
    else:
        raise SystemExit(name)
try:
    lk.unknown
except AttributeError:
    print("right")
""",
    )
    assert said.strip() == "right"


def test_import_brings_nothing_along():
    said = own_process.output(
        "-c",
        "import sys; before = set(sys.modules) | {'torch'}; import torch; before |= set(sys.modules)\n"
        "import liger_kernel.transformers\n"
        "print([m for m in ('transformers', 'triton', 'peft', 'rich') if m in sys.modules and m not in before])",
    )
    assert said.strip() == "[]"


# ---- signatures ------------------------------------------------------------------------------------------------------

LOSS = dict(ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean", softcap=None)
RETURNS = dict(return_token_accuracy=False, return_predicted_tokens=False)
ROPE = dict(position_ids=None, unsqueeze_dim=1, rotary_dim=None)
NORM = dict(eps=1e-6, offset=0.0, casting_mode="llama", init_fn="ones", in_place=True)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lk.LigerRMSNorm.__init__, dict(hidden_size=..., **NORM, row_mode=None, elementwise_affine=True)),
        (lk.LigerFusedAddRMSNorm.__init__, dict(hidden_size=..., **{**NORM, "in_place": False})),
        (lk.LigerFusedAddRMSNorm.forward, dict(hidden_states=..., residual=...)),
        (lk.LigerCrossEntropyLoss.__init__, dict(weight=None, **LOSS, return_z_loss=False, **RETURNS)),
        (lk.LigerCrossEntropyLoss.forward, dict(_input=..., target=...)),
        (
            lk.LigerFusedLinearCrossEntropyLoss.__init__,
            dict(ce_weight=None, **LOSS, return_z_loss=False, accum_dtype=None, use_token_scaling=False, **RETURNS),
        ),
        (lk.LigerFusedLinearCrossEntropyLoss.forward, dict(lin_weight=..., _input=..., target=..., bias=None)),
        (lk.liger_rotary_pos_emb, dict(q=..., k=..., cos=..., sin=..., **ROPE)),
        (lk.LigerSwiGLUMLP.__init__, dict(config=..., intermediate_size=None)),
        (lk.LigerQwen3MoeSwiGLUMLP.__init__, dict(config=..., intermediate_size=None)),
        (F.liger_rms_norm, dict(X=..., W=..., eps=..., offset=0.0, casting_mode="llama", in_place=True)),
        (
            F.liger_fused_add_rms_norm,
            dict(X=..., R=..., W=..., eps=..., offset=0.0, casting_mode="llama", in_place=True),
        ),
        (F.liger_swiglu, dict(a=..., b=...)),
        (F.liger_rope, dict(q=..., k=..., cos=..., sin=..., **ROPE)),
        (F.liger_qwen2vl_mrope, dict(q=..., k=..., cos=..., sin=..., mrope_section=..., unsqueeze_dim=1)),
    ],
)
def test_signatures(function, expected):
    assert list(parameters(function).items()) == list(expected.items())


def test_functional_loss_argument_order():
    assert list(parameters(F.liger_cross_entropy))[:8] == [
        "input",
        "target",
        "weight",
        "size_average",
        "ignore_index",
        "reduce",
        "reduction",
        "label_smoothing",
    ]
    assert list(parameters(F.liger_fused_linear_cross_entropy))[:5] == [
        "input",
        "weight",
        "target",
        "bias",
        "ce_weight",
    ]


def test_patching_signatures():
    patching = pytest.importorskip("liger_kernel.transformers.monkey_patch", reason="needs transformers")
    standard = dict(rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True)
    assert parameters(patching.apply_liger_kernel_to_llama) == dict(**standard, model=None)
    assert parameters(patching._patch_rms_norm_module) == dict(
        module=..., offset=0.0, eps=1e-6, casting_mode="llama", in_place=True, row_mode=None
    )
    assert parameters(patching.revert_liger_kernel) == dict(model=None)
    from liger_kernel.transformers.model import llama

    names = list(parameters(llama.lce_forward))
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[-3:] == ["logits_to_keep", "skip_logits", "kwargs"]
    assert {"labels", "cache_position", "return_dict", "output_attentions"} <= set(names)
