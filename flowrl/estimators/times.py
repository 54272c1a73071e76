"""At which times a matching estimator looks: [N, M] draws, one stream of random numbers per sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from flowrl.math.random import normal, uniform
from flowrl.types import IncompatibleError

Times = TypeVar("Times", Tensor, float)

TIME_STREAM = 1002
NOISE_TIME = 0.02
"""Below this time a matching error tells next to nothing of the policy, unless its weight vanishes with t: the right
velocity is -x whatever the data are, the rest of the error is noise that the network cannot see, and a change of
velocity moves the picture by t times it only. Unweighted, its gradient is the largest of all times nevertheless (shapes
world, weight (1-t)^2: 0.33 at t = 0.001, 0.21 at 0.14, 0.04 and less above 0.4)."""


class TimeDraw(Protocol):
    """A law of times."""

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        """[N, count] times, where ``grid`` [T + 1] are those of the sampler and ``seeds`` [N] one stream per sample."""
        ...

    def share_below(self, limit: float, grid: Tensor) -> float:
        """The share of draws below ``limit``."""
        ...


@dataclass(frozen=True)
class GridTimes:
    """Times of the rollout's own grid, from its first ``fraction``; distinct while there are enough.

    ``stratified`` takes one index from each of M parts, between the whole parts of M + 1 evenly spaced bounds (AWM),
    otherwise M are drawn without replacement (DiffusionNFT).
    ``skip`` leaves out the first times (1 = never pure noise), ``least`` those below it (see `NOISE_TIME`).
    """

    fraction: float = 0.99
    skip: int = 0
    stratified: bool = False
    least: float = 0.0

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        usable = self.usable(grid)
        if self.stratified:
            # the bounds count from the grid's start: skipping moves the parts, as in AWM's discrete_wo_init
            end = self.skip + len(usable)
            bounds = torch.linspace(self.skip, end, count + 1, dtype=torch.float64).long() - self.skip
            width = (bounds[1:] - bounds[:-1]).double()
            u = uniform(seeds, (count,), stream=TIME_STREAM)
            return usable[bounds[:-1] + (u * width).long()]
        repeats = -(-count // len(usable))
        order = uniform(seeds, (repeats, len(usable)), stream=TIME_STREAM).argsort(dim=-1)
        return usable[order.flatten(1)[:, :count]]

    def usable(self, grid: Tensor) -> Tensor:
        """The times of a grid [T + 1] that may be drawn."""
        steps = len(grid) - 1
        chosen = grid[self.skip : max(self.skip + 1, int(steps * self.fraction))]
        chosen = chosen[chosen >= self.least]
        if not len(chosen):
            raise IncompatibleError(
                f"no time of the sampler's grid is left: lower times.least={self.least} or times.skip"
            )
        return chosen

    def share_below(self, limit: float, grid: Tensor) -> float:
        """The share of draws below ``limit``, for a grid [T + 1]."""
        return float((self.usable(grid) < limit).double().mean())


@dataclass(frozen=True)
class LastTime:
    """The last time of the sampler's grid before 0, in every draw (DRaFT-LV)."""

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        return grid[-2].expand(len(seeds), count)

    def share_below(self, limit: float, grid: Tensor) -> float:
        """1 where that time is below ``limit``."""
        return float(grid[-2] < limit)


@dataclass(frozen=True)
class UniformTimes:
    """Stratified uniform on [low, high], then ``shift t / (1 + (shift - 1) t)`` towards noise for ``shift > 1``.

    tilt: a density in proportion to ``(t - low)^tilt`` instead (before the shift): 1 looks at noisy times more (RAM).
    """

    low: float = 0.0
    high: float = 1.0
    shift: float = 1.0
    tilt: float = 0.0

    def __post_init__(self) -> None:
        if not self.tilt >= 0:
            raise ValueError(f"tilt={self.tilt} gives the cleanest times an infinite density; use 0 for an even one")

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        place = (torch.arange(count) + uniform(seeds, (count,), stream=TIME_STREAM)) / count
        place = place if not self.tilt else place ** (1 / (1 + self.tilt))
        return shifted(self.low + (self.high - self.low) * place, self.shift)

    def share_below(self, limit: float, grid: Tensor) -> float:
        """The share of draws below ``limit``."""
        place = (shifted(limit, 1 / self.shift) - self.low) / max(self.high - self.low, 1e-12)
        return min(max(place, 0.0), 1.0) ** (1 + self.tilt)


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

    def share_below(self, limit: float, grid: Tensor) -> float:
        """The share of draws below ``limit``; all of the lower tail lies at ``low``."""
        if limit <= self.low:
            return 0.0
        t = shifted(limit, 1 / self.shift)
        return NormalDist(self.mean, self.std).cdf(math.log(t / (1 - t)))


@dataclass(frozen=True)
class TrainingTimes:
    """An even draw of the noise levels of Stable Diffusion's training, ``index`` of ``count`` with a scaled-linear beta
    from ``first`` to ``last``, as times ``sqrt(1 - a) / (sqrt(a) + sqrt(1 - a))``. Not an even draw of t: quantiles
    .05, .25, .5, .75 and .95 are .18, .41, .62, .80 and .92. Diffusion-DPO, Diffusion-KTO and DSPO on SD1.5 and SDXL.

    indices: draw from these instead of all, such as (249, 499, 749, 999) for SDXL-turbo.
    """

    count: int = 1000
    first: float = 0.00085
    last: float = 0.012
    indices: tuple[int, ...] = ()
    start: int = 0
    """The first index that is drawn."""
    stop: int | None = None
    """The index behind the last one that is drawn; ``None``: ``count``."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < (self.count if self.stop is None else self.stop) <= self.count:
            raise ValueError(f"start={self.start}, stop={self.stop} is no range of {self.count} indices")
        if any(not 0 <= index < self.count for index in self.indices):
            raise ValueError(f"indices={list(self.indices)} should be from 0 to {self.count - 1}")

    def __call__(self, count: int, grid: Tensor, seeds: Tensor) -> Tensor:
        times = self.times()
        return times[(uniform(seeds, (count,), stream=TIME_STREAM) * len(times)).long()]

    def times(self) -> Tensor:
        """[K] float64, all that may be drawn."""
        beta = torch.linspace(self.first**0.5, self.last**0.5, self.count, dtype=torch.float64) ** 2
        a = (1 - beta).cumprod(dim=0)
        every = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())
        return every[list(self.indices)] if self.indices else every[self.start : self.stop]

    def share_below(self, limit: float, grid: Tensor) -> float:
        """The share of draws below ``limit``."""
        return float((self.times() < limit).double().mean())


def shifted(t: Times, shift: float) -> Times:
    """``shift t / (1 + (shift - 1) t)``: the time shift of SD3, whose inverse has shift ``1 / shift``."""
    return shift * t / (1 + (shift - 1) * t)
