"""Advantages that compare the samples of a group with each other, or sort them into right and wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.groups import group_mean
from flowrl.parts.sample_scores import mean_over_rivals, rivals
from flowrl.types import RIVAL, Advantage, IncompatibleError, Memory, Scores


@dataclass(frozen=True)
class WinRate:
    """How often a sample is preferred to others of its group, less 1/2: the mean of P over them.

    preference: P of a pair by its rewards: ``step`` 1 for more, 1/2 for equal, 0 for less; ``sigmoid`` of the
        difference (Bradley & Terry). Rewards that compare samples themselves (``grouped``) need neither: with them
        take `RawReward`.
    against: ``group`` all samples of the group, itself (1/2) included, so that a regression on differences of the rate
        is one on the preferences of all its pairs; ``rivals`` those of another policy alone (`RIVAL`), which have 0.
    """

    preference: Literal["step", "sigmoid"] = "step"
    against: Literal["group", "rivals"] = "group"

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward, valid = scores.total, scores.valid
        i, j = rivals(scores.group)
        counted = valid[i] & valid[j]
        own = torch.ones_like(valid)
        if self.against == "rivals":
            if scores.source is None or not bool((scores.source == RIVAL).any()):
                raise IncompatibleError(
                    "advantage WinRate compares with rivals: use the sampler MixtureSampler with opponents=true, or "
                    "against=group"
                )
            own = scores.source != RIVAL
            counted &= own[i] & ~own[j]
        i, j = i[counted], j[counted]
        gap = reward[i] - reward[j]
        margin = gap.sigmoid() - 0.5 if self.preference == "sigmoid" else gap.sign() / 2
        rate = mean_over_rivals(margin, i, len(reward))
        if self.against == "group":
            others = i.bincount(minlength=len(reward)).to(rate)
            rate = rate * others / (others + 1)
        return torch.where(valid & own, rate, torch.zeros_like(rate))


@dataclass(frozen=True)
class Labels:
    """1 for rewards above ``threshold`` and -1 for others; ``centred`` makes it the label, 1 or 0, less the share of
    right samples of the group, as GRPO without a standard deviation has it of such rewards."""

    threshold: float = 0.5
    centred: bool = False

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        right = (scores.total > self.threshold).to(scores.total.dtype)
        label = right - group_mean(right, scores.group, scores.own) if self.centred else 2 * right - 1
        return torch.where(scores.valid, label, torch.zeros_like(label))


@dataclass(frozen=True)
class AllSources:
    """Another advantage, whose baselines and scales are those of all samples of a group, demonstrations included, as
    LUFFY has them (arXiv:2504.14945)."""

    advantage: Advantage

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return self.advantage(replace(scores, source=None), memory)
