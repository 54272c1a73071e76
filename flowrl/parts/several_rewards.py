"""Advantages of several rewards: normalised apart, one column each for a combination of their gradients, or scaled by
the trade-offs that they reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.parts.advantages import GroupCentred
from flowrl.parts.group_advantages import batch_normalised
from flowrl.types import IncompatibleError, Memory, Scores


@dataclass(frozen=True)
class RewardDecoupled(GroupCentred):
    """Every reward normalised over the group by itself, summed with its weight, and that normalised over all samples.
    GDPO (arXiv:2601.05242; NVlabs/GDPO and TRL's ``normalize_then_sum``): rewards that agree in their sum and differ in
    what they are made of are told apart. A single reward is GRPO's advantage, normalised over the batch."""

    eps: float = 1e-4
    clip: float | None = None
    merge: Literal["rewards", "advantages"] = "advantages"

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return batch_normalised(scores, super().__call__(scores, memory), self.eps)


@dataclass(frozen=True)
class PerReward(GroupCentred):
    """[N, C] the advantage of each reward by itself, for a combination of their gradients; in all but every
    ``refresh``-th iteration [N, 1], their sum with ``shares``, which costs one backward pass. MARBLE
    (arXiv:2605.06507): the loss of `ImplicitPair` is affine in the advantage, so the gradient of that sum is the sum of
    the gradients. Coefficients make the shares what the combination found (`flowrl.parts.controllers.Smoothed`)."""

    shares: tuple[float, ...] = (0.5, 0.5)
    refresh: int = 1

    def __post_init__(self) -> None:
        if self.refresh < 1:
            raise ValueError(
                f"refresh={self.refresh}: every how many iterations the rewards are combined anew; give 1 or more"
            )

    @property
    def rewards(self) -> int:
        """How many there are."""
        return len(self.shares)

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        found = self.columns(scores)[:, scores.weights != 0]
        if found.shape[1] != len(self.shares):
            raise IncompatibleError(
                f"algorithm.rewards={len(self.shares)} gradients are combined, and there are {found.shape[1]} rewards "
                "with a weight; make both the same"
            )
        found = torch.where(scores.valid[:, None], found, torch.zeros_like(found))
        found = found if self.clip is None else found.clamp(-self.clip, self.clip)
        count = int(memory.get("combined", 0))
        memory["combined"] = count + 1
        if count % self.refresh:
            return found @ torch.tensor(self.shares, dtype=found.dtype)[:, None]
        return found


@dataclass(frozen=True)
class AsChannel(GroupCentred):
    """[N, 1]: GRPO's advantage as the only channel, for a combination of objective and regularizers."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return super().__call__(scores, memory)[:, None]


@dataclass(frozen=True)
class HypervolumeScaled(GroupCentred):
    """GRPO's advantage, times ``0.5 + 1.5 tanh(gain)``, where the gain is by how much the mean rewards of the iteration
    enlarge the volume that those of earlier iterations dominate above the first. The hypervolume form of dynamic reward
    weighting (arXiv:2509.11452), which scales the reward by a held-out measurement; a scaled reward is divided away by
    the group's deviation, so the scale is on the advantage."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        watched = scores.rewards[scores.own][:, scores.weights != 0]
        point = watched.nanmean(dim=0).tolist()
        points: list[list[float]] = memory.get("points", [])
        gain = 0.0
        if points:
            before, after = (hypervolume(some, points[0]) for some in (points[1:], [*points[1:], point]))
            gain = after - before
        memory["points"] = [*points[:1], *_front([*points[1:], point])] if points else [point]
        return super().__call__(scores, memory) * (0.5 + 1.5 * math.tanh(gain))


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume above a reference that some of the points, larger in every reward, enclose."""
    inside = [tuple(point) for point in points if all(x > r for x, r in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return max(point[0] for point in inside) - reference[0]
    inside.sort(key=lambda point: point[-1], reverse=True)
    heights = [*(point[-1] for point in inside), reference[-1]]
    slices = ([point[:-1] for point in inside[: place + 1]] for place in range(len(inside)))
    return sum(
        (heights[place] - heights[place + 1]) * hypervolume(below, reference[:-1]) for place, below in enumerate(slices)
    )


def _front(points: list[list[float]]) -> list[list[float]]:
    """Those that no other one is at least as good as in everything."""

    def dominated(place: int) -> bool:
        mine = points[place]
        return any(
            all(x >= y for x, y in zip(other, mine, strict=True)) and (other != mine or k < place)
            for k, other in enumerate(points)
            if k != place
        )

    return [point for place, point in enumerate(points) if not dominated(place)]
