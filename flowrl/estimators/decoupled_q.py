"""Critics of long chunks that teach critics of short ones: Decoupled Q-chunking (arXiv:2512.10926)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.estimators.q_learning import Decisions, OfTransitions, critics_of, matching_error
from flowrl.types import Acting, Aggregate, Beside, aggregated

PARTIAL, TAUGHT = "partial/", "taught/"
"""And the number of a critic: the logit of what the short critic says of the decision, and what the long one says."""


@dataclass(frozen=True, kw_only=True)
class DecoupledQ(OfTransitions):
    """What four networks say of a decision (s, a) with the ``backup`` decisions' chunks A that began with it, and the
    observation s' after those (ColinQiyangLi/dqc, 9 Jan 2026, agents/dqc.py); critics are logits of values in 0 to 1:

    ``logp``: minus the matching error of the flow at a, which imitates;
    ``q/0``, ...: each chunk critic of (s, A); ``taught/0``, ...: the same as values, without gradient;
    ``partial/0``, ...: each critic of (s, a), which the policy acts by;
    ``value``: the critic of s; ``liked``: the weight set ``target`` of the partial critics at (s, a), as a value,
    together by ``aggregate``, without gradient;
    ``next_value``: the critic of s' as a value, 0 where the episode ended by itself; ``steps``: decisions until s'. No
    gradient.

    The policy acts by the best of ``candidates`` chunks of its flow, kept within ``bound``, by the partial critics.
    """

    backup: int = 5
    candidates: int = 32
    aggregate: Aggregate = "mean"
    bound: float = 3.0
    critics: int = 2
    width: int = 1024
    depth: int = 4
    target: str = "target"

    def __post_init__(self) -> None:
        if self.backup < 1:
            raise ValueError(f"backup={self.backup} decisions later the value is taken; give 1 or more")

    @property
    def beside(self) -> Mapping[str, Beside]:
        """The critics of long chunks, of single decisions and of observations."""
        form = {"width": self.width, "depth": self.depth}
        return {
            "q": Beside("q", copies=self.critics, decisions=self.backup, **form),
            "partial": Beside("q", copies=self.critics, **form),
            "value": Beside("value", **form),
        }

    @property
    def acting(self) -> Acting:
        return Acting(bound=self.bound, candidates=self.candidates, critic="partial")

    def measure(self, policy: Any, found: Decisions) -> dict[str, Tensor]:
        with torch.no_grad():
            with policy.using(self.target) as asked:
                liked = aggregated(asked.ask("partial", found.seen, found.action).sigmoid(), self.aggregate)
            later = policy.ask("value", found.after)[0].sigmoid()
        said = policy.ask("q", found.seen, found.chunks)
        partial = policy.ask("partial", found.seen, found.action)
        return {
            "logp": -matching_error(policy, found, found.noise[:, 0]),
            "value": policy.ask("value", found.seen)[0],
            "liked": liked,
            "next_value": torch.where(found.continues, later, torch.zeros_like(later)),
            "steps": found.steps.to(later),
            **critics_of(said),
            **{f"{TAUGHT}{number}": value for number, value in enumerate(said.detach().sigmoid())},
            **{f"{PARTIAL}{number}": value for number, value in enumerate(partial)},
        }
