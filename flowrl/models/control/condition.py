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
    done: Tensor | None = None
    """[N, past, d] the actions executed last, standardised, the newest last; NaN before the first one."""
    label: Tensor | None = None
    """[N] int64 what the network hears besides, 0 for nothing; ``None`` leaves it to the guidance."""

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: Tensor) -> ControlCondition:
        """Those of some rows [n]."""
        parts = {"observed": self.observed, "done": self.done, "label": self.label}
        return ControlCondition(len(rows), **{k: None if v is None else v[rows] for k, v in parts.items()})

    def seeing(self, observed: Tensor, done: Tensor | None = None) -> ControlCondition:
        """With the observations [n, history, o] of as many decisions, and the actions before them [n, past, d]."""
        return ControlCondition(len(observed), observed, done)

    def hearing(self, label: Tensor) -> ControlCondition:
        """With labels [N]."""
        return replace(self, label=label)

    def need(self) -> Tensor:
        """The observations. Raises `IncompatibleError` where nobody told any."""
        if self.observed is None:
            raise IncompatibleError(
                "a control policy was asked without an observation; sample with EpisodeSampler, and estimate with "
                "PerDecision around the estimator"
            )
        return self.observed
