"""What the tests of patching share. Needs transformers: a test file asks for it before it imports this one."""

from __future__ import annotations

import inspect
import logging

import pytest
import tiny_llama
import torch

from liger_kernel.transformers import apply_liger_kernel_to_llama, revert_liger_kernel
from liger_kernel.transformers.model import llama

ALL_OFF = dict(rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=False, swiglu=False)


def only(**flags):
    return {**ALL_OFF, **flags}


def is_fused(model):
    """Whether the model, or class, has the fused-loss forward."""
    return inspect.getsource(model.forward) == inspect.getsource(llama.lce_forward)


both_ways = pytest.mark.parametrize("way", ["class", "instance"])


def apply(build, way):
    """`build()`, patched: by its classes before it is built, or as an instance."""
    revert_liger_kernel()
    if way == "class":
        apply_liger_kernel_to_llama()
        return build()
    model = build()
    apply_liger_kernel_to_llama(model=model)
    return model


def pair(device="cpu", **changes):
    """(stock model, patched model) with equal weights; the patch is the fused forward alone, to isolate it."""
    stock, patched = tiny_llama.build(device, **changes), tiny_llama.build(device, **changes)
    apply_liger_kernel_to_llama(model=patched, **only(fused_linear_cross_entropy=True))
    return stock, patched


def assert_close(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_step(step, expected_step, tolerance=2e-5):
    """Of what `tiny_llama.run` answers: the losses and all gradients."""
    (output, gradients), (expected, expected_gradients) = step, expected_step
    assert_close(output.loss, expected.loss)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_trains_alike(patched, stock, tolerance=2e-5, device="cpu"):
    """The patched model's output, and its gradients, of one training step, after a comparison with the stock model's."""
    ids, labels = tiny_llama.batch(device)
    expected_step = tiny_llama.run(stock, input_ids=ids, labels=labels)
    step = tiny_llama.run(patched, input_ids=ids, labels=labels)
    assert_same_step(step, expected_step, tolerance)
    return step


def assert_as_stock(build, way, caplog, named=None, mode="train", **options):
    """A step of the patched model is one of the stock model. `named`: the one warning holds this word; None: no warning."""
    ids, labels = tiny_llama.batch()
    stock = getattr(build(), mode)()
    expected = tiny_llama.run(stock, input_ids=ids, labels=labels)
    patched = getattr(apply(build, way), mode)()
    step = tiny_llama.run(patched, input_ids=ids, labels=labels, **options)
    assert_same_step(step, expected, 1e-4)
    if named is None:
        assert warnings_of(caplog) == []
    else:
        assert any(named in text for text in warnings_of(caplog)), warnings_of(caplog)
    return step[0]


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("liger")]
