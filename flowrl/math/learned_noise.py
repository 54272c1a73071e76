"""Steps of a flow whose noise has a learned deviation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowrl.math.flow import ODE, mean_of


@dataclass(frozen=True)
class LearnedNoise(ODE):
    """Euler steps, and after each noise of a deviation from ``least`` to ``most`` that a policy has learned for every
    number. ``coefficients`` are those of the mean."""

    least: float = 0.1
    most: float = 0.24

    def step(self, x: Tensor, v: Tensor, level: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [n, ...] of the next state, where the velocity is v [n, ...] and the level of the noise
        between its least, 0, and its most, 1, is ``level`` [n, ...]; even levels are even in the logarithm.

        What samples and what measures both ask here, so that they have one range.
        """
        return mean_of(self, x, v, t, t_next), self.least * (self.most / self.least) ** level
