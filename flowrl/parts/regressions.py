"""Objectives on differences between the samples of a group: regressions and classifications of log-ratios, whose
minimiser is known for whatever distribution the samples are from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowrl.math.groups import group_count, group_mean
from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.parts.sample_scores import gains, mean_over_rivals, of_samples, rivals
from flowrl.types import RIVAL, Batch, IncompatibleError, Likelihood


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"reference_share={share} should be from 0 (the policy that sampled) to 1 (the reference)")


def _positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value} should be above 0")


@dataclass(frozen=True)
class Anchored(ObjectiveDefaults):
    """What objectives on log-ratios of samples share: what they are ratios to."""

    reference_share: float = 0.0
    """0: log-ratios to the policy that sampled; 1: to the reference; between: to their geometric mean with this
    share."""
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_share(self.reference_share)

    # The protocol has constants of a class here; these depend on the share.
    @property
    def reference(self) -> str:  # type: ignore[override]
        return "reference" if self.reference_share else ""

    @property
    def needs_old_logp(self) -> bool:  # type: ignore[override]
        return self.reference_share < 1

    def gains(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """[N] log-ratios of whole samples."""
        return gains(likelihood, batch, self.reference_share)


@dataclass(frozen=True)
class GroupRegression(Anchored):
    """``scale / (n - 1) sum_i (u_i - mean u)^2`` over the n samples of a group, ``u = beta s - target A``, s the
    log-ratio of a whole sample, mean over groups. A group's constant in A does nothing.

    That is ``scale / 2`` times the mean over its pairs of ``(beta (s_i - s_j) - target (A_i - A_j))^2``, so it is
    GVPO's centred residual (arXiv:2504.19599: scale 1/2), REBEL's regression (arXiv:2404.16767: beta 1, scale 2),
    CoPG's contrast (arXiv:2406.19185: scale 1) and, with a win rate as A, IPO over all pairs. Its minimiser is ``anchor
    exp(target A / beta)`` for samples of any distribution: no importance weights.
    """

    beta: float = 1.0
    target: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(beta=self.beta, scale=self.scale)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        group = batch.group.to(likelihood.logp.device)
        every = torch.ones_like(group, dtype=torch.bool)
        u = self.beta * self.gains(likelihood, batch) - self.target * batch.advantage[:, 0]
        count = group_count(group, every).to(u)
        loss = self.scale * count / (count - 1).clamp(min=1) * (u - group_mean(u, group, every)) ** 2
        return loss[:, None].expand_as(likelihood.logp)


@dataclass(frozen=True)
class SoftPairs(Anchored):
    """``-[P ln sigmoid(beta (s_i - s_j)) + (1 - P) ln sigmoid(-beta (s_i - s_j))]``, ``P = sigmoid(A_i - A_j)``, mean
    over the pairs of a group and over groups: s follows ``A / beta``. DNO (arXiv:2404.03715), whose A is a win rate."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(beta=self.beta)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        s, a = self.gains(likelihood, batch), batch.advantage[:, 0]
        i, j = (index.to(s.device) for index in rivals(batch.group))
        pair = -2 * (a[i] - a[j]).sigmoid() * logsigmoid(self.beta * (s[i] - s[j]))
        return mean_over_rivals(pair, i, len(s))[:, None].expand_as(likelihood.logp)


@dataclass(frozen=True)
class ExploringPairs(Anchored):
    """DPO's ``-ln sigmoid(beta (s_w - s_l))`` of every pair of an own sample and a rival's, the own one preferred where
    it scored at least as much, plus ``optimism log p`` of the rival's. XPO (arXiv:2405.21046), whose rivals are samples
    of the reference, the anchor of s (``reference_share`` 1); mean over pairs.

    The bonus lowers what the reference would say anyway; its expected gradient is 0 where the policy is the reference.
    """

    reference_share: float = 1.0
    beta: float = 0.1
    optimism: float = 1e-5

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        if batch.source is None or not bool((batch.source == RIVAL).any()):
            raise IncompatibleError(
                "objective ExploringPairs compares with samples of a rival: use the sampler MixtureSampler with "
                "opponents=true"
            )
        s, a = self.gains(likelihood, batch), batch.advantage[:, 0]
        rival = (batch.source == RIVAL).to(s.device)
        i, j = (index.to(s.device) for index in rivals(batch.group))
        i, j = i[rival[i] != rival[j]], j[rival[i] != rival[j]]
        preferred = torch.where(rival[i], a[i] > a[j], a[i] >= a[j])
        pair = -2 * logsigmoid(self.beta * (s[i] - s[j])) * preferred
        bonus = self.optimism * of_samples(likelihood.logp, batch)
        loss = mean_over_rivals(pair, i, len(s)) + torch.where(rival, 2 * bonus, 0.0)
        return loss[:, None].expand_as(likelihood.logp)


@dataclass(frozen=True)
class PairwiseClipped(ObjectiveDefaults):
    """``max(-(A_i - A_j) rho_i, -(A_i - A_j) clip(rho_i, 1 - low, 1 + high))``, rho the ratio of whole samples, mean
    over the other samples j of the group. P3O (arXiv:2310.00212) with separate clips: each pair stops each of its
    samples by the sign of their own difference. At ratio 1 it is the leave-one-out policy gradient.

    most: cap of the log-ratio, so that the exponential of a long sample's stays finite.
    """

    low: float = 0.2
    high: float = 0.2
    most: float = 10.0
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False  # such a sample is still a rival of others

    def __post_init__(self) -> None:
        if self.low < 0 or self.high < 0:
            raise ValueError(f"low={self.low} and high={self.high} say how far a ratio may go from 1; give 0 or more")

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.low, self.high

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return gains(likelihood, batch, 0.0)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        ratio, a = self.log_ratio(likelihood, batch).clamp(max=self.most).exp(), batch.advantage[:, 0]
        i, j = (index.to(ratio.device) for index in rivals(batch.group))
        gap, moved = a[i] - a[j], ratio[i]
        pair = torch.maximum(-gap * moved, -gap * moved.clamp(1 - self.low, 1 + self.high))
        return mean_over_rivals(pair, i, len(ratio))[:, None].expand_as(likelihood.logp)
