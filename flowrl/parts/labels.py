"""Objectives that read rewards as labels, right or wrong, and classify samples by their log-ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from flowrl.math.groups import group_count, group_mean, group_sum
from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.parts.sample_scores import gains
from flowrl.types import Batch, Likelihood

RARE = 0.02
"""Shares of right samples are held this far from 0 and 1."""


@dataclass(frozen=True)
class NegativeAware(ObjectiveDefaults):
    """``-ln rho`` of a right sample's token and ``-ln max((1 - p rho) / (1 - p), 1)`` of a wrong one's, p the share of
    right samples of the group, rho the token's ratio; the maximum holds the value and lets the gradient through. NFT
    (arXiv:2505.18116): a wrong sample teaches the policy of what would have been right. Reads centred `Labels`.

    prompts: the weight of a group, ``hard`` 1 - p (at ratio 1 Dr. GRPO's gradient), ``balanced`` sqrt((1 - p) / p)
        (GRPO's with the population's standard deviation), ``even`` 1.
    wrong: the weight of wrong samples; 0 is fine-tuning on right ones.
    """

    prompts: Literal["hard", "balanced", "even"] = "hard"
    wrong: float = 1.0
    most: float = 10.0

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        a = batch.advantage
        right = a > 0
        p = torch.where(right, 1 - a, -a).clamp(RARE, 1 - RARE)
        ratio = (likelihood.logp - batch.old.logp).clamp(max=self.most)
        proxy = (1 - p * ratio.exp()) / (1 - p)
        held = proxy + (proxy.clamp(min=1.0) - proxy).detach()
        each = torch.where(right, -ratio, -self.wrong * held.log())
        match self.prompts:
            case "hard":
                return (1 - p) * each
            case "balanced":
                return ((1 - p) / p).sqrt() * each
            case "even":
                return each


@dataclass(frozen=True)
class LabelContrast(ObjectiveDefaults):
    """Binary cross entropy of a sample's label with the logit ``beta (s_i - mean of the others' s)``, s the log-ratio
    of whole samples to the old policy. PACS (arXiv:2509.02522); at the old policy the gradient is -beta times RLOO's.
    Reads `Labels`.

    balanced: weigh right and wrong samples of a group so that each kind has half of the loss.
    """

    beta: float = 1.0
    balanced: bool = False
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta} scales the logit of a label; give more than 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        q = self.beta * gains(likelihood, batch, 0.0)
        group, right = batch.group.to(q.device), (batch.advantage[:, 0] > 0).to(q)
        every = torch.ones_like(group, dtype=torch.bool)
        count = group_count(group, every).to(q)
        logit = (q - group_mean(q, group, every)) * count / (count - 1).clamp(min=1)
        loss = binary_cross_entropy_with_logits(logit, right, reduction="none")
        if self.balanced:
            alike = torch.where(right > 0, group_sum(right, group, every), group_sum(1 - right, group, every))
            loss = torch.where(alike < count, loss * count / (2 * alike), loss)
        return loss[:, None].expand_as(likelihood.logp)


@dataclass(frozen=True)
class AnchoredLabels(ObjectiveDefaults):
    """``ln(1 + sum over wrong exp(m / tau)) + ln(1 + sum over right exp(-m / tau))`` of a group, m a sample's mean
    log-ratio per decision: wrong samples are pushed below an anchor of logit 0 and right ones above it. REAL
    (arXiv:2602.05630); also of a group whose samples are all right or all wrong. No sample pulls with more than 1/tau.
    Reads `Labels`."""

    tau: float = 0.5
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau={self.tau} divides log-ratios; give more than 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        mean = gains(likelihood, batch, 0.0)
        if not batch.probe.of_whole:
            mean = mean / counted.sum(dim=1).clamp(min=1)
        group, label = batch.group.to(mean.device), batch.advantage[:, 0]
        loss = torch.zeros_like(mean)
        for key in group.unique():
            rows = group == key
            for sign in (1, -1):
                logits = -sign * mean[rows & (label.sign() == sign)] / self.tau
                anchored = torch.cat([logits.new_zeros(1), logits])
                loss = torch.where(rows, loss + anchored.logsumexp(dim=0), loss)
        return loss[:, None].expand_as(likelihood.logp)
