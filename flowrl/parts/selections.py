"""Which samples take part in an update: [N] bool. What is left out does not count in the mean either."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowrl.math.groups import flat_groups
from flowrl.types import Scores, first_of_group


@dataclass(frozen=True)
class Everything:
    """All samples that could be scored."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid


@dataclass(frozen=True)
class DropFlatGroups:
    """Leave out groups whose samples all scored the same: they carry no comparison."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid & ~flat_groups(scores.total, scores.group, scores.valid)


@dataclass(frozen=True)
class WithCredit:
    """Samples whose credit is not 0, such as those of a preference pair."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid & (advantage != 0)


@dataclass(frozen=True)
class AllButFirst:
    """All but the first sample of every group, which is ReMax's greedy baseline."""

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        return scores.valid & ~first_of_group(scores.group)
