"""Which samples take part in an update: [N] bool. What is left out does not count in the mean either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.groups import flat_groups, group_count, group_std
from flowrl.types import Scores, first_of_group


class OneRound:
    """A selection that leaves out and replaces nothing."""

    @property
    def rounds(self) -> int:
        return 1

    @property
    def share(self) -> float:
        return 1.0


@dataclass(frozen=True)
class AllSamples(OneRound):
    """All samples that could be scored."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid


@dataclass(frozen=True)
class DropFlatGroups(OneRound):
    """Leave out groups whose samples all scored the same: they carry no comparison."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid & ~flat_groups(scores.total, scores.group, scores.valid)


@dataclass(frozen=True)
class ReplaceFlatGroups:
    """Leave out flat groups as `DropFlatGroups` does, and sample others in their place: DAPO's dynamic sampling
    (arXiv:2503.14476, section 3.2).

    A round samples ``data.prompts`` new prompts. Rounds follow until ``data.prompts`` groups are not flat; the surplus
    of the last round is dropped, and after ``rounds`` of them the update learns from what there is. Groups that
    ``drop_group`` leaves out are replaced as well. Statistics of rewards and of lengths are those of all samples
    drawn, advantage and update know only the groups that stay.

    Differs from the released recipe (verl, ``recipe/dapo``) in three ways: it judges the total reward, not accuracy
    alone, so a `length_penalty` in the total makes a group count as not flat; a round is not three times the batch;
    and too few groups after the last round are no error.
    """

    rounds: int = 10
    """At most; 10 is ``max_num_gen_batches`` of the released recipe."""
    share: float = 1.0
    """Sampling goes on until so much of ``data.prompts`` groups differ; what there is beyond that is learned from too,
    up to ``data.prompts`` (GPG's ``min_inverse_alpha``, .5 there)."""
    by: Literal["reward", "advantage"] = "reward"
    """What is flat: all rewards of a group equal, or all its advantages 0, as where rewards are sorted into labels."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} samples nothing; use at least 1, which is drop_flat_groups")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the groups should be above 0 and at most 1")

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        if self.by == "reward":
            return DropFlatGroups()(scores, advantage)
        differ = NonzeroAdvantage()(scores, advantage)
        return scores.valid & (group_count(scores.group, differ) > 0)


@dataclass(frozen=True)
class NonzeroAdvantage(OneRound):
    """Samples whose advantage, or that of one of their events, is not 0, such as those of a preference pair."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid & (advantage != 0).reshape(len(advantage), -1).any(dim=1)


@dataclass(frozen=True)
class AllButFirst(OneRound):
    """All but the first sample of every group, which is ReMax's greedy baseline."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid & ~first_of_group(scores.group)


@dataclass(frozen=True)
class VariedGroups(ReplaceFlatGroups):
    """Groups whose rewards, between 0 and 1, vary at least ``least`` times as much as G rewards can (variance over ``G
    / 4 (G - 1)``), others replaced: prompts that are neither easy nor hard. VCRL (arXiv:2509.19803), which refills
    from a memory of such prompts; here new prompts are sampled, for ``rounds`` rounds at most."""

    least: float = 0.3

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        count = group_count(scores.group, scores.valid)
        largest = count / (4 * (count - 1).clamp(min=1))
        variance = group_std(scores.total, scores.group, scores.valid, 1) ** 2 / largest
        return super().__call__(scores, advantage) & (variance >= self.least - 1e-12)


@dataclass(frozen=True)
class MostVaried(OneRound):
    """The ``fraction`` of all samples whose advantages vary most: some of the smallest and some of the largest, by the
    split whose variance is greatest. D3S (arXiv:2509.22115)."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} of the samples stays: give more than 0 and at most 1")

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        rows = scores.valid.nonzero()[:, 0]
        kept = max(1, round(self.fraction * len(rows)))
        order = advantage.reshape(len(advantage), -1).mean(dim=1)[rows].sort(stable=True)
        places = torch.arange(len(rows))
        splits = [(places < low) | (places >= len(rows) - kept + low) for low in range(kept + 1)]
        best = max(splits, key=lambda chosen: float(order.values[chosen].var(correction=0)))
        found = torch.zeros_like(scores.valid)
        found[rows[order.indices[best]]] = True
        return found


@dataclass(frozen=True)
class OwnSamples(OneRound):
    """The samples that the policy made itself: those of a rival or of a data set are only compared with."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.own


@dataclass(frozen=True)
class BySuccess(OneRound):
    """Demonstrations for prompts that the policy cannot do, its own samples for the others: where at most ``at_most``
    of a group's own samples score above ``threshold``, only those of the data set take part. HPT (arXiv:2509.04419).

    drop_solved: leave out groups whose own samples are all right as well (DYPO, arXiv:2604.08926).
    """

    at_most: int = 0
    threshold: float = 0.5
    drop_solved: bool = False

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        right = group_count(scores.group, scores.own & (scores.total > self.threshold))
        keep = torch.where(right <= self.at_most, scores.valid & ~scores.own, scores.own)
        return keep & (right < group_count(scores.group, scores.own)) if self.drop_solved else keep


@dataclass(frozen=True)
class RescuedGroups(OneRound):
    """The samples that `RescuedCentred` compares, with the same options."""

    correct: float = 1.0
    most: int = 4

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most={self.most} hinted samples in a group rescue none; use at least 1")

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return mixed(scores, self.correct, self.most)


def mixed(scores: Scores, correct: float, most: int) -> Tensor:
    """[N] bool: the samples of each group that take part. The policy's own; where none of them has a reward of
    ``correct``, up to ``most`` of the hinted ones that have, in the place of as many of its first own ones."""
    own, kept = scores.own, scores.own.clone()
    right = scores.valid & (scores.total >= correct)
    for key in scores.group.unique():
        rows = scores.group == key
        if bool((rows & own & right).any()):
            continue
        there = (rows & own).nonzero()[:, 0]
        better = (rows & ~own & right).nonzero()[:, 0][: min(most, len(there))]
        kept[there[: len(better)]] = False
        kept[better] = True
    return kept
