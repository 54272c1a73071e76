"""An algorithm is a record of parts; a preset is a function that returns one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowrl.parts.aggregations import SampleMean
from flowrl.parts.companions import CompanionWeights
from flowrl.parts.ema import EmaWeights, Target
from flowrl.parts.loss_weights import Uniform
from flowrl.parts.regularizers import ComparedWithOld, ValueLoss
from flowrl.parts.selections import AllSamples
from flowrl.types import (
    Acting,
    Advantage,
    Aggregation,
    Beside,
    Coefficient,
    Combination,
    Estimator,
    LossMask,
    LossWeight,
    Objective,
    PenaltyWeight,
    Regularizer,
    Replay,
    Residual,
    Sampler,
    Selection,
    TokenAdvantage,
)

Family = Literal["diffusion", "masked", "causal", "control", "reward"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What to do with samples and their scores. Frozen: a variant is ``dataclasses.replace`` of another."""

    sampler: Sampler
    estimator: Estimator
    advantage: Advantage
    objective: Objective
    token_advantage: tuple[TokenAdvantage, ...] = ()
    """How advantages are spread over decisions; by default each decision gets all of its sample's or event's."""
    selection: Selection = AllSamples()
    loss_weight: LossWeight = Uniform()
    loss_masks: tuple[LossMask, ...] = ()
    """Which decisions count by what the live policy says; all of them by default."""
    regularizers: tuple[Regularizer, ...] = ()
    penalty_weight: PenaltyWeight | None = None
    """How much the divergences from a weight set hold each sample; by default all alike."""
    aggregation: Aggregation = SampleMean()
    replay: Replay | None = None
    """Which samples of earlier iterations are learned from again; by default none."""
    combination: Combination | None = None
    """How the gradients of several channels become one; by default the advantage has a single channel."""
    coefficients: tuple[Coefficient, ...] = ()
    """Numbers that change over iterations; by default all stay as they are (`flowrl.parts.coefficients`)."""
    behaviour: str = "live"
    """The weight set that samples: the live one, or one of ``ema_weights``."""
    ema_weights: tuple[EmaWeights, ...] = ()
    companions: tuple[CompanionWeights, ...] = ()
    """Weights that learn beside the live ones from the same samples, each by a loss of its own."""
    teachers: tuple[str, ...] = ()
    """Names of frozen policies that it learns from, which a config describes under ``teachers``."""
    redraw: bool = False
    """Draw the estimator's probes anew for every epoch over the samples, instead of once."""
    mask_truncated_completions: bool = False
    """Completions that were cut at the sampler's length leave the loss and its mean; rewards, advantage and statistics
    keep them (DAPO's overlong filtering, arXiv:2503.14476 section 3.4; TRL's ``mask_truncated_completions``)."""
    min_group: int = 2
    """The smallest group the advantage is defined for."""
    families: tuple[Family, ...] = ("diffusion",)

    def __post_init__(self) -> None:
        if self.combination is not None and self.token_advantage:
            raise ValueError("combination takes an advantage per channel, and token_advantage one; remove one of them")
        moved = [average.name for learner in (self, *self.companions) for average in learner.ema_weights]
        moved += [companion.name for companion in self.companions]
        if twice := [name for name in moved if moved.count(name) > 1]:
            raise ValueError(f"companions and ema_weights: two weight sets are called {twice[0]!r}; rename one of them")

    @property
    def coupled(self) -> bool:
        """Whether the loss of a decision depends on other decisions."""
        terms = (term for term in self.regularizers if term.weight > 0)
        alone = not self.objective.coupled and not any(part.coupled for part in self.loss_masks)
        return not alone or any(getattr(term, "coupled", False) for term in terms)

    @property
    def judged(self) -> bool:
        """Whether its estimator asks rewards for a gradient (its attribute ``judged``; then the rollout has a
        judge)."""
        return bool(getattr(self.estimator, "judged", False))

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a sample without advantage changes nothing: of its own loss, or of a statistic of the batch."""
        return self.objective.skips_zero_advantage and not any(part.coupled for part in self.loss_masks)

    @property
    def needs_old_logp(self) -> bool:
        """Whether anything compares the live policy with the one that sampled, besides its record in the log."""
        compared = any(isinstance(term, ComparedWithOld) for term in self.regularizers)
        return self.objective.needs_old_logp or bool(self.loss_masks) or compared

    @property
    def penalised(self) -> bool:
        """Whether there is a regularizer that counts."""
        return any(term.weight > 0 for term in self.regularizers)

    @property
    def references(self) -> tuple[str, ...]:
        """Weight sets that regularizers and objective compare the live one with."""
        moved = {coefficient.sets for coefficient in self.coefficients}
        named = [r.to for i, r in enumerate(self.regularizers) if r.weight > 0 or f"regularizers.{i}.weight" in moved]
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
    def explores(self) -> bool:
        """Whether it learns how much noise the steps of a control policy have (its estimator's attribute
        ``explores``)."""
        return bool(getattr(self.estimator, "explores", False))

    @property
    def beside(self) -> Mapping[str, Beside]:
        """The networks that it trains beside a control policy's own, by name (its estimator's attribute ``beside``)."""
        return dict(getattr(self.estimator, "beside", {}))

    @property
    def acting(self) -> Acting | None:
        """How the control policy acts with them (its estimator's attribute ``acting``)."""
        return getattr(self.estimator, "acting", None)

    @property
    def judges(self) -> bool:
        """Whether critics are among the networks beside the policy's own."""
        return any(form.judges for form in self.beside.values())

    @property
    def each_step(self) -> Mapping[str, float]:
        """Weight sets that follow the live one after every optimiser step, and how much of each stays (`Target`)."""
        return {average.name: 1 - average.tau for average in self.ema_weights if isinstance(average, Target)}

    @property
    def tuned(self) -> tuple[int, int] | None:
        """(K, F) where a control policy learns at the last F of K steps alone, and a copy of it that does not learn
        makes the others (its sampler's attribute ``tuned``)."""
        return getattr(self.sampler, "tuned", None)

    @property
    def residual(self) -> Residual | None:
        """What it learns to add to the actions of a control policy that itself stays as it is (its sampler's attribute
        ``residual``)."""
        return getattr(self.sampler, "residual", None)

    @property
    def network(self) -> Mapping[str, Any]:
        """What the network of a control policy has to be for it, as `load_control` takes it (its estimator's attribute
        ``network``)."""
        return getattr(self.estimator, "network", {})

    @property
    def clips_in_units(self) -> bool:
        """Whether its clip is one of ratios that depend on the scale of the samples (its estimator's attribute
        ``in_units``)."""
        return self.objective.clip_range is not None and bool(getattr(self.estimator, "in_units", False))

    @property
    def weight_sets(self) -> tuple[str, ...]:
        """Every weight set the algorithm needs besides live."""
        behaviour = (self.behaviour,) if self.behaviour != "live" else ()
        compared = (advantage.reference for advantage in self.token_advantage if advantage.reference)
        sampled: tuple[str, ...] = getattr(self.sampler, "weight_sets", ())  # samplers that ask no other have no such
        beside = (name for companion in self.companions for name in companion.weight_sets)
        known = (*behaviour, *self.references, *compared, *sampled, *beside, *(f.name for f in self.ema_weights))
        return tuple(dict.fromkeys(known))
