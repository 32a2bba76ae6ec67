"""What the tests of distillation losses on a head share: budgets of their gradients, and what every such Function owes."""

from __future__ import annotations

import sys

import own_process
import pytest
import torch
from reference import DTYPES, unit


def within(actual, expected, size, roundings, dtype, terms, floor=0.0):
    """Each element of a gradient is a sum whose terms add up to `size` in magnitude. Terms err by `roundings` roundings to dtype,
    their sum in f32 by a walk of as many steps, the result by its own rounding, of a subnormal number of float16 half a step;
    `floor`: what such steps of terms add up to."""
    assert actual.shape == expected.shape
    budget = (roundings * unit(dtype) + (8 + terms**0.5) * unit(torch.float32)) * size + floor
    own = (unit(actual.dtype) * expected.abs()).clamp(min=step_of(actual.dtype) / 2)
    excess = (actual.detach().cpu().double() - expected).abs() - budget - own
    assert not actual.isnan().any() and (not excess.numel() or excess.max() <= 0), (
        f"beyond the budget by {excess.max():.3g}"
    )


def sizes(dlogits, x, weight):
    """Of dx and dweight, from what an element of the gradient of the logits is the difference of."""
    return dlogits @ weight.abs(), dlogits.t() @ x.abs()


def subnormal_steps(dtype, of_rows, weight, x):
    """Half a step of float16 for each element of the logits' gradient, before it is divided among `of_rows` rows."""
    step = 2.0**-25 / of_rows if dtype is torch.float16 else 0.0
    return step * weight.abs().sum(0).max().item(), step * x.abs().sum(0).max().item()


def step_of(dtype):
    """Between two subnormal numbers, where they matter: gradients of float16 are that small."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps if dtype is torch.float16 else 0.0


def several_backwards(loss, leaves):
    """The same gradients from a graph that is kept; a scaled upstream scales them; no second derivative."""
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    double = torch.autograd.grad(loss, leaves, torch.tensor(2.0, device=loss.device), retain_graph=True)
    for d, k in zip(double, kept):
        step = step_of(k.dtype)
        assert (d - 2 * k).abs().max() <= step
    again = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, again, kept)) and all(map(torch.equal, first, kept))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(loss, leaves, create_graph=True)


def what_is_trained(apply, module, operator, x, weight, at):
    """Gradients that nobody asked for have no buffer; the others do not depend on it. `apply(x, weight)`; the results stand
    at these places of the library's call."""
    full = torch.autograd.grad(apply(x, weight), (x, weight))
    seen = []
    native = getattr(module._native, operator)

    def spy(*args):
        seen.append([args[i] is not None and args[i] is not module.Wish.NOTHING for i in at])
        return native(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._native, operator, spy)
        for trained in ((True, True), (True, False), (False, True), (False, False)):
            given = [t.detach().requires_grad_(need) for t, need in zip((x, weight), trained)]
            loss = apply(*given)
            assert loss.requires_grad is any(trained) and seen[-1] == list(trained)
            if any(trained):
                loss.backward()
            for t, need, expected in zip(given, trained, full):
                assert torch.equal(t.grad, expected) if need else t.grad is None
        with torch.no_grad():
            assert not apply(x, weight).requires_grad and seen[-1] == [False, False]


def save_each(loss_of):
    """What a program for chunks_of_any_size does: `loss_of(x, weight)` in each dtype. Returns operands to ask for a chunk's rows."""
    device, folder = sys.argv[1:]
    torch.manual_seed(0)
    for dtype in DTYPES:
        x = torch.randn(700, 16, device=device).to(dtype).requires_grad_()
        weight = (0.2 * torch.randn(2051, 16, device=device)).to(dtype).requires_grad_()
        loss = loss_of(x, weight)
        gradients = torch.autograd.grad(loss, (x, weight), torch.tensor(0.5, device=device))
        torch.save([loss, *gradients], f"{folder}/{str(dtype)[6:]}.pt")
    return x, weight


def chunks_of_any_size(program, device, tmp_path):
    """The budget for logits is read when the library is set up, so each budget has a process of its own. The program gets the
    device and a folder, where it saves [loss, dx, dweight] of each dtype, and prints the rows of a chunk."""
    rows = {}
    for budget in ("1", "1024"):
        (tmp_path / budget).mkdir()
        said = own_process.output("-c", program, device.type, str(tmp_path / budget), LIGER_LOSS_WORKSPACE_MB=budget)
        rows[budget] = int(said.split()[-1])
    assert rows["1"] < 700 <= rows["1024"]
    for dtype in DTYPES:
        few, many = (torch.load(tmp_path / b / f"{str(dtype)[6:]}.pt") for b in ("1", "1024"))
        for a, b in zip(few, many):
            scale = b.double().abs().max()
            budget = (2 * unit(dtype) + 40 * unit(torch.float32)) * scale + step_of(a.dtype)
            assert (a.double() - b.double()).abs().max() <= budget
