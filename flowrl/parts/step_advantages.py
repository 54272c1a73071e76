"""Advantages of steps that have rewards of their own (`flowrl.types.Scores.steps`): [N, E]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.parts.advantages import GroupCentred
from flowrl.types import IncompatibleError, Memory, Scores


@dataclass(frozen=True)
class Gain(GroupCentred):
    """What a step gained, ``r_{e + 1} - r_e``, with ``r_e`` the reward of the sample without the noise of step e and
    later ones; normalised for every step by itself, as `GroupCentred` does. Over the steps of a sample the gains
    telescope to what all noise together gained. DenseGRPO (arXiv:2601.20218)."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return self._normalised(self.values(scores), scores)

    def values(self, scores: Scores) -> Tensor:
        """[N, E] before they are normalised."""
        rewards = rewards_of_steps(scores)
        return rewards[:, 1:] - rewards[:, :-1]

    def _normalised(self, values: Tensor, scores: Scores) -> Tensor:
        columns = [self._normalise(column, scores) for column in values.T]
        advantage = torch.where(scores.valid[:, None], torch.stack(columns, dim=1), 0.0)
        return advantage if self.clip is None else advantage.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class Outlook(Gain):
    """``r_e - r_{e - 1}`` plus the mean of later steps' rewards, ``r_e`` the reward of what step e would have made,
    with 0 before the first; after the last stands its own. Normalised for every step by itself. MDPO
    (arXiv:2508.13148), where a step predicts the whole completion; its release adds 1 to every gain, which every
    step's mean takes away.
    """

    eps: float = 1e-4
    clip: float | None = None

    def values(self, scores: Scores) -> Tensor:
        """[N, E] before they are normalised."""
        rewards = rewards_of_steps(scores)
        number = rewards.shape[1]
        before = torch.cat([torch.zeros_like(rewards[:, :1]), rewards[:, :-1]], dim=1)
        later = rewards.flip(1).cumsum(dim=1).flip(1) - rewards
        count = torch.arange(number - 1, -1, -1)
        return rewards - before + torch.where(count > 0, later / count.clamp(min=1), rewards)


@dataclass(frozen=True)
class TurningPoints(Gain):
    """Gains, and more where a step turns the way that the sample goes: a turning point is a step whose gain has the
    sign of the whole gain, after one whose gain had the other; with ``first``, also a first step that has it.
    TP-GRPO (arXiv:2602.06422).

    base: ``whole`` gives every step the whole gain, and a turning point its own gain ``bonus`` times besides (the
        released configurations). ``gain`` gives every step its own, and a turning point what the sample gained from
        there to the end instead.
    """

    base: Literal["whole", "gain"] = "whole"
    bonus: float = 1.0
    first: bool = True

    def values(self, scores: Scores) -> Tensor:
        """[N, E] before they are normalised."""
        rewards, end = rewards_of_steps(scores), scores.total[:, None]
        gain, whole = rewards[:, 1:] - rewards[:, :-1], end - rewards[:, :1]
        way = gain.sign() * whole.sign()
        before = torch.cat([torch.full_like(way[:, :1], -1.0 if self.first else 0.0), way[:, :-1]], dim=1)
        turns = (way > 0) & (before < 0)
        if self.base == "whole":
            return whole + self.bonus * torch.where(turns, gain, 0.0)
        return torch.where(turns, end - rewards[:, :-1], gain)


def rewards_of_steps(scores: Scores) -> Tensor:
    """[N, E + 1]; 0 for samples that take no part. Raises `IncompatibleError` where steps have none."""
    if scores.steps is None:
        raise IncompatibleError(
            "this advantage reads rewards of steps: give the algorithm a sampler that previews them, such as "
            "PreviewSampler"
        )
    return torch.where(scores.valid[:, None], scores.steps, 0.0)
