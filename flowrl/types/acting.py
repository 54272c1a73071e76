"""Networks that a method trains beside a control policy's own, and how the policy acts with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

BesideKind = Literal["actor", "q", "value", "flow"]


@dataclass(frozen=True)
class Beside:
    """A network beside a control policy's own. All look at the observations, standardised; their weights are part of
    every weight set. ``config.json`` of an export describes those that acting needs."""

    kind: BesideKind
    """``actor``: of noise, or of another chunk, to a chunk; ``q``: what an observation and a chunk are worth;
    ``value``: what an observation is worth; these two are critics and have the critic's learning rate; ``flow``: a copy
    of the policy's own flow, whose width and depth it has."""
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
    ``bound``; or of ``candidates`` such chunks the one that a critic likes best."""

    actor: str = ""
    """Name of the network beside that makes a chunk of noise; empty: the policy's flow."""
    bound: float | None = None
    """Standardised actions are kept within ``-bound`` to ``bound``; ``None``: they are left as they are."""
    candidates: int = 1
    critic: str = ""
    """Name of the network beside that chooses among several candidates, by the mean over its copies."""

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"bound={self.bound} is the largest standardised action; give more than 0, or null")
        if self.candidates < 1 or (self.candidates > 1 and not self.critic):
            raise ValueError(f"candidates={self.candidates}: give 1, or more and a critic that chooses")

    @property
    def needs(self) -> tuple[str, ...]:
        """The networks beside that it asks."""
        return tuple(name for name in (self.actor, self.critic) if name)
