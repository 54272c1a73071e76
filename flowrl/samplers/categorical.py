"""Actions of a policy that chooses among n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flowrl.math.masking import draw_choices
from flowrl.samplers.gaussian import ACTION_NOISE
from flowrl.types import Condition, Draw, Rollout


@dataclass(frozen=True, kw_only=True)
class CategoricalSampler:
    """One choice for every action of a chunk, drawn by one uniform number through the inverse distribution function.
    Evaluation takes the likeliest (``noise=False``)."""

    family: ClassVar[str] = "control"
    noise: bool = True

    @property
    def forwards(self) -> int:
        return 1

    @property
    def recorded(self) -> int:
        return 1

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> CategoricalSampler:
        """The likeliest choice. Raises `ValueError` for options of other samplers."""
        if steps is not None or guidance is not None or temperature is not None:
            raise ValueError(
                "a categorical policy acts by its likeliest choice: it has no steps, guidance or temperature; remove it"
            )
        return CategoricalSampler(noise=False)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        final = draw_choices(policy.choices(condition), draw.seeds if self.noise else None, ACTION_NOISE)
        return Rollout.of(draw, condition, final, forwards=len(draw))
