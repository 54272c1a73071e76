"""Actions of a Gaussian policy: its mean, and noise of the deviation that it has learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flowrl.math.random import normal
from flowrl.types import Condition, Draw, Rollout

ACTION_NOISE = 0  # stream of a decision's seed


@dataclass(frozen=True, kw_only=True)
class GaussianSampler:
    """``a = mean(s) + exp(log_std) z``. Evaluation acts by the mean alone (``noise=False``)."""

    family: ClassVar[str] = "control"
    noise: bool = True

    @property
    def forwards(self) -> int:
        return 1

    @property
    def recorded(self) -> int:
        return 1

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> GaussianSampler:
        """By the mean. Raises `ValueError` for options of other samplers."""
        if steps is not None or guidance is not None or temperature is not None:
            raise ValueError("a Gaussian policy acts by its mean: it has no steps, guidance or temperature; remove it")
        return GaussianSampler(noise=False)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        mean, log_std = policy.gaussian(condition)
        if self.noise:
            z = normal(draw.seeds, policy.latent_shape, stream=ACTION_NOISE, device=mean.device)
            mean = mean + log_std.exp() * z
        return Rollout.of(draw, condition, mean, forwards=len(draw))
