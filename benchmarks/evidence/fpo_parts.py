"""Parts of the arms of `fpo_collapse.yaml` that no method has: what they leave out of FPO, or put in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.math.random import normal, seeds
from flowrl.parts.advantages import GroupCentred
from flowrl.types import Memory, Scores

ADVANTAGE = GroupCentred(ddof=1, eps=1e-8)
"""That of `fpo` on images."""


@dataclass(frozen=True)
class OneSign:
    """FPO's advantage on images, with that of the other sign set to 0: learning from good samples, or from bad ones.

    keep: 1 keeps the positive ones, -1 the negative ones.
    """

    keep: int = 1

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return self.keep * (self.keep * ADVANTAGE(scores, memory)).clamp(min=0)


@dataclass(frozen=True)
class Chance:
    """FPO's advantage on images of rewards that are drawn anew, standard normal, whatever the samples are: all that it
    does to a policy is noise."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        memory["drawn"] = memory.get("drawn", 0) + 1
        drawn = normal(seeds(0, "chance", memory["drawn"], count=len(scores.group)), (1,), stream=0).double()
        return ADVANTAGE(replace(scores, rewards=drawn, weights=torch.ones(1).double(), names=("chance",)), memory)
