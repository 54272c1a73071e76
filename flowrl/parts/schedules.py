"""Coefficients that follow the iteration alone (`flowrl.types.Coefficient`). The algorithm's own value, that of the
first iteration, should be theirs at 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From ``start`` to ``end`` in ``iterations``, and ``end`` from then on."""

    sets: str
    start: float
    end: float
    iterations: int

    def __post_init__(self) -> None:
        _check(iterations=self.iterations)

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        return self.start + (self.end - self.start) * min(iteration / self.iterations, 1.0)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """From 0 in a line to ``peak`` in ``warmup`` iterations, then by half a cosine to ``valley`` in ``decay`` more:
    CHORD's weight of demonstrations (arXiv:2508.11408)."""

    sets: str
    peak: float
    valley: float
    warmup: int = 0
    decay: int = 100

    def __post_init__(self) -> None:
        _check(decay=self.decay)
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup} iterations cannot be; give 0 for none")

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        if iteration < self.warmup:
            return self.peak * iteration / self.warmup
        done = min((iteration - self.warmup) / self.decay, 1.0)
        return self.valley + (self.peak - self.valley) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, kw_only=True)
class HoldCosine:
    """``start`` for the first ``hold`` iterations, then by half a cosine to ``end`` in ``decay`` more: ReinFlow's upper
    bound of the noise (ReinFlow/ReinFlow, util/scheduler_simple.py)."""

    sets: str
    start: float
    end: float
    hold: int
    decay: int

    def __post_init__(self) -> None:
        _check(decay=self.decay)
        if self.hold < 0:
            raise ValueError(f"hold={self.hold} iterations cannot be; give 0 for none")

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        done = min(max(iteration - self.hold, 0) / self.decay, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


def _check(**iterations: int) -> None:
    for name, value in iterations.items():
        if value < 1:
            raise ValueError(f"{name}={value} divides the iteration; give at least 1")
