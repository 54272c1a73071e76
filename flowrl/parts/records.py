"""Advantages from what a data set says of its samples (`Scores.feedback`), whatever the rewards are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.parts.advantages import BestVersusWorst
from flowrl.types import DATA, IncompatibleError, Memory, Scores, first_of_group, place_in_group


def _feedback(scores: Scores, who: str) -> Tensor:
    if scores.feedback is None or scores.feedback.dim() != 1:
        raise IncompatibleError(f"advantage {who} reads what a data set says of each sample: take a sampler of records")
    return scores.feedback.double()


@dataclass(frozen=True)
class RatedPair:
    """1 for the sample of a group that the data set rates best, -1 for the one it rates worst (the first of equals), 0
    for the rest and for groups without a difference."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        feedback = _feedback(scores, "RatedPair")
        one = torch.ones(1, dtype=torch.float64)
        rated = replace(scores, rewards=feedback[:, None], weights=one, valid=scores.valid & ~feedback.isnan())
        return BestVersusWorst()(rated, memory)


@dataclass(frozen=True)
class PairPerTrace:
    """[N, 2]: 1 and -1 for the first two samples of every group, which have their reasoning, and for the second two,
    which have none; 0 for those of the other pair. The data set's order is the preference."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        place = place_in_group(scores.group)
        if len(place) % 4 or int(place.max()) != 3:
            raise IncompatibleError("advantage PairPerTrace is of two pairs: take a sampler of four records a prompt")
        sign = torch.where(scores.valid, torch.where(place % 2 == 0, 1.0, -1.0), 0.0).double()
        return torch.stack([torch.where(place // 2 == pair, sign, 0.0) for pair in (0, 1)], dim=1)


@dataclass(frozen=True)
class FirstPreferred:
    """1 for the first sample of a group, -1 for the others: the data set's order, whatever it says of them."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        sign = torch.where(first_of_group(scores.group), 1.0, -1.0).double()
        return torch.where(scores.valid, sign, torch.zeros_like(sign))


@dataclass(frozen=True)
class Labelled:
    """1 for a sample that the data set rates above ``threshold``, -1 for another one, 0 where it says nothing. Labels
    are true and false, or numbers."""

    threshold: float = 0.0

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        feedback = _feedback(scores, "Labelled")
        label = torch.where(feedback > self.threshold, 1.0, -1.0).double()
        return torch.where(scores.valid & ~feedback.isnan(), label, torch.zeros_like(label))


@dataclass(frozen=True)
class Imitate:
    """1 for every sample: maximum likelihood."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return scores.valid.double()


@dataclass(frozen=True)
class BySource:
    """1 for samples of a data set, -1 for what the policy made: pairs of which the data are preferred, whatever the
    rewards (SePPO, SPIN)."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        if scores.source is None:
            raise IncompatibleError("advantage BySource tells data from own samples: take a sampler that mixes them")
        sign = torch.where(scores.source == DATA, 1.0, -1.0).double()
        return torch.where(scores.valid, sign, torch.zeros_like(sign))
