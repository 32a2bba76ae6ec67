"""What is wrong with a call is said in words, and in the names that the caller has written."""

from __future__ import annotations

import pytest
import torch
from test_operators import CASES, on
from torch import Tensor

from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction, LigerLayerNormFunction, LigerRMSNormFunction

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def with_one(args, position, value):
    return [value if i == position else a for i, a in enumerate(args)]


@every_case
@pytest.mark.parametrize("plain_torch", [False, True])
def test_tensors_without_dimensions(case, device, monkeypatch, plain_torch):
    """An operator or its formula that asks for a last dimension, or for the first, says that there is none."""
    monkeypatch.setattr(case.function, "_plain_torch", plain_torch)
    args = on(device, case.make(5))
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            scalar = with_one(args, position, value.detach().reshape(-1)[0])
            if case.name in ("softmax", "sparsemax"):  # of a scalar it is 1, as torch's
                assert case(*scalar)[0] == 1
                continue
            with pytest.raises(ValueError, match="dimension|shape"):
                case(*scalar)


def test_halves_without_dimensions(device):
    for apply in (LigerFusedGateUpSiLUMulFunction.apply, torch.compile(LigerFusedGateUpSiLUMulFunction.apply)):
        with pytest.raises(Exception, match="y has no dimensions") as caught:
            apply(torch.tensor(1.0, device=device))
        assert not isinstance(caught.value, IndexError)


@every_case
@pytest.mark.parametrize("plain_torch", [False, True])
def test_arguments_are_named_as_the_caller_names_them(case, device, monkeypatch, plain_torch):
    monkeypatch.setattr(case.function, "_plain_torch", plain_torch)
    args = on(device, case.make(5))
    for position, (name, value) in enumerate(zip(case.function.parameters, args)):
        if isinstance(value, Tensor) and value.is_floating_point() and name not in ("ce_weight",):
            with pytest.raises(ValueError, match=rf": {name} is torch.float64"):
                case(*with_one(args, position, value.double()))


def test_numbers_are_named_too():
    x, weight = torch.randn(2, 8), torch.ones(8)
    for apply in (LigerRMSNormFunction.apply, lambda x, w, eps: LigerLayerNormFunction.apply(x, w, w, eps)):
        with pytest.raises(ValueError, match="eps is -1, but must be 0 or more"):
            apply(x, weight, -1.0)
        with pytest.raises(TypeError, match="eps must be a float, not str"):
            apply(x, weight, "1")


def test_what_is_no_model_is_said_in_words():
    pytest.importorskip("transformers", reason="needs transformers")
    from liger_kernel.transformers import apply_liger_kernel, apply_liger_kernel_to_qwen3

    with pytest.raises(TypeError, match="apply_liger_kernel_to_qwen3.*nonsense.*it takes rope"):
        apply_liger_kernel_to_qwen3(nonsense=True)
    with pytest.raises(TypeError, match="apply_liger_kernel_to_qwen3: model must be a Hugging Face model, but Linear"):
        apply_liger_kernel_to_qwen3(model=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="apply_liger_kernel: model must be a Hugging Face model, but int"):
        apply_liger_kernel(3)
