"""The generalized Jensen-Shannon divergence in torch, of x = log Q and y = log P: Lin 1991, "Divergence measures based on the Shannon
entropy", with the weights of arXiv:2306.13649, M = beta · P + (1 − beta) · Q."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST = -(2.0**100)  # e to it is 0, and differences are numbers


def above_mixture(x: Tensor, y: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """x − log M and y − log M, of finite x and y and a beta between 0 and 1: with the digits of x − y, however little one of the
    distributions weighs.

    Let A be that one, s its weight, B the other, and d = log A − log B. With l = log(1 + s · (e^d − 1)) log B is l below log M, and
    log A d − l above it. From `far` on s · e^d is 2^24 and more, and l grows as d does."""
    a_is_p = beta < 0.5
    small = beta if a_is_p else 1 - beta
    far = min(math.log(2.0**24) - math.log(small), 88.0)  # up to which e^d is a number
    apart = y - x if a_is_p else x - y
    near = apart.clamp(max=far)
    grown = (small * near.expm1()).log1p()
    a, b = near - grown, -((apart - far).clamp(min=0) + grown)
    return (b, a) if a_is_p else (a, b)


def values(x: Tensor, y: Tensor, beta: float) -> Tensor:
    """Of each element; with beta = 0 KL(P‖Q), with 1 KL(Q‖P). A factor that is 0 makes its term 0."""
    p = y.exp()
    # where e^x is 0 its derivative is too, against what it is multiplied by
    q = torch.where(x.exp() == 0, 0.0, x).exp() * (x.exp() != 0)
    if beta == 0:
        return _one_sided(p, y, x)
    if beta == 1:
        return _one_sided(q, x, y)
    of_q, of_p = above_mixture(x.clamp(min=LOWEST), y.clamp(min=LOWEST), beta)
    return beta * p * of_p + (1 - beta) * q * of_q


def _one_sided(factor: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """factor · (a − b), and 0 where the factor is, without a derivative there."""
    nothing = factor == 0
    return torch.where(nothing, 0.0, factor * (torch.where(nothing, 0.0, a) - torch.where(nothing, 0.0, b)))


__all__ = ["LOWEST", "above_mixture", "values"]
