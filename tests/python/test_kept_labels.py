"""The labels that a loss keeps for its backward: of any kind that its forward takes, and never changed unseen."""

from __future__ import annotations

import pytest
import torch

from liger_kernel.ops import LigerCrossEntropyFunction, LigerFusedLinearCrossEntropyFunction

LOSSES = ("cross_entropy", "linear_cross_entropy")


def loss_of(name, x, weight, target, way="apply"):
    """The mean, of whose gradients backward finds those that forward has formed."""
    if way == "apply" and name == "cross_entropy":
        return LigerCrossEntropyFunction.apply(x, target, None)[0]
    if way == "apply":
        return LigerFusedLinearCrossEntropyFunction.apply(x, weight, target)[0]
    flags = (False, False, False)
    if name == "cross_entropy":
        return torch.ops.liger.cross_entropy(x, target, None, -100, 0.0, 0.0, 1, 0.0, *flags, True)[0]
    numbers = (-100, 0.0, 0.0, 1, 0.0, False, 0, False)
    return torch.ops.liger.linear_cross_entropy(x, weight, target, *(None,) * 3, *numbers, *flags, True, True, False)[0]


def operands(device):
    x = torch.randn(5, 16, device=device, requires_grad=True)
    weight = torch.randn(9, 16, device=device, requires_grad=True)
    return x, weight, torch.tensor([1, -100, 3, 0, -100], device=device)


class Labels(torch.Tensor):
    """A name, as torch.nn.Parameter is one: what is made of it are plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl


# As in test_reuse.py.
REUSES = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")


@pytest.mark.parametrize("way", ["apply", "operator"])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_inference_mode(device, name, way):
    x, weight, target = operands(device)
    with torch.inference_mode():
        made_there = target.clone()
    loss_of(name, x, weight, target, way).backward()
    expected, x.grad = x.grad, None
    loss_of(name, x, weight, made_there, way).backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("kind", [torch.Tensor, Labels])
@pytest.mark.parametrize("way", ["apply", "operator"])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_are_changed_before_backward(device, name, way, kind):
    x, weight, target = operands(device)
    loss = loss_of(name, x, weight, target.as_subclass(kind), way)
    target.fill_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_a_subclass_cost_no_copy(device, name):
    """The gradient that forward has formed is what backward answers, in the same memory."""
    x, weight, target = operands(device)
    loss = loss_of(name, x, weight, target.as_subclass(Labels))
    formed = loss.grad_fn.saved_tensors[0].data_ptr()
    loss.backward(torch.tensor(3.0, device=device))
    assert (x.grad.data_ptr() == formed) is REUSES
