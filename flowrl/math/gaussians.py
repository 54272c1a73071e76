"""Densities and divergences of diagonal Gaussians, reduced over the latent axes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from flowrl.devices import wide

Reduction = Literal["mean", "sum", "sqrt"]


def squared_norm(x: Tensor, lead: int) -> Tensor:
    """Sum of squares over all axes after the first ``lead``; accumulated in float64 (`flowrl.devices.wide`)."""
    # float32 sums over 1e5 elements lose the 1e-6 that clip ranges of 1e-5 are compared with
    return wide(x.flatten(lead)).square().sum(dim=-1)


def elements(x: Tensor, lead: int) -> int:
    """Number of elements of one latent."""
    return math.prod(x.shape[lead:])


def reduce_factor(reduction: Reduction, count: int) -> float:
    """What a sum over ``count`` elements is multiplied by: ``sum`` 1, ``mean`` 1/count, ``sqrt`` 1/sqrt(count).

    Image frameworks use ``mean``, which makes clip ranges depend on resolution and the expected ratio fall below 1;
    ``sum`` is the true log-density; ``sqrt`` keeps the spread of the log-ratio independent of resolution.
    """
    return {"sum": 1.0, "mean": 1 / count, "sqrt": 1 / math.sqrt(count)}[reduction]


def log_density(squared: Tensor, s: Tensor, count: int) -> Tensor:
    """``log N(x; mean, s^2 I)`` summed over ``count`` elements, from ``squared = sum (x - mean)^2 / s^2``."""
    return -0.5 * squared - count * (s.log() + 0.5 * math.log(2 * math.pi))


def kl_equal_variance(difference: Tensor, s: Tensor, lead: int) -> Tensor:
    """``KL(N(m1, s^2) || N(m2, s^2)) = sum (m1 - m2)^2 / (2 s^2)``."""
    return squared_norm(difference, lead) / (2 * s.double() ** 2)


def mean_square(x: Tensor, lead: int) -> Tensor:
    """Mean of squares over all axes after the first ``lead``, in float32 or better."""
    return x.flatten(lead).to(torch.promote_types(x.dtype, torch.float32)).square().mean(dim=-1)
