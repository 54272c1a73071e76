"""Networks that a method trains beside a control policy's own, and how the policy acts with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

BesideKind = Literal["actor", "editor", "q", "value", "flow", "number"]
Aggregate = Literal["mean", "min"]
"""How the critics of an ensemble become one number."""


@dataclass(frozen=True)
class Beside:
    """A network beside a control policy's own. All look at the observations, standardised; their weights are part of
    every weight set. ``config.json`` of an export describes those that acting needs."""

    kind: BesideKind
    """``actor``: of noise, or of another chunk, to a chunk; ``editor``: of a chunk to mean and log deviation of what
    is added to it; ``q``: what an observation and a chunk are worth; ``value``: what an observation is worth; these two
    are critics and have the critic's learning rate; ``flow``: a copy of the policy's own flow, whose width and depth it
    has; ``number``: one number above 0 that is learned, 1 at first."""
    width: int = 512
    depth: int = 4
    """Hidden layers."""
    copies: int = 1
    """Networks of one shape that begin differently, an ensemble."""
    decisions: int = 1
    """Decisions, one after another, whose chunks a ``q`` looks at."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(BesideKind):
            raise ValueError(f"kind={self.kind!r} is no network beside; choose {', '.join(get_args(BesideKind))}")
        for name in ("width", "depth", "copies", "decisions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} makes no network; give 1 or more")

    @property
    def judges(self) -> bool:
        """Whether it is a critic."""
        return self.kind in ("q", "value")


@dataclass(frozen=True)
class Acting:
    """How a control policy acts where it does not act by its flow or its mean alone: a chunk of noise z, kept within
    ``bound``; or of ``candidates`` such chunks, and of what becomes of them, the one that a critic likes best."""

    actor: str = ""
    """Name of the network beside that makes a chunk of noise; empty: the policy's flow."""
    bound: float | None = None
    """Standardised actions are kept within ``-bound`` to ``bound``; ``None``: they are left as they are."""
    candidates: int = 1
    critic: str = ""
    """Name of the network beside that chooses among several candidates."""
    aggregate: Aggregate = "mean"
    """Of what its copies say."""
    editor: str = ""
    """Name of the network beside that edits the first ``edits`` candidates: ``a + edit_scale tanh(m + s z)`` of its
    mean m and deviation s stands beside them (EXPO)."""
    edits: int = 0
    edit_scale: float = 1.0
    keep: int | None = None
    """So many of the candidates go on, those that the critic likes best; ``None``: all (PA-RL)."""
    climb: int = 0
    """Steps ``a <- a + rate dQ/da`` of each of them; of all on its way the one with the highest Q counts."""
    rate: float = 3e-4

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"bound={self.bound} is the largest standardised action; give more than 0, or null")
        several = self.candidates > 1 or self.edits or self.climb
        if self.candidates < 1 or (several and not self.critic):
            raise ValueError(f"candidates={self.candidates}: give 1, or more and a critic that chooses")
        if not 0 <= self.edits <= self.candidates or bool(self.edits) != bool(self.editor):
            raise ValueError(f"edits={self.edits} of {self.candidates} candidates: give 0 to all, and an editor")
        if self.keep is not None and not 1 <= self.keep <= self.candidates + self.edits:
            raise ValueError(f"keep={self.keep} of {self.candidates + self.edits} candidates: give 1 or more")
        if self.climb < 0 or self.rate < 0:
            raise ValueError(f"climb={self.climb} steps at rate={self.rate}; give 0 or more of both")

    @property
    def needs(self) -> tuple[str, ...]:
        """The networks beside that it asks."""
        return tuple(name for name in (self.actor, self.editor, self.critic) if name)

    @property
    def noises(self) -> int:
        """How many chunks of noise a decision takes."""
        return self.candidates + self.edits


def aggregated(said: Tensor, how: Aggregate) -> Tensor:
    """[L] of what an ensemble says [K, L]."""
    return said.mean(dim=0) if how == "mean" else said.min(dim=0).values
