"""Coefficients with a state: how a number of the algorithm follows what was measured (`flowrl.types.Coefficient`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowrl.types import IncompatibleError


@dataclass(frozen=True)
class AdaptiveKL:
    """``value (1 + rate clip(metric / target - 1, -bound, bound))``: the weight of a divergence grows while it is above
    its target. Ziegler et al. (arXiv:1909.08593) section 2.2, whose rate .1 is per batch (TRL's
    ``AdaptiveKLController``: samples of a step over ``horizon``)."""

    target: float
    sets: str = "regularizers.0.weight"
    metric: str = "kl/reference"
    rate: float = 0.1
    bound: float = 0.2

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise ValueError(f"target={self.target} divides the divergence; give more than 0")

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        error = _measured(metrics, self.metric) / self.target - 1
        return value * (1 + self.rate * max(-self.bound, min(self.bound, error)))


@dataclass(frozen=True)
class Dual:
    """``clip(value + rate (metric - target), 0, most)``: the multiplier of a constraint ``metric <= target``, by dual
    ascent after every iteration."""

    target: float
    metric: str
    sets: str = "regularizers.0.weight"
    rate: float = 0.1
    most: float = 10.0

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        return max(0.0, min(self.most, value + self.rate * (_measured(metrics, self.metric) - self.target)))


@dataclass(frozen=True)
class Stepwise:
    """``value + step`` while a metric is below its target, ``value - step`` above, between ``least`` and ``most``: how
    Skywork-OR1 (arXiv:2505.22312) holds an entropy with the weight of its bonus, and a sampler's temperature may."""

    sets: str
    target: float
    metric: str = "entropy"
    step: float = 0.005
    least: float = 0.0
    most: float = 1.0

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        step = self.step if _measured(metrics, self.metric) < self.target else -self.step
        return max(self.least, min(self.most, value + step))


@dataclass(frozen=True)
class Smoothed:
    """``decay value + (1 - decay) metric``, where the iteration measured it, and the metric itself in iteration
    ``first``: a moving average that forgets where it started."""

    sets: str
    metric: str
    decay: float = 0.7
    first: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} of the value stays: give 0 or more, and less than 1")

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        if self.metric not in metrics:
            return value
        decay = 0.0 if iteration <= self.first else self.decay
        return decay * value + (1 - decay) * metrics[self.metric]


@dataclass(frozen=True)
class Renewal:
    """``value + 1``, the iterations since a weight set was last renewed, or 0 where a metric is above ``above`` or they
    become more than ``every``: then it is renewed, with `flowrl.parts.ema.AtAge`. GARDO's adaptive reference
    (arXiv:2512.24138; flow_grpo 94e23ee, ``kl_thres`` and ``reset_freq``)."""

    sets: str = "ema_weights.0.decay.age"
    metric: str = "kl/anchor"
    above: float = 3e-4
    every: int = 15

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} counts iterations without a renewal; give 1 or more")

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        age = value + 1
        return 0.0 if _measured(metrics, self.metric) > self.above or age > self.every else age


def _measured(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise IncompatibleError(f"a coefficient follows {name}, which this algorithm does not measure; choose another")
    return metrics[name]
