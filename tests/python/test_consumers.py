"""Programs that only import what they might use go on: the import lines of the packages that use this one."""

from __future__ import annotations

import importlib

import own_process
import pytest

# (who imports it, module, names)
LINES = [
    ("transformers", "liger_kernel.transformers", "_apply_liger_kernel_to_instance"),
    ("transformers", "liger_kernel.transformers.trainer_integration", "_apply_liger_kernel"),
    ("trl", "liger_kernel.chunked_loss", "LigerFusedLinearDPOLoss"),
    ("trl", "liger_kernel.chunked_loss", "LigerFusedLinearKTOLoss"),
    ("trl", "liger_kernel.chunked_loss", "LigerFusedLinearGRPOLoss"),
    ("trl", "liger_kernel.chunked_loss", "LigerFusedLinearJSDLoss"),
    ("axolotl", "liger_kernel.chunked_loss.fused_linear_distillation", "LigerFusedLinearDistillationBase"),
    ("axolotl", "liger_kernel.ops.fused_linear_cross_entropy", "fused_linear_cross_entropy_forward"),
    ("axolotl", "liger_kernel.ops.utils", "calculate_settings compare_version ensure_contiguous torch_to_triton_dtype"),
    ("axolotl", "liger_kernel.utils", "PEFT_AVAILABLE is_npu_available"),
    ("axolotl", "liger_kernel.transformers", "functional apply_liger_kernel_to_llama"),
    ("axolotl", "liger_kernel.transformers.functional", "liger_cross_entropy liger_fused_linear_cross_entropy"),
    ("axolotl", "liger_kernel.transformers.cross_entropy", "LigerCrossEntropyLoss"),
    ("axolotl", "liger_kernel.transformers.fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyLoss"),
    ("axolotl", "liger_kernel.transformers.layer_norm", "LigerLayerNorm"),
    ("axolotl", "liger_kernel.transformers.geglu", "LigerGEGLUMLP"),
    ("axolotl", "liger_kernel.transformers.rms_norm", "LigerRMSNorm LigerRMSNormForGemma4"),
    ("axolotl", "liger_kernel.transformers.rope", "liger_rotary_pos_emb"),
    ("axolotl", "liger_kernel.transformers.swiglu", "LigerSwiGLUMLP"),
    ("axolotl", "liger_kernel.transformers.model.loss_utils", "LigerForCausalLMLoss"),
    ("axolotl", "liger_kernel.transformers.monkey_patch", "MODEL_TYPE_TO_APPLY_LIGER_FN"),
    ("axolotl", "liger_kernel.transformers.trainer.orpo_trainer", "_FSDPForwardRedirection"),
]


@pytest.mark.parametrize(("module", "names"), [(module, names) for _, module, names in LINES])
def test_import_lines(module, names):
    if "monkey_patch" in module or "model." in module or "apply_" in names or "trainer_integration" in module:
        pytest.importorskip("transformers", reason="needs transformers")
    if ".trainer." in module:
        pytest.importorskip("trl", reason="needs trl")
    home = importlib.import_module(module)
    for name in names.split():
        getattr(home, name)


def test_trl_imports():
    pytest.importorskip("trl", reason="trl is not installed")
    said = own_process.output("-c", "from trl import DPOTrainer, GRPOTrainer, KTOTrainer, SFTTrainer; print('right')")
    assert said.strip().endswith("right")
