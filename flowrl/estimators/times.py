"""At which times a matching estimator looks: [N, M] draws, one stream of random numbers per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.math.random import normal, uniform

TIME_STREAM = 1002


@dataclass(frozen=True)
class GridTimes:
    """Times of the rollout's own grid, from its first ``fraction``; distinct while there are enough.

    ``stratified`` puts one draw in each of M equal parts (AWM), otherwise M are drawn without replacement
    (DiffusionNFT).
    ``skip`` leaves out the first times (1 = never pure noise).
    """

    fraction: float = 0.99
    skip: int = 0
    stratified: bool = False

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        steps = len(grid) - 1
        usable = grid[self.skip : max(self.skip + 1, int(steps * self.fraction))]
        if self.stratified:
            u = uniform(seeds, (count,), stream=TIME_STREAM)
            place = (torch.arange(count) + u) / count
            return usable[(place * len(usable)).long().clamp(max=len(usable) - 1)]
        repeats = -(-count // len(usable))
        order = uniform(seeds, (repeats, len(usable)), stream=TIME_STREAM).argsort(dim=-1)
        return usable[order.flatten(1)[:, :count]]


@dataclass(frozen=True)
class UniformTimes:
    """Stratified uniform on [low, high], then ``shift t / (1 + (shift - 1) t)`` towards noise for ``shift > 1``."""

    low: float = 0.0
    high: float = 1.0
    shift: float = 1.0

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        place = (torch.arange(count) + uniform(seeds, (count,), stream=TIME_STREAM)) / count
        return shifted(self.low + (self.high - self.low) * place, self.shift)


@dataclass(frozen=True)
class LogitNormalTimes:
    """``sigmoid(mean + std * normal)``, then shifted towards noise; the density SD3 was trained with
    (arXiv:2403.03206 §3.1)."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    low: float = 0.01

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        draw = normal(seeds, (count,), stream=TIME_STREAM, dtype=torch.float64)
        return shifted((self.mean + self.std * draw).sigmoid(), self.shift).clamp(min=self.low)


def shifted(t: Tensor, shift: float) -> Tensor:
    """``shift t / (1 + (shift - 1) t)``: the time shift of SD3."""
    return shift * t / (1 + (shift - 1) * t)


TimeDraw = GridTimes | UniformTimes | LogitNormalTimes
