"""How decisions add up: weights [N, D] known before any forward, so that the loss cannot depend on micro-batches or
ranks. Those of a mean sum to 1; sums say what they divide by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.types import DATA, Aggregation


@dataclass(frozen=True)
class SampleMean:
    """Mean over a sample's decisions, then over samples: every sample counts the same (GRPO, arXiv:2402.03300)."""

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        inside = mask.double() / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return inside / mask.any(dim=1).sum().clamp(min=1)


@dataclass(frozen=True)
class DecisionMean:
    """Mean over all decisions: a sample counts by how many it made (token mean, DAPO arXiv:2503.14476)."""

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        return mask.double() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class RowMean:
    """Mean over the decisions that a network row answers, then over all rows of all samples: a sample counts by how
    many rows it takes, so completions of many views weigh more. TraceRL's mean over training rows (arXiv:2509.06949).
    `SampleMean` where a sample is one row."""

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        rows = mask.reshape(len(mask), -1, unit)
        inside = rows.double() / rows.sum(dim=2, keepdim=True).clamp(min=1)
        return inside.reshape(mask.shape) / rows.any(dim=2).sum().clamp(min=1)


@dataclass(frozen=True)
class StepMean:
    """Mean over the decisions that the k-th network row of every sample answers, of all samples together, then over k:
    with a sampler's steps as rows, the mean of per-step means of CJ-GRPO (arXiv:2509.23924).

    A mean over tokens only where every step fixes as many. With steps of 1, 2, 4 and 8 tokens, the first token counts
    eight times as much as one of the last step.
    """

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        rows = mask.reshape(len(mask), -1, unit)
        count = rows.sum(dim=(0, 2))  # [k]
        inside = rows.double() / count.clamp(min=1)[:, None]
        return inside.reshape(mask.shape) / (count > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class SampleSum:
    """Sum over a sample's decisions, mean over samples: the exact policy gradient of a product of decisions."""

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        return mask.double() / mask.any(dim=1).sum().clamp(min=1)


@dataclass(frozen=True)
class FixedLength:
    """Sum over a sample's decisions divided by the greatest possible number of them, mean over samples: no length bias.
    Dr. GRPO (arXiv:2503.20783)."""

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        return SampleSum()(mask) / mask.shape[1]


@dataclass(frozen=True)
class LengthPower:
    """Sum over a sample's decisions divided by the greatest possible number of them, with weight ``L^-power`` of its
    length L, of mean 1 over the samples. Delta-L normalisation (arXiv:2509.07558): if the variance of a sample's
    gradient grows like its length, power 1 gives the mean the least variance; 0 is `FixedLength`."""

    power: float = 1.0

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        there = mask.any(dim=1)
        scale = mask.sum(dim=1).double().clamp(min=1).pow(-self.power) * there
        scale = scale * there.sum() / scale.sum().clamp(min=1e-300)
        return FixedLength()(mask) * scale[:, None]


@dataclass(frozen=True)
class PerSource:
    """``share`` of another aggregation over the samples of a data set, and the rest of it over the policy's own
    (`Rollout.source`): each kind has its weight, however many of it there are. A kind that is missing has none."""

    aggregation: Aggregation = SampleMean()
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} is that of the data in the loss: give one from 0 to 1")

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        data = torch.zeros(len(mask), 1, dtype=torch.bool) if source is None else (source == DATA)[:, None]
        own = self.aggregation(mask & ~data, unit, source)
        return (1 - self.share) * own + self.share * self.aggregation(mask & data, unit, source)
