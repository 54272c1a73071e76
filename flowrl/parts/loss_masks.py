"""Which decisions count, and how much, by what the live policy says of them (`flowrl.types.LossMask`). A statistic is
that of the optimiser batch, over all processes, whatever the micro-batch; zeroed decisions stay in the mean unless the
part says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.math.random import derive, permutation
from flowrl.types import Batch, Likelihood


@dataclass(frozen=True)
class TopEntropy:
    """The ``share`` of the decisions with the highest entropy, ties kept: "forking tokens" (arXiv:2506.01939; TRL's
    ``top_entropy_quantile``). ``by_advantage`` ranks by ``|A| H`` instead (D3S, arXiv:2509.22115); ``rest`` is the
    factor of the other decisions (EGSPO, arXiv:2602.03309)."""

    share: float = 0.2
    by_advantage: bool = False
    rest: float = 0.0
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the decisions stays: give more than 0 and at most 1")

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        rank = live.need("entropy")
        rank = rank * batch.advantage.abs() if self.by_advantage else rank
        counted = (batch.weight > 0) & ~rank.isnan()
        if not bool(counted.any()):
            return torch.ones_like(rank)
        kept = ~counted | (rank >= quantile(rank[counted], 1 - self.share))
        return kept.to(rank) if not self.rest else torch.where(kept, 1.0, self.rest).to(rank)


@dataclass(frozen=True)
class LowCovariance:
    """Leave out a random ``share`` of all decisions, among those whose covariance ``(A - mean A) (log p - mean log p)``
    lies between ``least`` and ``most`` and which the clip ``low``, ``high`` does not stop already. Clip-Cov
    (arXiv:2505.22617; verl's ``clip_cov``).

    verl takes at least one of every micro-batch; here the count is that of the optimiser batch.
    """

    share: float = 2e-4
    least: float = 1.0
    most: float = 5.0
    low: float = 0.2
    high: float = 0.2
    coupled: ClassVar[bool] = True

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        factor = torch.ones_like(live.logp)
        if not self.share or not bool(counted.any()):
            return factor
        wanted = max(int(self.share * int(counted.sum())), 1)
        covariance = covariances(live, batch)
        chosen = (covariance > self.least) & (covariance < self.most) & counted
        chosen &= ~beyond(live, batch, self.low, self.high)
        places = chosen.flatten().nonzero()[:, 0]
        order = permutation(derive(len(places), "clip_cov", int(counted.sum())), len(places))[:wanted]
        factor.view(-1)[places[order.to(places.device)]] = 0.0
        return factor


@dataclass(frozen=True)
class EntropyDiscriminator:
    """Leave out, of decisions with ``A < 0``, those whose ``S = p (H + log p)`` lies more than ``width`` standard
    deviations below the batch's mean: by first order, pushing them down lowers the entropy most. Clip_B
    (arXiv:2602.03392). What is left out leaves the mean as well.

    The release takes p from the inference engine and H from the trainer; both are the trainer's here.
    """

    width: float = 2.5
    coupled: ClassVar[bool] = True

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        score = live.logp.exp() * (live.need("entropy") + live.logp)
        counted = batch.weight > 0
        inside = score[counted]
        if len(inside) < 2:
            return torch.ones_like(score)
        low = inside.mean() - self.width * inside.std()
        kept = ~(counted & (batch.advantage < 0) & (score < low))
        left = (batch.weight * kept).sum()
        return kept.to(score) * batch.weight.sum() / left if left > 0 else kept.to(score)


@dataclass(frozen=True)
class EntropyChange:
    """``exp(-k |O|)`` with the estimated change of entropy ``O = A / p_old p (1 - p) (log p + H)`` and k such that the
    largest of the batch gets ``least``: what would move the entropy most counts least. STEER (arXiv:2510.10150)."""

    least: float = 0.8
    floor: float = 0.02
    """The smallest change that is taken for the largest."""
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise ValueError(f"least={self.least} is the smallest weight: give more than 0 and at most 1")

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        p = live.logp.exp()
        change = batch.advantage * (1 - p) * (live.logp + live.need("entropy")) * (live.logp - batch.old.logp).exp()
        size = torch.where(batch.weight > 0, change.abs(), 0.0)
        largest = size.max().clamp(min=self.floor)
        return torch.as_tensor(self.least, dtype=size.dtype, device=size.device).pow(size / largest)


@dataclass(frozen=True)
class GaussianDivergence:
    """Leave out steps that have moved by ``threshold`` or more, ``mean over latent elements of (m - m_old)^2 / 2 s^2``,
    and whose gradient would move them further (``A > 0`` and a ratio above 1, or both below). FlowDPPO
    (arXiv:2606.11025): a trust region that means the same at every resolution. Needs ``sampler.record_mean``."""

    threshold: float = 1e-5
    coupled: ClassVar[bool] = False

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        further = batch.advantage * (live.logp - batch.old.logp) > 0
        return (~((live.need("kl/sampler") >= self.threshold) & further)).to(live.logp)


@dataclass(frozen=True)
class TokenDivergence:
    """Leave out tokens whose probability has moved too far from ``p_old`` in the direction of the advantage: by ``|p -
    p_old|`` (``tv``), or by the divergence of "this token or another" (``kl``). The binary masks of DPPO
    (arXiv:2602.04879): rare tokens may change their ratio, frequent ones not their mass."""

    threshold: float = 0.2
    kind: Literal["tv", "kl"] = "tv"
    coupled: ClassVar[bool] = False

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        p, q = live.logp.exp().clamp(max=1.0), batch.old.logp.exp().clamp(max=1.0)
        moved = (p - q).abs()
        if self.kind == "kl":
            rest = ((1 - q).clamp(min=1e-12) / (1 - p).clamp(min=1e-12)).log()
            moved = q * (batch.old.logp - live.logp) + (1 - q) * rest
        return (~((moved > self.threshold) & (batch.advantage * (p - q) > 0))).to(live.logp)


@dataclass(frozen=True)
class RatioMask:
    """Leave out decisions whose ratio is beyond ``1 - low`` and ``1 + high``.

    sides: ``one`` only in the direction of the advantage, where PPO's clip has no gradient (MiniRL, arXiv:2512.01374);
        ``two`` in both; ``ring`` in both, but what is far outside, beyond ``far_low`` and ``far_high`` as ratios,
        stays. All three are in Trinity-RFT for REC (arXiv:2509.24203).
    """

    low: float = 0.2
    high: float = 0.2
    sides: Literal["one", "two", "ring"] = "one"
    far_low: float = 0.6
    far_high: float = 2.0
    coupled: ClassVar[bool] = False

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        if self.sides == "one":
            return (~beyond(live, batch, self.low, self.high)).to(live.logp)
        ratio = (live.logp - batch.old.logp).exp()
        kept = (ratio >= 1 - self.low) & (ratio <= 1 + self.high)
        if self.sides == "ring":
            kept |= (ratio < self.far_low) | (ratio > self.far_high)
        return kept.to(live.logp)


@dataclass(frozen=True)
class SequenceDrift:
    """Leave out samples with ``A < 0`` whose mean of ``log p_old - log p`` over their decisions is above ``threshold``:
    bad samples that the policy would no longer make. DeepSeek-V3.2's off-policy sequence masking (arXiv:2512.02556,
    section 3.1; TRL's ``off_policy_mask_threshold``)."""

    threshold: float = 0.1
    coupled: ClassVar[bool] = True

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        gap = torch.where(counted, batch.old.logp - live.logp, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return (~((gap > self.threshold)[:, None] & (batch.advantage < 0))).to(live.logp)


@dataclass(frozen=True)
class SecondMoment:
    """Leave out decisions, the largest first, until the mean of ``(log p - log p_old)^2`` over the batch is at most
    ``threshold``; only those whose gradient would move them further are taken. M2PO (arXiv:2510.01161): tolerates old
    samples, because what is bounded is the batch and not each ratio."""

    threshold: float = 0.04
    coupled: ClassVar[bool] = True

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        d = torch.where(counted, live.logp - batch.old.logp, 0.0)
        excess = d.square().sum() - self.threshold * counted.sum()
        factor = torch.ones_like(d)
        places = (counted & (batch.advantage * d > 0)).flatten().nonzero()[:, 0]
        squares, order = d.flatten()[places].square().sort(descending=True)
        before = squares.cumsum(dim=0) - squares  # what the larger ones have taken away
        factor.view(-1)[places[order[before < excess]]] = 0.0
        return factor


def quantile(values: Tensor, share: float) -> Tensor:
    """The ``share`` quantile [] of values [K], between neighbours by a straight line (torch's own takes 16 M at
    most)."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def covariances(live: Likelihood, batch: Batch) -> Tensor:
    """[N, D] ``(A - mean A) (log p - mean log p)``, of all decisions that count."""
    counted = batch.weight > 0
    logp, advantage = live.logp.detach(), batch.advantage
    return (advantage - advantage[counted].mean()) * (logp - logp[counted].mean())


def beyond(live: Likelihood, batch: Batch, low: float, high: float) -> Tensor:
    """[N, D] bool: where PPO's clip has no gradient."""
    ratio = (live.logp - batch.old.logp).exp()
    return torch.where(batch.advantage > 0, ratio > 1 + high, (batch.advantage < 0) & (ratio < 1 - low))
