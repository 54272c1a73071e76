"""Advantages that look at how different the samples of a group are, which a watched reward says of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.math.groups import flat_groups, group_mean
from flowrl.parts.advantages import GroupCentred
from flowrl.types import Memory, Scores


@dataclass(frozen=True)
class NoveltyScaled:
    """``r - mean of the group``, without a standard deviation, times ``d / mean d of the group`` where it is positive,
    clamped: of what is good, what is unlike the others of its group counts more. GARDO (arXiv:2512.24138; flow_grpo
    94e23ee, where d is the cosine distance to the nearest other sample's DINOv3 features).

    novelty: the name of the reward that answers d, such as the shipped ``novelty`` with ``train: false``; without one
        of that name the factor is 1, as it is for samples of which it says nothing and in groups all alike.

    The advantages of a group no longer sum to 0: the factor is larger than 1 for some and less for others, and only on
    one side.
    """

    novelty: str = "novelty"
    clip: float | None = 5.0

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward, group, own = scores.total, scores.group, scores.own
        centred = reward - group_mean(reward, group, own)
        found = told(scores, self.novelty)
        if found is not None:
            known = own & ~found.isnan()
            factor = found / group_mean(torch.where(known, found, 0.0), group, known)
            usable = known & factor.isfinite() & (centred > 0)
            centred = torch.where(usable, centred * factor, centred)
        advantage = centred if self.clip is None else centred.clamp(-self.clip, self.clip)
        nothing = flat_groups(reward, group, own) | ~scores.valid
        return torch.where(nothing, torch.zeros_like(advantage), advantage)


@dataclass(frozen=True)
class WithNovelty(GroupCentred):
    """GRPO's advantage of ``r + bonus b``, where b is what a watched reward says of how rare a sample is in its group.
    DiverseGRPO's creativity bonus (arXiv:2512.21514), whose b falls with the size of the sample's cluster.

    novelty: the name of that reward, such as the shipped ``rarity`` with ``train: false``; without one of that name
        there is no bonus, and none for samples of which it says nothing. A bonus is not part of the reward that the log
        shows.
    """

    novelty: str = "rarity"
    bonus: float = 0.2

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        found = told(scores, self.novelty)
        if found is None:
            return super().__call__(scores, memory)
        plain = super()._normalise
        reward = scores.total + self.bonus * found.nan_to_num(0.0)
        advantage = plain(reward, scores)
        advantage = advantage if self.clip is None else advantage.clamp(-self.clip, self.clip)
        return torch.where(scores.valid, advantage, torch.zeros_like(advantage))


def told(scores: Scores, name: str) -> Tensor | None:
    """[N] what the reward of this name says; None where there is none."""
    return scores.rewards[:, scores.names.index(name)] if name in scores.names else None
