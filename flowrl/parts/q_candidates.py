"""Losses of off-policy methods that choose among several chunks (`flowrl.estimators.q_candidates`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from flowrl.parts.q_learning import OffPolicyDefaults, check_discount, temporal_difference, told
from flowrl.types import Batch, Likelihood


@dataclass(frozen=True)
class Distilled(OffPolicyDefaults):
    """``L_flow + mean (Q(s, a) - r - gamma Q'(s', a'))^2``: the flow imitates what `OptimizedActions` made better, and
    critics learn. PA-RL (arXiv:2412.06685).

    gamma: per decision, so of a whole chunk.
    """

    gamma: float = 0.99

    def __post_init__(self) -> None:
        check_discount(self.gamma)

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        return told(likelihood, batch, self.gamma, "improvement")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return temporal_difference(likelihood, batch, self.gamma) - likelihood.logp


@dataclass(frozen=True)
class Edited(OffPolicyDefaults):
    """``L_flow + T log p(e) - Q(s, a + e) + T (H - H*) + mean (Q(s, a) - r - gamma Q'(s', a'))^2`` of what
    `EditedActions` measures: T in the second term and the entropy H in the fourth have no gradient, so that each
    trains one thing. EXPO (arXiv:2507.07986), whose editor learns as SAC's actor (arXiv:1812.05905) does.

    gamma: per decision, so of a whole chunk. Targets hold no entropy (``backup_entropy=False`` there).
    """

    gamma: float = 0.99

    def __post_init__(self) -> None:
        check_discount(self.gamma)

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        more = ("q_own", "temperature", "entropy_excess") if "q_own" in likelihood.extra else ()
        return told(likelihood, batch, self.gamma, *more)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        learned = temporal_difference(likelihood, batch, self.gamma) - likelihood.logp
        if "q_own" not in likelihood.extra:  # no edits
            return learned
        temperature = likelihood.need("temperature")
        edit = temperature.detach() * likelihood.need("edit_log_density") - likelihood.need("q_own")
        return learned + edit + temperature * likelihood.need("entropy_excess")
