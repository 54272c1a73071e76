"""Chunks of actions as a control policy is deployed that acts with networks beside its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from flowrl.math.random import normal
from flowrl.samplers.flow import INITIAL_NOISE
from flowrl.types import Acting, Condition, Draw, Rollout


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A chunk by the rule that the algorithm's estimator gives the policy (`flowrl.types.Acting`), of ``temperature``
    times noise: in training, in evaluation and behind ``select_action`` it is one and the same."""

    family: ClassVar[str] = "control"
    temperature: float = 1.0

    @property
    def forwards(self) -> int:
        return 1

    @property
    def recorded(self) -> int:
        return 1

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Deployed:
        """The same. Raises `ValueError` for options of other samplers."""
        if steps is not None or guidance is not None:
            raise ValueError("a policy that acts with networks beside its own has no steps or guidance; remove it")
        return self if temperature is None else replace(self, temperature=temperature)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        acting = policy.config.acting or Acting()
        shape = (acting.noises, *policy.latent_shape)
        z = self.temperature * normal(draw.seeds, shape, stream=INITIAL_NOISE, device=policy.device)
        return Rollout.of(draw, condition, policy.act(condition, z), forwards=len(draw) * acting.candidates)
