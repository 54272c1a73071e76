"""An algorithm is a record of parts; a preset is a function that returns one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowrl.parts.aggregations import SampleMean
from flowrl.parts.ema import EmaWeights
from flowrl.parts.loss_weights import Uniform
from flowrl.parts.regularizers import ValueLoss
from flowrl.parts.selections import AllSamples
from flowrl.types import (
    Advantage,
    Aggregation,
    Estimator,
    LossWeight,
    Objective,
    Regularizer,
    Sampler,
    Selection,
    TokenAdvantage,
)

Family = Literal["diffusion", "masked", "causal"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What to do with samples and their scores. Frozen: a variant is ``dataclasses.replace`` of another."""

    sampler: Sampler
    estimator: Estimator
    advantage: Advantage
    objective: Objective
    token_advantage: tuple[TokenAdvantage, ...] = ()
    """How the advantage of a sample is spread over its decisions; by default each gets all of it."""
    selection: Selection = AllSamples()
    loss_weight: LossWeight = Uniform()
    regularizers: tuple[Regularizer, ...] = ()
    aggregation: Aggregation = SampleMean()
    behaviour: Literal["live", "old"] = "live"
    """The weight set that samples."""
    ema_weights: tuple[EmaWeights, ...] = ()
    redraw: bool = False
    """Draw the estimator's probes anew for every epoch over the samples, instead of once."""
    mask_truncated_completions: bool = False
    """Completions that were cut at the sampler's length leave the loss and its mean; rewards, advantage and statistics
    keep them (DAPO's overlong filtering, arXiv:2503.14476 section 3.4; TRL's ``mask_truncated_completions``)."""
    min_group: int = 2
    """The smallest group the advantage is defined for."""
    families: tuple[Family, ...] = ("diffusion",)

    @property
    def references(self) -> tuple[str, ...]:
        """Weight sets that regularizers and objective compare the live one with."""
        named = [r.to for r in self.regularizers if r.weight > 0]
        return tuple(dict.fromkeys(name for name in (*named, self.objective.reference) if name))

    @property
    def family(self) -> Family:
        """What kind of model it trains."""
        return self.families[0]

    @property
    def valued(self) -> bool:
        """Whether it learns the values of a critic."""
        return any(isinstance(term, ValueLoss) for term in self.regularizers)

    @property
    def weight_sets(self) -> tuple[str, ...]:
        """Every weight set the algorithm needs besides live."""
        behaviour = (self.behaviour,) if self.behaviour != "live" else ()
        compared = (advantage.reference for advantage in self.token_advantage if advantage.reference)
        return tuple(dict.fromkeys((*behaviour, *self.references, *compared, *(f.name for f in self.ema_weights))))
