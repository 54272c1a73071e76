"""Likelihood and advantage to a loss per decision [N, D]. Objectives never call a network and never reduce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.types import Batch, Bounds, IncompatibleError, Likelihood, ViewRows

REWARD = "reward/"
"""And the name of a reward: its value with a gradient, of what a decision leads to."""


class ObjectiveDefaults:
    """What the trainer must know of an objective (see `flowrl.types.Objective`), as most of them have it."""

    reference: ClassVar[str] = ""
    coupled: ClassVar[bool] = False
    skips_zero_advantage: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = True
    off_policy: ClassVar[bool] = False

    @property
    def clip_range(self) -> tuple[float, float] | None:
        return None

    def bounds(self, likelihood: Likelihood, batch: Batch) -> Bounds | None:
        return self.clip_range

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.logp - batch.old.logp

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        return {}


@dataclass(frozen=True)
class ScoreFunction(ObjectiveDefaults):
    """``-A log p``: REINFORCE; with positive advantage, weighted maximum likelihood (RWR, RAFT)."""

    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return -batch.advantage * likelihood.logp


@dataclass(frozen=True)
class Clipped(ObjectiveDefaults):
    """``max(-A rho, -A clip(rho, 1 - low, 1 + high))`` with ``rho = exp(log p - log p_old)``. PPO (arXiv:1707.06347)
    eq. 7; ``high > low`` is DAPO's clip-higher (arXiv:2503.14476).

    dual: c of the second clip for ``A < 0``, ``min(loss, -c A)``: a bad decision that has become more likely than c
    times is no longer pushed (Dual-clip PPO, arXiv:1912.09729 eq. 5; verl's ``clip_ratio_c``, 3 there). ``None``: none.

    A token advantage may give each decision its own range: ``low`` and ``high`` [N, D] in ``old.extra``.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"dual={self.dual} bounds a ratio from above: give more than 1 (verl has 3), or null")

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.low, self.high

    def bounds(self, likelihood: Likelihood, batch: Batch) -> Bounds:
        return batch.old.extra.get("low", self.low), batch.old.extra.get("high", self.high)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        low, high = self.bounds(likelihood, batch)
        return dual_clipped(likelihood.logp - batch.old.logp, batch.advantage, low, high, self.dual)


@dataclass(frozen=True)
class ConfidentClipped(Clipped):
    """`Clipped` times the probability that the policy that sampled had for the decision: tokens that it was unsure of
    count little. MDPO (arXiv:2508.13148)."""

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return super().__call__(likelihood, batch) * batch.old.logp.exp()


@dataclass(frozen=True)
class ClippedMean(ObjectiveDefaults):
    """PPO's clip on one ratio per sample, ``exp(mean over its decisions of the log-ratio)``.

    Over tokens this is GSPO's length-normalised sequence ratio (arXiv:2507.18071), over (time, noise) draws FPO's
    (arXiv:2507.21053), over views the ratio of two likelihood bounds (GDPO, arXiv:2510.08554). Averaging before the
    exponential is what they do; exponentiating each draw first is biased upwards (Jensen) and is `Clipped`. Couples the
    decisions of a sample.

    by_length: divide the mean of views, which estimates a whole completion's log-ratio, by the number of its tokens,
    as GDPO's derived codes do. Over tokens the mean is one per token already.
    """

    low: float = 0.05
    high: float = 0.05
    by_length: bool = False
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.low, self.high

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        mean = sample_mean(likelihood.logp - batch.old.logp, batch.weight > 0)
        if not self.by_length:
            return mean
        if not isinstance(batch.probe, ViewRows) or batch.probe.per != "view":
            raise IncompatibleError("objective.by_length divides the bounds of completions: set estimator.per=view")
        return mean / batch.probe.content.sum(dim=1).clamp(min=1).to(mean)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        log_ratio = self.log_ratio(likelihood, batch)
        return _clipped(log_ratio[:, None].expand_as(likelihood.logp), batch.advantage, self.low, self.high)


@dataclass(frozen=True)
class ClippedWeight(ObjectiveDefaults):
    """``-sg(min(rho, 1 + high)) A log p``: the ratio only weights the score, so no token loses its gradient. CISPO
    (MiniMax-M1, arXiv:2506.13585)."""

    high: float = 4.0

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        ratio = (likelihood.logp - batch.old.logp).detach().exp().clamp(max=1 + self.high)
        return -ratio * batch.advantage * likelihood.logp


@dataclass(frozen=True)
class AsymmetricClip(ObjectiveDefaults):
    """PPO's clip for ``A >= 0``; for ``A < 0`` the gain ``rho A - |A| (rho - 1)^2 / (2 clip)`` of SPO, whose slope is A
    at ratio 1, 0 at ``1 - clip``, and beyond pulls back. FPO++ (arXiv:2602.02481), whose page and a port of it
    (typoverflow/flow-rl) are the sources; the decisions of a sample are not coupled.

    A clipped surrogate lets bad samples be repelled for ever: nothing pulls back what an update moved too far, and a
    matching error can grow without bound. Here it is drawn back to ``1 - clip``. ``most`` caps the log-ratio of bad
    samples, so that the square stays finite, and its gradient passes, so that they are still drawn back, as in the
    port.
    """

    clip: float = 0.05
    most: float = 10.0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip={self.clip} divides the pull of bad samples; give more than 0")

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip, self.clip

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        log_ratio = likelihood.logp - batch.old.logp
        ratio = (log_ratio - (log_ratio - self.most).clamp(min=0).detach()).exp()
        pulled = -ratio * batch.advantage + batch.advantage.abs() * (ratio - 1) ** 2 / (2 * self.clip)
        return torch.where(batch.advantage >= 0, _clipped(log_ratio, batch.advantage, self.clip, self.clip), pulled)


@dataclass(frozen=True)
class LinearBound(ObjectiveDefaults):
    """A lower bound of ``A exp(mean over views of d)``, ``d = log p - log p_old``, that is a sum over views:
    ``A (1 + d)`` for ``A >= 0`` and ``A exp(d)`` for ``A < 0``. BGPO (arXiv:2510.11683) eq. 8.

    Value and gradient equal the target's at the old policy; each view can be back-propagated by itself. ``most`` caps d
    in the exponential (bounds at small t have heavy tails; the released code was not available to compare).
    """

    most: float = 10.0

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        d = likelihood.logp - batch.old.logp
        return -batch.advantage * torch.where(batch.advantage >= 0, 1 + d, d.clamp(max=self.most).exp())


def _check_range(low: float, high: float) -> None:
    if low < 0 or high < 0:
        raise ValueError(f"low={low} and high={high} say how far a ratio may go from 1; give 0 or more")


def dual_clipped(
    log_ratio: Tensor, advantage: Tensor, low: float | Tensor, high: float | Tensor, dual: float | None
) -> Tensor:
    """[N, D] PPO's clipped loss, and for ``A < 0`` at most ``-dual A``."""
    loss = _clipped(log_ratio, advantage, low, high)
    return loss if dual is None else torch.where(advantage < 0, torch.minimum(loss, -advantage * dual), loss)


def _clipped(log_ratio: Tensor, advantage: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    ratio = log_ratio.exp()
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        least, most = (torch.as_tensor(edge, dtype=ratio.dtype, device=ratio.device) for edge in (1 - low, 1 + high))
        kept = ratio.clamp(least, most)
    else:
        kept = ratio.clamp(1 - low, 1 + high)
    return torch.maximum(-advantage * ratio, -advantage * kept)


@dataclass(frozen=True)
class ImplicitPair(ObjectiveDefaults):
    """``a / b (r L+ + (1 - r) L-)`` with ``r = clip(A / a, -1, 1) / 2 + 1/2``, ``a = max_advantage``. DiffusionNFT
    (arXiv:2509.16117).

    ``L+-`` come from `ContrastedMatching` with the same ``strength`` b. Affine in r; at the old policy its gradient
    is that of advantage-weighted matching for every b, and the rest is a trust region of strength b around the old
    policy.
    """

    strength: float = 1.0
    max_advantage: float = 5.0
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        good = (batch.advantage / self.max_advantage).clamp(-1, 1) / 2 + 0.5
        pair = good * likelihood.logp + (1 - good) * likelihood.need("logp_negative")
        return -self.max_advantage / self.strength * pair


@dataclass(frozen=True)
class Ascent(ObjectiveDefaults):
    """``-scale r`` of the rewards with a gradient that a pathwise estimator measures (`flowrl.estimators.pathwise`),
    summed as they count in the total; with ``cap``, ``scale relu(cap - r)``: what is good enough is left alone (ReFL,
    arXiv:2304.05977: cap 2). Reads no advantage."""

    cap: float | None = None
    scale: float = 1.0
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(
                f"scale={self.scale} multiplies the loss; give more than 0, or another sign to the rewards"
            )

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        names = [name for name in likelihood.extra if name.startswith(REWARD)] or [f"{REWARD}<name>"]
        reward = torch.stack([likelihood.need(name) for name in names]).sum(dim=0)
        return -self.scale * reward if self.cap is None else self.scale * (self.cap - reward).relu()


def sample_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[N] mean of [N, D] values over the decisions of a mask; 0 for a row without any."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
