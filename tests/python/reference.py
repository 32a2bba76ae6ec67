"""What the operators are, in float64 and plain torch, and how far a result may be from it.

The references are differentiable, so they also say what every gradient is. None of them rounds anything: what an operator
rounds on purpose is counted by `roundings` of `assert_close`.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unit(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def apart(terms: int, sides: int = 2) -> float:
    """How far f32 sums of so many terms may be from each other, in parts of the sum of the terms' magnitudes: each rounds once
    for each of them. One side: from the exact sum."""
    return sides * terms * unit(torch.float32)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, roundings: float, terms: int = 1) -> None:
    """Each element is within `roundings` roundings to `dtype` plus the error of f32 sums of `terms` terms.

    Errors are measured against the largest element of the row, because gradients are differences of such elements. The
    error of a sum in f32 grows like a random walk, with the root of its terms; eight more are for its few operations.
    Results smaller than dtype's subnormal spacing are rounded to it.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    wide, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    scale = expected.abs().amax(-1, keepdim=True) if expected.dim() and expected.numel() else expected.abs()
    budget = roundings * unit(dtype) + (8 + terms**0.5) * unit(torch.float32)
    floor = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
    excess = (wide - expected).abs() - (budget * scale + floor)
    assert not wide.isnan().any(), "NaN"
    assert excess.numel() == 0 or excess.max() <= 0, (
        f"off by {(wide - expected).abs().max():.3g}, {((wide - expected).abs() / scale.clamp(min=1e-30)).max():.3g} of "
        f"the row's largest; the budget is {budget:.3g}"
    )


def twins(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same values in float64 on the CPU, as leaves."""
    return [
        None if t is None else t.detach().cpu().double().requires_grad_(t.requires_grad)
        if t.is_floating_point() else t.cpu()
        for t in tensors
    ]  # fmt: skip


def times(weight: Tensor, logarithm: Tensor) -> Tensor:
    """weight · logarithm, and 0 where the weight is."""
    return torch.where(weight > 0, weight * torch.where(weight > 0, logarithm, 0.0), 0.0)


def jensen_shannon(x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Elements of the divergence of Lin (1991) with the weights of arXiv:2306.13649, from x = log Q and y = log P. log M stands
    against that of the distribution that weighs most: where it is nearly all of M the difference would have no digits left."""
    p, q = y.exp(), x.exp()
    if beta in (0, 1):
        return times(p, y - x) if beta == 0 else times(q, x - y)
    if beta < 0.5:
        growth = torch.log1p(beta * (y - x).expm1())
        of_p, of_q = y - x - growth, -growth
    else:
        growth = torch.log1p((1 - beta) * (x - y).expm1())
        of_p, of_q = -growth, x - y - growth
    return beta * times(p, of_p) + (1 - beta) * times(q, of_q)


SKEW = [weight for small in (1e-3, 1e-4, 1e-6, 1e-12) for weight in (small, 1 - small)]


def unit_of_mixture(beta: float) -> float:
    """What the larger of P and Q is multiplied with in an element: a smaller weight below 2^-6, in a formula of its own."""
    smaller = min(beta, 1 - beta)
    return smaller if 0 < smaller < 2**-6 else 1.0


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0) -> Tensor:
    normal = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return normal if weight is None else normal * (weight + offset)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = min(x.shape[-1], cos.shape[-1]) // 2
    c, s = cos[..., :half], sin[..., :half]
    if c.dim() == 3:
        c, s = c.unsqueeze(1), s.unsqueeze(1)
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat((first * c - second * s, second * c + first * s, x[..., 2 * half :]), -1)


def swiglu(gate: Tensor, up: Tensor, gate_multiplier: float = 1.0, down_multiplier: float = 1.0) -> Tensor:
    return torch.nn.functional.silu(gate_multiplier * gate) * up * down_multiplier


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    token_scaling: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, z_loss, accuracy, predicted): one row after the other, as the definition reads."""
    vocab = logits.shape[1]
    w = torch.ones(vocab, dtype=torch.float64) if weight is None else weight
    valid = [i for i, y in enumerate(target.tolist()) if y != ignore_index]
    count = len(valid)
    weight_sum = sum(w[target[i]] for i in valid) if weight is not None else count
    losses, zs, hits, predicted = [], [], [], []
    for i, y in enumerate(target.tolist()):
        if i not in valid:
            losses.append(torch.zeros((), dtype=torch.float64))
            zs.append(losses[-1])
            hits.append(losses[-1])
            predicted.append(-1)
            continue
        x = logits[i] if softcap is None else softcap * torch.tanh(logits[i] / softcap)
        lse = torch.logsumexp(x, 0)
        smooth = label_smoothing / vocab * (w * (lse - x)).sum()
        loss, z = (1 - label_smoothing) * w[y] * (lse - x[y]) + smooth, lse_square_scale * lse**2
        if reduction == "mean":
            loss, z = loss / weight_sum, z / count
        factor = (x[y] - lse).exp().detach() if token_scaling else 1.0
        losses.append((loss + z) * factor)
        zs.append(z * factor)
        predicted.append(int(x.argmax()))
        hits.append(torch.tensor(float(predicted[-1] == y), dtype=torch.float64))
    loss, z, hit = (torch.stack(v) if v else torch.zeros(0, dtype=torch.float64) for v in (losses, zs, hits))
    if reduction != "none":
        loss, z, hit = loss.sum(), z.sum(), hit.sum() / count if count else hit.sum()
    return loss, z, hit, torch.tensor(predicted, dtype=torch.int64)
