"""Objectives whose weights depend on a whole group of samples and on how far the policy has moved on each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.math.groups import group_mean
from flowrl.parts.group_advantages import choose
from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.types import Batch, IncompatibleError, Likelihood


@dataclass(frozen=True)
class BestOfK(ObjectiveDefaults):
    """``-A log p`` of whole samples, where A is `MaxAtK`'s for samples of an older policy: each set of ``k`` samples is
    weighted by the product of their ratios ``1 + d``, to first order in d. "The Best of N Worlds" (arXiv:2510.23393)
    sections 3 and 4. Takes rewards (`RawReward`); at the policy that sampled it is `MaxAtK`.

    With rewards in ascending order sample i gets ``(w_ii r_i + sum over j > i of w_ij r_j) / C(G, k)`` with
    ``w_ii = C(i-1, k-1) (1 + d_i) + C(i-2, k-2) sum over l < i of d_l`` and
    ``w_ij = C(j-2, k-2) (1 + d_i + d_j) + C(j-3, k-3) sum over l < j, l != i, of d_l``, times G because a mean is taken
    over samples.
    """

    k: int = 2
    baseline: Literal["mean", "none"] = "mean"
    most: float = 1.0
    """Of a d, and of -d: the expansion holds for small ones."""
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} samples have no best; give 1 or more")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        there = counted.any(dim=1).cpu()
        gap = torch.where(counted, (likelihood.logp - batch.old.logp).detach(), 0.0).sum(dim=1)
        d = gap.expm1().clamp(-self.most, self.most).cpu().double()
        reward = torch.where(counted, batch.advantage, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        found = torch.zeros_like(d)
        for key in batch.group.unique():
            rows = ((batch.group == key).cpu() & there).nonzero()[:, 0]
            if len(rows):
                found[rows] = self.of_group(reward[rows.to(reward.device)].cpu().double(), d[rows])
        if self.baseline == "mean":
            found = torch.where(there, found - group_mean(found, batch.group.cpu(), there), 0.0)
        return -found.to(likelihood.logp)[:, None] * likelihood.logp

    def of_group(self, reward: Tensor, d: Tensor) -> Tensor:
        """[G] of the rewards and deviations of one group."""
        n, k = len(reward), self.k
        if n < k:
            raise IncompatibleError(f"objective.k={k} is more than the {n} samples of a group; raise data.group")
        order = reward.sort(stable=True)
        r, moved = order.values, d[order.indices]
        before = moved.cumsum(dim=0) - moved  # of those below
        found = torch.zeros_like(reward)
        for i in range(1, n + 1):
            at = i - 1
            total = r[at] * (choose(i - 1, k - 1) * (1 + moved[at]) + choose(i - 2, k - 2) * before[at])
            for j in range(i + 1, n + 1):
                pair = choose(j - 2, k - 2) * (1 + moved[at] + moved[j - 1])
                total = total + r[j - 1] * (pair + choose(j - 3, k - 3) * (before[j - 1] - moved[at]))
            found[order.indices[at]] = n * total / math.comb(n, k)
        return found
