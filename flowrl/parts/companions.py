"""Further weights that learn beside the policy, from the policy's own samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flowrl.parts.advantages import Ones
from flowrl.parts.ema import EmaWeights
from flowrl.parts.loss_weights import Uniform
from flowrl.parts.objectives import ScoreFunction
from flowrl.types import Advantage, Estimator, LossWeight, Objective, Regularizer


class CompanionWeights(Protocol):
    """A weight set that learns beside the live one."""

    @property
    def name(self) -> str:
        """Of the weight set."""
        ...

    @property
    def estimator(self) -> Estimator: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def advantage(self) -> Advantage: ...

    @property
    def regularizers(self) -> tuple[Regularizer, ...]: ...

    @property
    def loss_weight(self) -> LossWeight: ...

    @property
    def ema_weights(self) -> tuple[EmaWeights, ...]:
        """Weight sets that follow it."""
        ...

    @property
    def updates(self) -> int:
        """Its optimiser steps in a pass over the samples."""
        ...

    @property
    def epochs(self) -> int:
        """Its passes over the samples of an iteration."""
        ...

    @property
    def lr(self) -> float | None:
        """Its learning rate; ``None``: the policy's."""
        ...

    @property
    def weight_sets(self) -> tuple[str, ...]:
        """Its own, those that follow it, and those that its loss compares with and that are not always there."""
        ...

    @property
    def compared(self) -> tuple[str, ...]:
        """Weight sets that its loss compares with."""
        ...


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A weight set of the policy's network that has a loss and an optimiser of its own, and starts as a copy of the
    live weights: the score of what the policy makes ("fake") in distribution matching (DMD, arXiv:2311.18828).

    In every iteration it learns from the samples first; then the policy's estimator asks it under its ``name``, as any
    frozen weight set. It is trained by the same optimisation pass as the policy, and is part of checkpoints with its
    optimiser, and of no export.

    updates: its optimiser steps, among which the samples are split: each is of other samples, all of the same weights
        (the two time scales of DMD2, arXiv:2405.14867, section 4.2).
    epochs: its passes over the samples, each at points that are drawn anew.
    ema_weights: weight sets that follow it, moved once an iteration by the number of its own steps.
    lr: its learning rate, on the schedule of the policy's; ``null``: ``optimizer.lr``.
    """

    name: str
    estimator: Estimator
    objective: Objective = ScoreFunction()
    advantage: Advantage = Ones()
    regularizers: tuple[Regularizer, ...] = ()
    loss_weight: LossWeight = Uniform()
    ema_weights: tuple[EmaWeights, ...] = ()
    updates: int = 1
    epochs: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in ("live", "reference", "old", "ema"):
            raise ValueError(f"name={self.name!r} cannot be that of a companion's weights; use another word")
        for key, count in (("updates", self.updates), ("epochs", self.epochs)):
            if count < 1:
                raise ValueError(f"{key}={count} would never train {self.name!r}; give 1 or more")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr={self.lr} would not move {self.name!r}; give more than 0, or null for optimizer.lr")

    @property
    def weight_sets(self) -> tuple[str, ...]:
        """Its own, those that follow it, and those that its loss compares with and that are not always there."""
        followers = (average.name for average in self.ema_weights)
        compared = (name for name in self.compared if name != "reference")
        return tuple(dict.fromkeys((self.name, *followers, *compared)))

    @property
    def compared(self) -> tuple[str, ...]:
        """Weight sets that its loss compares with."""
        penalised = (term.to for term in self.regularizers if term.weight > 0)
        every = (*self.estimator.references, self.objective.reference, *penalised)
        return tuple(dict.fromkeys(name for name in every if name))
