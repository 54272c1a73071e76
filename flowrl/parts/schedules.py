"""Weight sets that follow the live one, and how fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """Decay ``0`` until ``start`` optimiser steps, then ``slope`` per step, at most ``most``.

    DiffusionNFT's ``decay_type`` 0, 1 and 2 are ``Ramp(0, 0)``, ``Ramp(0.001, 0.5)`` and ``Ramp(0.0075, 0.999, 75)``.
    """

    slope: float = 0.001
    most: float = 0.5
    start: int = 0

    def __call__(self, steps: int) -> float:
        return 0.0 if steps < self.start else min(self.slope * (steps - self.start), self.most)


@dataclass(frozen=True)
class Follower:
    """After every iteration, ``name <- d name + (1 - d) live`` with ``d = decay(optimiser steps so far)``."""

    name: str
    decay: Ramp = Ramp()
