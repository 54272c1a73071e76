"""Likelihood and credit to a loss per decision [N, D]. Objectives never call a network and never reduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.types import Batch, Likelihood


@dataclass(frozen=True)
class ScoreFunction:
    """``-A log p``: REINFORCE; with positive credit, weighted maximum likelihood (RWR, RAFT)."""

    coupled: ClassVar[bool] = False
    idle_at_zero: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    @property
    def bounds(self) -> None:
        return None

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return -batch.advantage * likelihood.logp


@dataclass(frozen=True)
class Clipped:
    """``max(-A rho, -A clip(rho, 1 - low, 1 + high))`` with ``rho = exp(log p - log p_old)``. PPO (arXiv:1707.06347)
    eq. 7."""

    low: float = 0.2
    high: float = 0.2
    coupled: ClassVar[bool] = False
    idle_at_zero: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return _clipped(likelihood.logp - batch.old.logp, batch.advantage, self.low, self.high)


@dataclass(frozen=True)
class ClippedMean:
    """PPO's clip on one ratio per sample, ``exp(mean over decisions of the log-ratio)``. FPO (arXiv:2507.21053).

    Averaging before the exponential is what FPO's code does; exponentiating each draw first is biased upwards
    (Jensen) and is
    `Clipped`. Couples the decisions of a sample.
    """

    low: float = 0.05
    high: float = 0.05
    coupled: ClassVar[bool] = True
    idle_at_zero: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        log_ratio = (likelihood.logp - batch.old.logp).mean(dim=1, keepdim=True)
        return _clipped(log_ratio.expand_as(likelihood.logp), batch.advantage, self.low, self.high)


def _clipped(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))


@dataclass(frozen=True)
class ImplicitPair:
    """``a / b (r L+ + (1 - r) L-)`` with ``r = clip(A / a, -1, 1) / 2 + 1/2``, ``a = max_advantage``. DiffusionNFT
    (arXiv:2509.16117).

    ``L+-`` come from `ContrastedMatching` with the same ``strength`` b. Affine in r; at the old policy its gradient
    is that of
    advantage-weighted matching for every b, and the rest is a trust region of strength b around the old policy.
    """

    strength: float = 1.0
    max_advantage: float = 5.0
    coupled: ClassVar[bool] = False
    idle_at_zero: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    @property
    def bounds(self) -> None:
        return None

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        good = (batch.advantage / self.max_advantage).clamp(-1, 1) / 2 + 0.5
        pair = good * likelihood.logp + (1 - good) * likelihood.need("logp_against")
        return -self.max_advantage / self.strength * pair
