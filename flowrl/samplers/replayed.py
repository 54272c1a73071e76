"""Samples of earlier iterations, learned from again (`flowrl.replay`): which of those that are kept come back.

They come back as they were: tokens or states, the log-probabilities that the policy of then recorded, so that the ratio
is to the policy that made them, and their rewards, which are not asked again. A reward belongs to the sample: asking
would cost as much as for a new one, and one that is noisy, or changes while a run goes on, would say something else
than it did when the sample was compared with its group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.random import permutation
from flowrl.types import PastSamples, Scores, first_of_group

Choice = Literal["best", "latest", "random"]


@dataclass(frozen=True, kw_only=True)
class SamePrompt:
    """For every present prompt, ``samples`` of the latest ``kept`` that were made of it earlier, once there are
    ``least`` of them. RePO (arXiv:2506.09340; SihengLi99/RePO).

    choose: ``best`` those of the highest reward (of equals the older), ``latest``, or ``random`` ones.
    alone: a group of their own, with a baseline and a scale of their own (the release's ``split``); otherwise they are
        measured by the present samples of the prompt, or with `AllSources` all by the same (its ``mixed``).
    """

    samples: int = 8
    kept: int = 16
    least: int = 16
    choose: Choice = "best"
    alone: bool = True
    capacity: int = 16384

    def __post_init__(self) -> None:
        _check_counts(samples=self.samples, least=self.least)
        if self.kept < max(self.samples, self.least):
            raise ValueError(
                f"kept={self.kept} of a prompt are fewer than samples={self.samples} or least={self.least}; raise it"
            )
        _check_capacity(self.capacity, self.kept)

    def __call__(self, past: PastSamples, scores: Scores, seed: int) -> tuple[Tensor, Tensor]:
        rows: list[Tensor] = []
        groups: list[int] = []
        first = first_of_group(scores.group)
        for number, key in zip(scores.group[first].tolist(), scores.prompt_ids[first].tolist(), strict=True):
            known = (past.prompt_ids == key).nonzero()[:, 0][-self.kept :]
            if len(known) < self.least:
                continue
            chosen = known[self._chosen(past.total[known], seed + number)]
            groups += [len(rows) if self.alone else number] * len(chosen)
            rows.append(chosen)
        none = torch.zeros(0, dtype=torch.int64)
        return (torch.cat(rows) if rows else none), torch.tensor(groups, dtype=torch.int64)

    def _chosen(self, reward: Tensor, seed: int) -> Tensor:
        match self.choose:
            case "best":
                return reward.argsort(descending=True, stable=True)[: self.samples]
            case "latest":
                return torch.arange(len(reward))[-self.samples :]
            case "random":
                return permutation(seed, len(reward))[: self.samples].sort().values


@dataclass(frozen=True, kw_only=True)
class OldGroups:
    """``groups`` whole groups, at random of those of the latest ``iterations`` iterations; each is a group as it was,
    compared within itself: recent policies' data mixed into a batch, as ReMix has it."""

    groups: int = 4
    iterations: int = 2
    capacity: int = 16384

    def __post_init__(self) -> None:
        _check_counts(groups=self.groups, iterations=self.iterations)
        _check_capacity(self.capacity, 1)

    @property
    def alone(self) -> bool:
        """They are groups of their own."""
        return True

    def __call__(self, past: PastSamples, scores: Scores, seed: int) -> tuple[Tensor, Tensor]:
        none = torch.zeros(0, dtype=torch.int64)
        if not len(past):
            return none, none
        recent = (past.iteration > int(past.iteration.max()) - self.iterations).nonzero()[:, 0]
        which = torch.stack([past.iteration[recent], past.group[recent]], dim=1)
        there, number = which.unique(dim=0, return_inverse=True)
        drawn = permutation(seed, len(there))[: self.groups].sort().values
        inside = torch.isin(number, drawn)
        return recent[inside], torch.searchsorted(drawn, number[inside])


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} puts nothing back; use at least 1")


def _check_capacity(capacity: int, least: int) -> None:
    if capacity < least:
        raise ValueError(f"capacity={capacity} samples are kept, and {least} are asked for; raise it")
