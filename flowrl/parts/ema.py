"""Weight sets that follow the live one, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Decay(Protocol):
    """How much of a weight set stays, from 0 (it becomes the live one) to 1 (it does not move)."""

    def __call__(self, steps: int, before: int = 0) -> float:
        """At the end of an iteration: ``steps`` optimiser steps so far, ``before`` of them before this iteration."""
        ...


class EmaWeights(Protocol):
    """A weight set that follows the live one."""

    @property
    def name(self) -> str:
        """Of the weight set."""
        ...

    @property
    def decay(self) -> Decay: ...


@dataclass(frozen=True)
class Ramp:
    """Decay ``0`` until ``start`` optimiser steps, then ``base`` and ``slope`` per step, at most ``most``.

    DiffusionNFT's ``decay_type`` 0, 1 and 2 are ``Ramp(0, 0)``, ``Ramp(0.001, 0.5)`` and ``Ramp(0.0075, 0.999, 75)``.
    """

    slope: float = 0.001
    most: float = 0.5
    start: int = 0
    base: float = 0.0

    def __call__(self, steps: int, before: int = 0) -> float:
        return 0.0 if steps < self.start else min(self.base + self.slope * (steps - self.start), self.most)


@dataclass(frozen=True)
class Every:
    """Decay ``keep`` at the end of an iteration in which a multiple of ``steps`` optimiser steps was reached, and 1
    (no move) otherwise: a reference that is renewed from time to time (TR-DPO, arXiv:2404.09656).

    TRL's ``sync_ref_model`` is ``Every(ref_model_sync_steps, 1 - ref_model_mixup_alpha)``, by default 512 and .4, but
    for the place: it moves the reference right after that step, also in the middle of an iteration.
    """

    steps: int = 64
    keep: float = 0.4

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.keep < 1:
            raise ValueError(
                f"steps={self.steps}, keep={self.keep}: give 1 step or more, and a share from 0 to below 1"
            )

    def __call__(self, steps: int, before: int = 0) -> float:
        return self.keep if steps // self.steps > before // self.steps else 1.0


@dataclass(frozen=True)
class AtAge:
    """Decay 0 (the set becomes the live one) where ``age``, iterations since that happened, is 0, and 1 (no move)
    otherwise. A coefficient counts it, and says when it begins anew (`flowrl.parts.controllers.Renewal`)."""

    age: int = 0

    def __call__(self, steps: int, before: int = 0) -> float:
        return 1.0 if self.age else 0.0


@dataclass(frozen=True)
class Ema:
    """After every iteration, ``name <- d name + (1 - d) live`` with ``d = decay(optimiser steps so far, and before
    this iteration)``."""

    name: str
    decay: Decay = Ramp()


@dataclass(frozen=True)
class Target:
    """Weights of target networks: after every optimiser step, ``name <- (1 - tau) name + tau live`` (DDPG,
    arXiv:1509.02971). At the end of an iteration nothing more moves."""

    name: str = "target"
    tau: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau={self.tau} is the share of the live weights in every step; give above 0, at most 1")

    @property
    def decay(self) -> Decay:
        return Ramp(slope=0.0, most=1.0, base=1.0)
