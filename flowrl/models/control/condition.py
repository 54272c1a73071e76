"""What a control policy is conditioned on: its observations, which a sampler tells it decision by decision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from flowrl.types import IncompatibleError


@dataclass(frozen=True)
class ControlCondition:
    """Of N rows. The prompts themselves speak through the environment, whose observations hold what they ask for."""

    rows: int
    observed: Tensor | None = None  # [N, history, o]

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: Tensor) -> ControlCondition:
        """Those of some rows [n]."""
        observed = None if self.observed is None else self.observed[rows]
        return ControlCondition(len(rows), observed)

    def seeing(self, observed: Tensor) -> ControlCondition:
        """With the observations [n, history, o] of as many decisions."""
        return replace(self, rows=len(observed), observed=observed)

    def need(self) -> Tensor:
        """The observations. Raises `IncompatibleError` where nobody told any."""
        if self.observed is None:
            raise IncompatibleError(
                "a control policy was asked without an observation; sample with EpisodeSampler, and estimate with "
                "PerDecision around the estimator"
            )
        return self.observed
