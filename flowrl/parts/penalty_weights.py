"""Which samples a divergence from a weight set holds, by what rewards say of them (`flowrl.types.PenaltyWeight`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.types import IncompatibleError, Memory, Scores

STATE = "doubt"
"""Where in the memory of a run the present share is, and what it followed."""
WINDOW = 20


@dataclass(frozen=True)
class Doubted:
    """The samples that the trained reward rates unlike its judges, and no others: GARDO's gate (arXiv:2512.24138,
    uncertainty by ranks).

    Of all samples of the iteration, ``u`` is the sample's mean rank by its judges less its rank by the trained total,
    1 being the best and equals sharing theirs. Of those with u >= 0, the ``share`` with the largest get a weight, which
    is 1 over the share of all samples that get one, so that the penalty is a mean over them. The share follows the mean
    of those u: times ``1 + rate`` where it is above all of the last 20 iterations, times ``1 - rate`` below all of
    them, between ``least`` and ``most`` (``RiskCompensator`` of tinnerhrhe/GARDO 1cc77fb).

    judges: names of rewards; none: all that are watched and not trained (``train: false``), but ``novelty``. Where
        there is no judge, every sample has weight 1.
    rated: ``above`` is the paper's: the trained reward likes them more than the judges do. ``below`` turns the sign of
        u, which is what the released code does: it ranks the best sample 1 and takes the judges' ranks off the
        reward's.

    The released code takes the mean over the doubted samples of each micro-batch of nine, and no penalty where it has
    none. Its equal rewards are ranked at random.
    """

    judges: tuple[str, ...] = ()
    share: float = 0.1
    rated: Literal["above", "below"] = "above"
    rate: float = 0.1
    least: float = 0.02
    most: float = 0.2
    novelty: str = "novelty"
    """The watched reward that is no judge (`flowrl.parts.novelty.NoveltyScaled`)."""

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.share <= self.most <= 1:
            raise ValueError(
                f"least={self.least}, share={self.share}, most={self.most} are shares in that order: give 0 < least <= "
                "share <= most <= 1"
            )
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate={self.rate} is by how much the share changes: give 0 or more, and less than 1")

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        judges = self._judged(scores)
        if not judges:
            return torch.ones(len(scores.group), dtype=torch.float64)
        doubt = self.doubt(scores, judges)
        positive = doubt[doubt >= 0]
        if not len(positive):
            return torch.zeros(len(doubt), dtype=torch.float64)
        share = self._followed(float(positive.mean()), memory)
        chosen = (doubt > positive.quantile(1 - share)).double()
        return chosen / chosen.mean().clamp(min=1e-12)

    def doubt(self, scores: Scores, judges: tuple[int, ...]) -> Tensor:
        """[N] u, by these columns of the rewards; -inf for samples that are not the policy's own or not scored."""
        told = scores.rewards[:, list(judges)]
        known = scores.own & ~told.isnan().any(dim=1)
        ranks = torch.stack([_ranks(column, known) for column in (scores.total, *told.unbind(dim=1))], dim=1)
        gap = ranks[:, 1:].mean(dim=1) - ranks[:, 0]
        return torch.where(known, gap if self.rated == "above" else -gap, -torch.inf)

    def _judged(self, scores: Scores) -> tuple[int, ...]:
        missing = [name for name in self.judges if name not in scores.names]
        if missing:
            raise IncompatibleError(
                f"penalty_weight.judges: no reward is called {missing[0]!r}; the rewards are {', '.join(scores.names)}"
            )
        weighted = dict(zip(scores.names, scores.weights.tolist(), strict=True))
        watched = [name for name, weight in weighted.items() if weight == 0 and name != self.novelty]
        return tuple(scores.names.index(name) for name in self.judges or watched)

    def _followed(self, level: float, memory: Memory) -> float:
        state: dict[str, Any] = memory.get(STATE, {"share": self.share, "seen": []})
        share, seen = state["share"], state["seen"]
        if seen and level > max(seen):
            share *= 1 + self.rate
        elif seen and level < min(seen):
            share *= 1 - self.rate
        share = min(max(share, self.least), self.most)
        memory[STATE] = {"share": share, "seen": [*seen, level][-WINDOW:]}
        return share


def _ranks(values: Tensor, known: Tensor) -> Tensor:
    """[N] float64 from 1, the largest, among those that are known; equals have the mean of their places."""
    some = values[known].double()
    above = (some[None] > some[:, None]).sum(dim=1)
    equal = (some[None] == some[:, None]).sum(dim=1)
    ranks = torch.zeros(len(values), dtype=torch.float64)
    ranks[known] = above + (equal + 1).double() / 2
    return ranks
