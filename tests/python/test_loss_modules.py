"""The losses as modules and functions: results, arguments of other implementations, helpers."""

from __future__ import annotations

import copy
import inspect
import re
import warnings

import own_process
import pytest
import torch
from modules import HIDDEN, VOCAB, assert_close
from torch import nn

import liger_kernel.transformers as lk
import liger_kernel.transformers.functional as F
from liger_kernel.ops import (
    LigerFusedLinearCrossEntropyFunction,
    fused_add_rms_norm_backward,
    fused_add_rms_norm_forward,
    fused_linear_cross_entropy_forward,
    rms_norm_backward,
    rms_norm_forward,
)


def test_losses(device):
    x = torch.randn(9, HIDDEN, device=device)
    weight, bias = torch.randn(VOCAB, HIDDEN, device=device), torch.randn(VOCAB, device=device)
    target = torch.randint(0, VOCAB, (9,), device=device)
    target[2] = -100
    logits = x @ weight.T + bias
    expected = nn.functional.cross_entropy(logits, target)
    plain, fused = lk.LigerCrossEntropyLoss(), lk.LigerFusedLinearCrossEntropyLoss()
    assert_close(plain(logits, target), expected)
    assert_close(fused(weight, x, target, bias), expected)
    assert_close(F.liger_cross_entropy(logits, target), expected)
    assert_close(F.liger_fused_linear_cross_entropy(x, weight, target, bias), expected)
    rows = nn.functional.cross_entropy(logits, target, reduction="none")
    assert_close(lk.LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, x, target, bias), rows)
    assert_close(F.liger_cross_entropy(logits, target, reduction="sum"), rows.sum())


def test_extra_results(device):
    logits, target = torch.randn(9, VOCAB, device=device), torch.randint(0, VOCAB, (9,), device=device)
    best = logits.argmax(-1)
    result = F.liger_cross_entropy(logits, target, return_token_accuracy=True, return_predicted_tokens=True)
    assert isinstance(result, F.CrossEntropyOutput) and result.z_loss is None
    assert_close(result.token_accuracy, (best == target).float().mean())
    assert torch.equal(result.predicted_tokens, best)
    module = lk.LigerCrossEntropyLoss(return_token_accuracy=True)
    assert module(logits, target).predicted_tokens is None
    eye = torch.eye(VOCAB, device=device)
    fused = F.liger_fused_linear_cross_entropy(logits, eye, target, return_predicted_tokens=True)
    assert torch.equal(fused.predicted_tokens, best) and fused.token_accuracy is None


def test_arguments_of_other_implementations():
    x, weight, target = torch.randn(9, HIDDEN), torch.randn(VOCAB, HIDDEN, requires_grad=True), torch.arange(9)
    expected = F.liger_fused_linear_cross_entropy(x, weight, target)
    (gradient,) = torch.autograd.grad(expected, weight)
    assert LigerFusedLinearCrossEntropyFunction.supports_inner_impl_dispatch is True
    middle = (None, None, -100, 0.0, 0.0, "mean", None, False, None, False, False, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, *middle, "liger-c", None, 4)
    assert torch.equal(loss, expected) and torch.equal(torch.autograd.grad(loss, weight)[0], gradient)
    assert torch.equal(F.liger_fused_linear_cross_entropy(x, weight, target, chunk_mem_const=8), expected)
    with pytest.warns(UserWarning, match="fused_linear_cross_entropy.*'quick'"):
        LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, *middle, "quick", None, 1)
    for wrong in (0, -1, True, 1.0, "1", None):
        with pytest.raises(ValueError, match="chunk_mem_const must be a positive integer.*" + re.escape(repr(wrong))):
            F.liger_fused_linear_cross_entropy(x, weight, target, chunk_mem_const=wrong)
    helper = fused_linear_cross_entropy_forward
    assert list(inspect.signature(helper).parameters)[15:21] == [
        "ce_impl", "ce_mode", "token_grad_output", "compute_gradients", "weight_requires_grad", "chunk_mem_const",
    ]  # fmt: skip
    assert torch.equal(helper(x, weight, target, ce_impl="liger-c", chunk_mem_const=2)[5], gradient)


SUMS = """
import sys, torch
from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as loss
device, cuda, rows = sys.argv[1], sys.argv[1] == "cuda", int(sys.argv[2])
torch.manual_seed(0)
x, weight = torch.randn(rows, 128), torch.randn(4096, 128) * 2 * 128**-0.5
x, weight, target = (t.to(device) for t in (x.bfloat16(), weight.bfloat16(), torch.randint(0, 4096, (rows,))))
exact = weight.double().requires_grad_()
torch.nn.functional.cross_entropy(x.double() @ exact.T, target).backward()
for dtype in (torch.float32, torch.bfloat16) * 2:
    w = weight.clone().requires_grad_()
    before = torch.cuda.memory_allocated() if cuda else 0
    cuda and torch.cuda.reset_peak_memory_stats()
    loss(x.clone().requires_grad_(), w, target, accum_dtype=dtype).backward()
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    print(float((w.grad.double() - exact.grad).norm() / exact.grad.norm()), peak)
"""


@pytest.mark.parametrize("budget, rows", [(1, 2048), (2, 4096)])
def test_sums_in_bf16(device, budget, rows):
    """16 chunks: what the docstring of the module says of the error, and no f32 copy of the weight's size, which a budget of
    1 MB does not hold: then it is two passes that round once."""
    program = ("-c", SUMS, device.type, str(rows))
    said = own_process.output(*program, LIGER_LOSS_WORKSPACE_MB=str(budget)).splitlines()[2:]
    (wide, wide_peak), (lean, lean_peak) = ([float(number) for number in line.split()] for line in said)
    assert wide < 2.2e-3 and 1.5 * wide < lean < 3 * wide
    if device.type == "cuda" and budget == 2:
        assert wide_peak - lean_peak > 0.9 * 4096 * 128 * 2


def test_backward_helpers_leave_out_what_is_not_needed():
    x, weight, up = torch.randn(5, HIDDEN), torch.randn(HIDDEN), torch.randn(5, HIDDEN)
    y, flat, rstd, block, warps, casting = rms_norm_forward(x, weight, 1e-6, 0.0, "llama", None)
    arguments = (up, flat, weight, rstd, 0.0, casting, block, warps, False, None)
    (dx, dweight), (alone, nothing) = rms_norm_backward(*arguments), rms_norm_backward(*arguments, False)
    assert nothing is None and torch.equal(alone, dx)
    assert torch.equal(rms_norm_backward(*arguments, None)[1], dweight)
    y, total, rstd, block, warps, stages, casting = fused_add_rms_norm_forward(x, up, weight, 1e-6, 0.0, "llama")
    arguments = (up, x, total, weight, rstd, 0.0, casting, block, warps, stages, False)
    both, alone = fused_add_rms_norm_backward(*arguments), fused_add_rms_norm_backward(*arguments, needs_dw=False)
    assert both[2] is not None and alone[2] is None
    assert torch.equal(alone[0], both[0]) and torch.equal(alone[1], both[1])


@pytest.mark.parametrize("cls", [lk.LigerCrossEntropyLoss, lk.LigerFusedLinearCrossEntropyLoss])
def test_loss_options_are_checked(cls):
    for wrong in (dict(label_smoothing=1.5), dict(label_smoothing=-0.1), dict(reduction="avg"), dict(softcap=0.0)):
        with pytest.raises(AssertionError):
            cls(**wrong)


@pytest.mark.parametrize(
    ("cls", "name"), [(lk.LigerCrossEntropyLoss, "weight"), (lk.LigerFusedLinearCrossEntropyLoss, "ce_weight")]
)
def test_class_weights_move_with_their_module_and_stay_out_of_checkpoints(cls, name):
    given = torch.rand(3)
    parent = nn.Sequential(cls(**{name: given}))
    assert torch.equal(getattr(parent[0], name), given) and getattr(cls(), name) is None
    assert not parent.state_dict() and not list(parent.parameters())
    parent.load_state_dict({})
    assert torch.equal(getattr(copy.deepcopy(parent)[0], name), given)
    assert getattr(parent.to(torch.float64)[0], name).dtype is torch.float64
    assert getattr(parent.to("meta")[0], name).device.type == "meta"
