"""Objectives on several likelihood bounds of one completion at once (masked-diffusion language models)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.types import Batch, IncompatibleError, Likelihood, ViewRows


def cells_of(batch: Batch) -> ViewRows:
    """The views of a batch whose decisions are cells."""
    if not isinstance(batch.probe, ViewRows) or batch.probe.per != "cell":
        raise IncompatibleError("bounds of completions are made of cells: set estimator.per=cell on MaskedViews")
    return batch.probe


def lower_bound(logp: Tensor, probe: ViewRows) -> Tensor:
    """[N] mean over views of ``sum_i w_i log p_i``, from cells [N, m * L]: the evidence lower bound."""
    n, m, length = probe.inputs.shape
    return (logp.reshape(n, m, length) * probe.weights.to(logp)).sum(dim=2).mean(dim=1)


def upper_bound(logp: Tensor, probe: ViewRows, power: float) -> Tensor:
    """[N] ``sum_i 1/b log mean over views of (w_i p_i^b)``, from cells [N, m * L]: SPG's evidence upper bound with its
    constant left out, b = ``power``.

    Positions that no view asks for are left out and the sum is scaled up to the completion's length, as in the released
    code; the logarithm of a mean of few views is biased downwards. A bound for every network only from b = number of
    tokens on (Hoelder); with smaller b it can lie below the log-likelihood. Computed in log space: ``p^b`` underflows.
    """
    n, m, length = probe.inputs.shape
    asked = probe.targets.to(logp.device)
    terms = power * logp.reshape(n, m, length) + probe.weights.to(logp).clamp(min=1e-300).log()
    low = torch.full_like(terms, -torch.inf)
    covered = asked.any(dim=1)
    # positions without a view get a finite stand-in first: logsumexp of nothing has no gradient
    safe = torch.where(covered[:, None], torch.where(asked, terms, low), torch.zeros_like(terms))
    each = (safe.logsumexp(dim=1) - math.log(m)) / power
    summed = torch.where(covered, each, torch.zeros_like(each)).sum(dim=1)
    content = probe.content.sum(dim=1).to(summed)
    return summed * content / covered.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Sandwich(ObjectiveDefaults):
    """``-A lower`` for ``A >= 0`` and ``-A (omega upper + (1 - omega) lower)`` for ``A < 0``, per token of the
    completion: raise a lower bound of what is good, press down an upper bound of what is bad. SPG (arXiv:2510.09541).

    Reads cells. ``omega=0`` is the policy gradient of the plain lower bound. No ratio and no clip: the learning rate is
    the only brake.
    """

    omega: float = 0.5
    power: float = 1.5
    coupled: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.omega <= 1:
            raise ValueError(f"omega={self.omega} should be a share, from 0 to 1")
        if not self.power > 0:
            raise ValueError(f"power={self.power} should be above 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        probe, advantage = cells_of(batch), batch.advantage[:, 0]
        score = lower_bound(likelihood.logp, probe)
        if self.omega:
            mixed = self.omega * upper_bound(likelihood.logp, probe, self.power) + (1 - self.omega) * score
            score = torch.where(advantage >= 0, score, mixed)
        length = probe.content.sum(dim=1).clamp(min=1).to(score)
        return (-advantage * score / length)[:, None].expand_as(likelihood.logp)


@dataclass(frozen=True)
class SelfNormalised(Sandwich):
    """`Sandwich` with weights ``n clip(r, low, high) / sum clip(r, low, high)``, without gradient, over the n samples
    of the optimiser batch; r is the ratio of the samples' lower bounds per token, ``exp((B - B_old) / L)``. StableDRL
    (arXiv:2603.06743).

    The gradient is within the convex hull of the samples' own, whatever the ratios, so it is never longer than the
    longest; PPO's is not bounded for A < 0, where nothing clips a large ratio. Samples of advantage 0 are part of the
    sum. The released code clips from above alone (``low=0``, ``high=5``); the paper's text has ``1 - e`` and ``1 + e``.
    """

    high: float = 5.0
    low: float = 0.0
    needs_old_logp: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= 1 <= self.high:
            raise ValueError(f"low={self.low} and high={self.high} are bounds of a ratio: low up to 1, high from 1 on")

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        probe = cells_of(batch)
        length = probe.content.sum(dim=1).clamp(min=1)
        gap = lower_bound(likelihood.logp, probe) - lower_bound(batch.old.logp, probe)
        return gap / length.to(gap)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        counted = (batch.weight > 0).any(dim=1)
        floor = math.log(self.low) if self.low else -math.inf
        clipped = self.log_ratio(likelihood, batch).detach().clamp(min=floor, max=math.log(self.high))
        weight = torch.where(counted, clipped, -math.inf).softmax(dim=0) * counted.sum()
        return weight[:, None] * super().__call__(likelihood, batch)
