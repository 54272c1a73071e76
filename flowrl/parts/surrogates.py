"""Further objectives on ratios: what takes the place of PPO's clip, per decision or of a whole sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.parts.loss_masks import covariances, quantile
from flowrl.parts.objectives import ObjectiveDefaults, dual_clipped, sample_mean
from flowrl.types import Batch, Bounds, Likelihood

MOST = 20.0
"""Of a log-ratio before it is exponentiated, as verl and OpenRLHF have it."""


@dataclass(frozen=True)
class Importance(ObjectiveDefaults):
    """``-A rho``: the ratio without a clip, for methods whose trust region is a mask or a penalty."""

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return -batch.advantage * _ratio(likelihood, batch)


@dataclass(frozen=True)
class PreservedClip(ObjectiveDefaults):
    """PPO's loss, whose clipped decisions keep the gradient of their limit: ``(1 +- clip) rho / sg(rho)`` stands for
    ``1 +- clip``. GPPO (Klear-Reasoner, arXiv:2508.07629); ``preserve="high"`` only above."""

    low: float = 0.2
    high: float = 0.2
    preserve: Literal["both", "high"] = "both"

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.low, self.high

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        ratio = _ratio(likelihood, batch)
        alive = (likelihood.logp - likelihood.logp.detach()).exp()  # 1, with the gradient of log p
        least = (1 - self.low) * (alive if self.preserve == "both" else torch.ones_like(alive))
        kept = torch.where(ratio > 1 + self.high, (1 + self.high) * alive, ratio)
        kept = torch.where(ratio < 1 - self.low, least, kept)
        return torch.maximum(-batch.advantage * ratio, -batch.advantage * kept)


@dataclass(frozen=True)
class DivergenceClip(ObjectiveDefaults):
    """PPO's clip at the two ratios where ``rho - 1 - log rho = delta``: the estimate k3 of the divergence is bounded,
    so that a ratio may rise further than it may fall. ATR-GRPO (arXiv:2602.05494)."""

    delta: float = 0.05

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise ValueError(f"delta={self.delta} bounds a divergence; give 0 or more")

    @property
    def clip_range(self) -> tuple[float, float]:
        low, high = divergence_range(self.delta)
        return 1 - low, high - 1

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return dual_clipped(likelihood.logp - batch.old.logp, batch.advantage, *self.clip_range, None)


@dataclass(frozen=True)
class Quadratic(ObjectiveDefaults):
    """``-A rho + |A| (rho - 1)^2 / (2 clip)``: smallest at ``1 + clip sign(A)``, and pulled back from beyond, where a
    clip has no gradient. SPO (arXiv:2401.16025); per token CFPO (arXiv:2601.22801)."""

    clip: float = 0.2

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip={self.clip} divides the pull; give more than 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        ratio = _ratio(likelihood, batch)
        return -batch.advantage * ratio + batch.advantage.abs() * (ratio - 1) ** 2 / (2 * self.clip)


@dataclass(frozen=True)
class SoftGate(ObjectiveDefaults):
    """``-A 4 / tau sigmoid(tau (rho - 1))``: slope A at ratio 1, fading on both sides; ``tau`` is ``positive`` or
    ``negative`` by the sign of A. SAPO (arXiv:2511.20347)."""

    positive: float = 1.0
    negative: float = 1.05

    def __post_init__(self) -> None:
        if not min(self.positive, self.negative) > 0:
            raise ValueError(f"positive={self.positive}, negative={self.negative} divide the gate; give more than 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        tau = _by_sign(batch.advantage, self.positive, self.negative)
        return -batch.advantage * 4 / tau * (tau * (_ratio(likelihood, batch) - 1)).sigmoid()


@dataclass(frozen=True)
class GeometricClip(ObjectiveDefaults):
    """``-A exp(mean over a sample's decisions of d)`` with each ``d = log p - log p_old`` at most ``high`` for
    ``A > 0`` and at least ``-low`` for ``A < 0``. GMPO (arXiv:2507.20673): outliers are cut one by one, in
    logarithms."""

    low: float = 0.4
    high: float = 0.4
    coupled: ClassVar[bool] = True

    @property
    def clip_range(self) -> tuple[float, float]:
        return 1 - math.exp(-self.low), math.exp(self.high) - 1

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        d = likelihood.logp - batch.old.logp
        kept = torch.where(batch.advantage > 0, d.clamp(max=self.high), d.clamp(min=-self.low))
        mean = sample_mean(kept, batch.weight > 0).clamp(max=MOST)
        return -batch.advantage * mean.exp()[:, None]


@dataclass(frozen=True)
class GammaWeight(ObjectiveDefaults):
    """``-sg(phi(w)) A log p`` with the ratio of the whole sample ``w = exp(sum d)`` and ``phi(w) = e^l w^k e^(-l w)``,
    which is 1 at 1 and falls to 0 on both sides; ``(k, l)`` by the sign of A. VESPO (arXiv:2602.10693)."""

    positive: tuple[float, float] = (2.0, 3.0)
    negative: tuple[float, float] = (3.0, 2.0)
    coupled: ClassVar[bool] = True

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        whole = _sample_sum(likelihood, batch)
        k, rate = (_by_sign(batch.advantage, self.positive[i], self.negative[i]) for i in (0, 1))  # [N, D]
        weight = (rate + k * whole - rate * whole.exp()).exp()
        return -weight * batch.advantage * likelihood.logp


@dataclass(frozen=True)
class Tapered(ObjectiveDefaults):
    """``-A log p`` for ``A > 0`` and ``-sg(min(w, 1)) A log p`` for ``A <= 0``, ``w = exp(sum d)`` of the whole sample:
    good samples are imitated wherever they come from, bad ones are let go once they have become unlikely. TOPR
    (arXiv:2503.14286)."""

    coupled: ClassVar[bool] = True

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        taper = _sample_sum(likelihood, batch).exp().clamp(max=1.0)
        return -torch.where(batch.advantage > 0, 1.0, taper) * batch.advantage * likelihood.logp


@dataclass(frozen=True)
class SearchedClip(ObjectiveDefaults):
    """PPO's dual clip with bounds that are raised step by step, ``low`` to ``low_most`` and then ``high`` to
    ``high_most`` (as ratios), until good decisions contribute at least ``balance`` times what bad ones do. BAPO
    (arXiv:2510.18927).

    contribution: what a bad decision contributes: ``gradient``, ``rho |A|`` while it is inside the lower bound;
        ``value``, ``max(rho, low) |A|`` as released, of which raising the lower bound can only add, so that its stage
        never brings the balance nearer.
    """

    low: float = 0.6
    high: float = 1.2
    low_most: float = 0.9
    high_most: float = 3.0
    step: float = 0.05
    balance: float = 1.0
    dual: float | None = 10.0
    contribution: Literal["gradient", "value"] = "gradient"
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ValueError(f"step={self.step} widens the bounds; give more than 0")

    @property
    def clip_range(self) -> tuple[float, float]:
        return 1 - self.low, self.high - 1

    def bounds(self, likelihood: Likelihood, batch: Batch) -> Bounds:
        with torch.no_grad():
            counted = batch.weight > 0
            ratio, advantage = _ratio(likelihood, batch)[counted], batch.advantage[counted]
        low, high = self.low, self.high
        while not self._balanced(ratio, advantage, low, high):
            if low < self.low_most - 1e-9:
                low = min(low + self.step, self.low_most)
            elif high < self.high_most - 1e-9:
                high = min(high + self.step, self.high_most)
            else:
                break
        return 1 - low, high - 1

    def _balanced(self, ratio: Tensor, advantage: Tensor, low: float, high: float) -> bool:
        good = (ratio.clamp(max=high) * advantage.clamp(min=0)).sum()
        bad = ratio * (ratio >= low) if self.contribution == "gradient" else ratio.clamp(min=low)
        return bool(good >= self.balance * (bad * (-advantage).clamp(min=0)).sum())

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        low, high = self.bounds(likelihood, batch)
        return dual_clipped(likelihood.logp - batch.old.logp, batch.advantage, low, high, self.dual)


@dataclass(frozen=True)
class EntropyClip(ObjectiveDefaults):
    """PPO's dual clip, wider above for uncertain tokens and wider below for certain ones, with the advantage moved
    between them. HAPO (arXiv:2509.16591).

    ``h`` in [-1, 1] is log entropy less its ``pivot`` quantile over the batch, divided by the largest of its sign.
    Range ``1 - low (1 - h)`` for ``h <= 0``, ``1 + high (1 + h)`` for ``h > 0``. ``A (1 + strength h)`` where ``h > 0``
    and the ratio has left ``1 - low / 2, 1 + high / 2``, or ``h <= 0`` and it has not; A elsewhere.

    signed: the release divides negative h by its smallest, so that all h come out positive and the rules for certain
        tokens never act; ``False`` does so.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = 10.0
    pivot: float = 0.8
    strength: float = 1.0
    signed: bool = True
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False  # their tokens are in the quantile

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.low, self.high

    def bounds(self, likelihood: Likelihood, batch: Batch) -> Bounds:
        h = self.surprise(likelihood, batch)
        return self.low * (1 - h.clamp(max=0)), self.high * (1 + h.clamp(min=0))

    def surprise(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """[N, D] h, without gradient."""
        x = likelihood.need("entropy").detach().clamp(min=1e-8).log()
        counted = (batch.weight > 0) & ~x.isnan()
        if not bool(counted.any()):
            return torch.zeros_like(x)
        x = torch.where(counted, x - quantile(x[counted], self.pivot), 0.0)
        above, below = x.max().clamp(min=1e-12), (-x).max().clamp(min=1e-12)
        return torch.where(x > 0, x / above, x / (below if self.signed else -below))

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        h = self.surprise(likelihood, batch)
        low, high = self.bounds(likelihood, batch)
        d = likelihood.logp - batch.old.logp
        ratio = d.detach().exp()
        inside = (ratio >= 1 - self.low / 2) & (ratio <= 1 + self.high / 2)
        advantage = torch.where((h > 0) != inside, batch.advantage * (1 + self.strength * h), batch.advantage)
        return dual_clipped(d, advantage, low, high, self.dual)


@dataclass(frozen=True)
class CovariancePenalty(ObjectiveDefaults):
    """``-A rho``, and ``weight |log p - log p_old|`` for the ``share`` of the decisions with the largest covariance
    ``(A - mean A) (log p - mean log p)`` of the batch. KL-Cov (arXiv:2505.22617). The penalty has no gradient where
    nothing has moved yet, so the first of several updates does not feel it."""

    share: float = 2e-4
    weight: float = 1.0
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        loss = -batch.advantage * _ratio(likelihood, batch)
        counted = batch.weight > 0
        if not self.share or not bool(counted.any()):
            return loss
        wanted = max(int(self.share * int(counted.sum())), 1)
        rank = torch.where(counted, covariances(likelihood, batch), -torch.inf).flatten()
        chosen = torch.zeros_like(rank)
        chosen[rank.topk(wanted).indices] = 1.0
        return loss + self.weight * chosen.view_as(loss) * (likelihood.logp - batch.old.logp).abs()


@dataclass(frozen=True)
class RegularisedGradient(ObjectiveDefaults):
    """The policy gradient of ``E[A] - beta D`` for samples of the old policy, which D compares with; ``w = rho``. RPG
    (arXiv:2505.17508), whose eight forms have the same gradients where the old policy is normalised:

    divergence: ``forward`` ``KL(old, policy)`` or ``reverse`` ``KL(policy, old)``.
    normalised: whether both are taken as distributions; ``False`` adds the difference of their masses.
    estimator: ``differentiable``: ``-A w + beta g`` with g = ``-log p``, ``w - log w - 1``, ``w log w``,
        ``w log w - w``; ``reinforce``: ``-sg(c) log p`` with c = ``A w + beta``, ``A w - beta (w - 1)``,
        ``w (A - beta (log w + 1))``, ``w (A - beta log w)`` (normalised and not, forward and then reverse).
    """

    beta: float = 1e-4
    divergence: Literal["forward", "reverse"] = "reverse"
    normalised: bool = False
    estimator: Literal["differentiable", "reinforce"] = "reinforce"
    skips_zero_advantage: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        a, logp = batch.advantage, likelihood.logp
        d = logp - batch.old.logp
        if self.estimator == "reinforce":
            d = d.detach()
        w, reverse = d.clamp(max=MOST).exp(), self.divergence == "reverse"
        if self.estimator == "differentiable":
            penalty = w * d - (0.0 if self.normalised else 1.0) * w if reverse else w - d - 1
            return -a * w + self.beta * (-logp if self.normalised and not reverse else penalty)
        if reverse:
            return -w * (a - self.beta * (d + (1.0 if self.normalised else 0.0))) * logp
        return -(a * w + self.beta * (1.0 if self.normalised else 1 - w)) * logp


@dataclass(frozen=True)
class ChiSquared(ObjectiveDefaults):
    """PPO's clip, plus ``weight sqrt(max(mean over samples of (r - 1) + (1 / r - 1), floor))`` with the ratio r of a
    whole sample to the reference: a chi-squared bound on how often what is done was done before, against rewards that
    only agree with the true one there. Correlated proxies (arXiv:2403.03185), as its language-model code has it: log r
    is at most 10, and goes on as a straight line. With samples of the policy its gradient is ``grad chi2 / 2 + grad
    KL(reference, policy)`` over twice the root."""

    clip: float = 0.2
    weight: float = 0.01
    floor: float = 1e-4
    coupled: ClassVar[bool] = True
    reference: ClassVar[str] = "reference"
    skips_zero_advantage: ClassVar[bool] = False

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip, self.clip

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        loss = dual_clipped(likelihood.logp - batch.old.logp, batch.advantage, self.clip, self.clip, None)
        counted = batch.weight > 0
        shift = torch.where(counted, likelihood.need(f"log_ratio/{self.reference}"), 0.0).sum(dim=1)
        live = torch.where(counted, likelihood.logp, torch.zeros_like(likelihood.logp)).sum(dim=1)
        log_ratio = shift + live - live.detach()  # its value is data; its gradient is the live policy's
        each = _exponential(log_ratio) + _exponential(-log_ratio)
        some = counted.any(dim=1)
        mean = torch.where(some, each, torch.zeros_like(each)).sum() / some.sum().clamp(min=1)
        return loss + self.weight * mean.clamp(min=self.floor).sqrt()


def divergence_range(delta: float) -> tuple[float, float]:
    """The ratios below and above 1 where ``x - 1 - log x = delta``, by Newton's method."""
    low, high = math.exp(-1 - delta), 1 + math.sqrt(2 * delta) + delta
    for _ in range(60):
        low -= (low - 1 - math.log(low) - delta) / (1 - 1 / low) if low < 1 else 0.0
        high -= (high - 1 - math.log(high) - delta) / (1 - 1 / high) if high > 1 else 0.0
    return (low, high) if delta else (1.0, 1.0)


def _exponential(x: Tensor, most: float = 10.0) -> Tensor:
    """``exp(x) - 1``, a straight line beyond ``most``."""
    return x.clamp(max=most).expm1() + math.exp(most) * (x - most).clamp(min=0)


def _by_sign(advantage: Tensor, positive: float, negative: float) -> Tensor:
    """[N, D] one number for good decisions, another one for others."""
    return torch.where(advantage > 0, torch.full_like(advantage, positive), torch.full_like(advantage, negative))


def _ratio(likelihood: Likelihood, batch: Batch) -> Tensor:
    return (likelihood.logp - batch.old.logp).clamp(max=MOST).exp()


def _sample_sum(likelihood: Likelihood, batch: Batch) -> Tensor:
    """[N, 1] log-ratios of whole samples, without gradient."""
    d = (likelihood.logp - batch.old.logp).detach()
    return torch.where(batch.weight > 0, d, torch.zeros_like(d)).sum(dim=1, keepdim=True).clamp(-MOST, MOST)
