"""An algorithm is a record of parts; a preset is a function that returns one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowrl.parts.aggregations import SampleMean
from flowrl.parts.emphases import Uniform
from flowrl.parts.regularizers import ValueLoss
from flowrl.parts.schedules import Follower
from flowrl.parts.selections import Everything
from flowrl.types import Advantage, Aggregation, Credit, Emphasis, Estimator, Objective, Regularizer, Sampler, Selection

Family = Literal["diffusion", "masked", "causal"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What to do with samples and their scores. Frozen: a variant is ``dataclasses.replace`` of another."""

    sampler: Sampler
    estimator: Estimator
    advantage: Advantage
    objective: Objective
    credit: tuple[Credit, ...] = ()
    """How the credit of a sample is spread over its decisions; by default each gets all of it."""
    selection: Selection = Everything()
    emphasis: Emphasis = Uniform()
    regularizers: tuple[Regularizer, ...] = ()
    aggregation: Aggregation = SampleMean()
    behaviour: Literal["live", "old"] = "live"
    """The weight set that samples."""
    followers: tuple[Follower, ...] = ()
    redraw: bool = False
    """Draw the estimator's probes anew for every epoch over the samples, instead of once."""
    drop_cut: bool = False
    """Completions that were cut at the sampler's length leave the loss and its mean; rewards, credit and statistics
    keep them (DAPO's overlong filtering, arXiv:2503.14476 section 3.4; TRL's ``mask_truncated_completions``)."""
    min_group: int = 2
    """The smallest group the credit is defined for."""
    families: tuple[Family, ...] = ("diffusion",)

    @property
    def held(self) -> tuple[str, ...]:
        """Weight sets that regularizers and objective compare the live one with."""
        named = [r.to for r in self.regularizers if r.weight > 0]
        return tuple(dict.fromkeys(name for name in (*named, self.objective.held) if name))

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
        compared = (credit.held for credit in self.credit if credit.held)
        return tuple(dict.fromkeys((*behaviour, *self.held, *compared, *(f.name for f in self.followers))))
