"""Likelihood proxies from the denoising error at random times: no trajectory, any sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import put, wide
from flowrl.estimators.times import GridTimes, TimeDraw
from flowrl.math.flow import clean_of, interpolate
from flowrl.math.gaussians import Reduction, elements, mean_square, reduce_factor, squared_norm
from flowrl.math.groups import group_index
from flowrl.math.random import normal
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout, Rows

NOISE_STREAM = 1003
KEPT = 2**20
"""Numbers of noise, at most, that a probe keeps instead of drawing them anew for every micro-batch of every epoch."""


@dataclass(frozen=True)
class MatchingRows(Rows):
    """Where the policy is asked to denoise: M (time, noise) pairs for every sample."""

    large: ClassVar[frozenset[str]] = frozenset({"clean", "kept"})

    clean: Tensor  # [N, M, ...] the sample, repeated without copying
    seeds: Tensor  # [N, M] int64: of the noise, one for each sample, repeated
    number: Tensor  # [N, M] int64: which of the draws of its seed a noise is
    t: Tensor  # [N, M]
    draws: int
    """How many noises are drawn of one seed."""
    kept: Tensor | None = field(default=None, kw_only=True)  # [N, M, ...]
    """The noises, where they are few (small actions): `KEPT`."""

    @property
    def of_whole(self) -> bool:
        return True

    @property
    def noise(self) -> Tensor:
        """[N, M, ...] standard normal, drawn anew at every access where none are kept: the noises of all samples are M
        times as large as the samples, and only those of a micro-batch are needed at once."""
        if self.kept is not None:
            return self.kept
        seeds, which = self.seeds[:, 0].unique(return_inverse=True)  # samples of a group may share theirs
        drawn = normal(seeds, (self.draws, *self.clean.shape[2:]), stream=NOISE_STREAM)
        return drawn[which[:, None], self.number]


Sharing = Literal["sample", "group"]
"""Whose the times and noises of a probe are: each sample's own, or the same ones for all samples of a group."""


def probe_matching(
    times: TimeDraw,
    draws: int,
    rollout: Rollout,
    policy: FlowPolicy,
    seeds: Tensor,
    shared_by: Sharing = "sample",
) -> MatchingRows:
    """Draw M times and noises for each sample of a rollout, or for each group."""
    if rollout.times is None:
        raise IncompatibleError("matching estimators need the time grid of a continuous sampler")
    if shared_by == "group":
        seeds = group_seeds(seeds, rollout.group)
    t = policy.snap(times(draws, rollout.times.cpu(), seeds))
    clean = rollout.final.float().cpu()
    number = torch.arange(draws).expand(len(seeds), -1)
    wide = clean[:, None].expand(-1, draws, *clean.shape[1:])
    rows = MatchingRows(wide, seeds[:, None].expand(-1, draws), number, t, draws)
    return replace(rows, kept=rows.noise) if wide.numel() <= KEPT else rows


def group_seeds(seeds: Tensor, group: Tensor) -> Tensor:
    """[N] one of the seeds [N] for all rows of a group, whatever their order. Processes hold whole groups, so that it
    is the same on any number of them."""
    index, count = group_index(group)
    least = torch.full((count,), torch.iinfo(torch.int64).max)
    return least.scatter_reduce(0, index, seeds, "amin")[index]


@dataclass(frozen=True)
class Point:
    """A block of the probe, flat over rows and decisions and on the policy's device."""

    x: Tensor  # [n * d, ...]
    clean: Tensor
    noise: Tensor
    t: Tensor  # [n * d]
    condition: Condition
    scale: Tensor | None = None
    """What residuals [n * d, ...] are multiplied by before they are squared, where some count more than others."""


def point_of(policy: FlowPolicy, rows: MatchingRows, condition: Condition) -> Point:
    """A block of the probe, between clean samples and noise."""
    n, d = rows.t.shape
    clean, noise = (put(v, policy.device).flatten(0, 1) for v in (rows.clean, rows.noise))
    t = rows.t.reshape(-1)
    wide = condition.take(torch.arange(n).repeat_interleave(d))
    return Point(interpolate(clean, noise, t), clean, noise, t, wide)


def _frozen(policy: FlowPolicy, point: Point, names: Sequence[str], guidance: float | None) -> dict[str, Tensor]:
    velocities = {}
    for name in names:
        with policy.using(name) as reference:
            velocities[name] = reference.velocity(point.x, point.t, point.condition, guidance=guidance)
    return velocities


@dataclass(frozen=True, kw_only=True)
class Matching:
    """``-w(q, t)`` of the flow-matching error ``q = mean (v(x_t, t) - (noise - clean))^2``. AWM (arXiv:2509.25050).

    weight: ``uniform`` q, ``t`` t q, ``t2`` t^2 q, ``noise`` (1-t)^2 q (the error of the predicted noise: FPO,
    arXiv:2507.21053),
        ``huber`` t (sqrt(q + e) - sqrt(e)), ``ghuber`` (t/p) ((q + e)^p - e^p) with p = ``power``, e = 1e-10;
        ``adaptive`` t q / mean |v - (noise - clean)|, the error of the predicted clean latent over its own size, which
        has no gradient (DiffusionNFT's normalisation).
    reduction: of the squared error over the D numbers of a sample: ``sum``, or ``sqrt``, the sum over sqrt(D) (FPO++ in
        typoverflow/flow-rl), instead of their mean.
    most: errors (weighted and reduced) above this are it, and have no gradient (FPO++ there: 20); None: none are.
    draws: M, the (time, noise) pairs per sample; the same for the new, old and reference policy.
    guidance: scale of the trained prediction; 1 trains the conditional branch, as the papers do.
    share: whether every sample has times and noises of its own, or all samples of a group the same ones, so that what
    compares them is not the luck of the draw (Diffusion-DPO, arXiv:2311.12908; DGPO, arXiv:2510.08425).

    Of every weight set S it is asked for: ``prediction/S`` mean (v - v_S)^2; ``log_ratio/S`` the log-ratio of the live
    policy to S, without gradient; ``norm_growth/S`` |v| / |v_S| - 1.
    """

    in_units: ClassVar[bool] = True
    """Its log-probabilities are errors in the units of the samples, no densities, so that a ratio of narrow samples is
    near 1 however far they move."""
    draws: int = 4
    times: TimeDraw = GridTimes()
    weight: Literal["uniform", "t", "t2", "noise", "huber", "ghuber", "adaptive"] = "uniform"
    power: float = 0.25
    reduction: Reduction = "mean"
    most: float | None = None
    guidance: float | None = 1.0
    cfg_grad: CfgGrad = "cond"
    share: Sharing = "sample"
    compare: tuple[str, ...] = ()
    """Weight sets that it is asked for besides those of objective and regularizers."""
    guided_reference: float | None = None
    """Guidance scale of the set ``reference``, whose guided prediction a penalty may then hold on to; ``null``: as
    ``guidance``."""

    def __post_init__(self) -> None:
        if self.most is not None and not self.most > 0:
            raise ValueError(f"most={self.most} is the largest error that counts; give more than 0, or null for none")

    @property
    def references(self) -> tuple[str, ...]:
        return self.compare

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return self.draws, self.draws

    @property
    def weight_vanishes(self) -> bool:
        """Whether the weight vanishes with t, at least as fast as the sight that a network has of the noise."""
        return self.weight in ("t", "t2", "huber", "ghuber", "adaptive")

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> MatchingRows:
        return probe_matching(self.times, self.draws, rollout, policy, seeds, self.share)

    def recorded_logp(self, rollout: Rollout, rows: MatchingRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: MatchingRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        point = self._at(policy, rows, condition)
        frozen = {}
        for name in dict.fromkeys((*references, *self.compare)):
            guided = name == "reference" and self.guided_reference is not None
            scale = self.guided_reference if guided else self.guidance
            frozen |= _frozen(policy, point, [name], scale)
        v = policy.velocity(point.x, point.t, point.condition, guidance=self.guidance, cfg_grad=self.cfg_grad)
        logp, extra = self._logp(v, point), {}
        for name, other in frozen.items():
            extra[f"prediction/{name}"] = mean_square(v - other, 1)
            extra[f"log_ratio/{name}"] = logp.detach() - self._logp(other, point)
            extra[f"norm_growth/{name}"] = (squared_norm(v, 1) / squared_norm(other, 1).clamp(min=1e-30)).sqrt() - 1
        return Likelihood(logp.reshape(rows.t.shape), {k: e.reshape(rows.t.shape) for k, e in extra.items()})

    def _at(self, policy: FlowPolicy, rows: MatchingRows, condition: Condition) -> Point:
        """Where the network is asked."""
        return point_of(policy, rows, condition)

    def _logp(self, v: Tensor, point: Point) -> Tensor:
        """[n] of a velocity at the points of a block."""
        residual = wide(v - (point.noise - point.clean))
        residual = residual if point.scale is None else residual * point.scale
        error = mean_square(residual, 1)
        if self.reduction != "mean":
            count = elements(residual, 1)
            error = error * count * reduce_factor(self.reduction, count)
        size = residual.detach().abs().flatten(1).mean(dim=1) if self.weight == "adaptive" else None
        found = self.link(error, put(point.t, error), size)
        return -(found if self.most is None else found.clamp(max=self.most))

    def link(self, q: Tensor, t: Tensor, size: Tensor | None = None) -> Tensor:
        """The weighted error; ``huber`` is ``ghuber`` with power 1/2, halved, and ``t`` is ``ghuber`` with power 1.
        ``size`` is the mean absolute error, which ``adaptive`` needs."""
        tiny = 1e-10
        match self.weight:
            case "adaptive":
                assert size is not None
                return t**2 * q / (t * size).clamp(min=1e-5)
            case "uniform":
                return q
            case "t":
                return t * q
            case "t2":
                return t**2 * q
            case "noise":
                return (1 - t) ** 2 * q
            case "huber":
                return t * ((q + tiny).sqrt() - tiny**0.5)
            case "ghuber":
                return t / self.power * ((q + tiny) ** self.power - tiny**self.power)


@dataclass(frozen=True, kw_only=True)
class ContrastedMatching:
    """Errors of an implicit positive and negative policy around the old one. DiffusionNFT (arXiv:2509.16117).

    ``v+- = (1 -+ b) v_old +- b v`` predict ``x0+-``; ``logp = -mean (x0+ - x0)^2 / w+`` and ``logp_negative`` the
    same with minus, where ``w+- = max(mean |x0+- - x0|, 1e-5)`` without gradient makes the errors comparable over
    times.
    """

    draws: int = 9
    times: TimeDraw = GridTimes()
    strength: float = 1.0
    """b: smaller extrapolates further from the old policy."""
    to: str = "old"
    adaptive: bool = True
    """Divide by ``w``; ``False`` keeps the plain squared error (for tests of the exact decomposition)."""
    guidance: float | None = 1.0
    share: Sharing = "sample"
    """Whose times and noises are, as in `Matching`."""

    @property
    def references(self) -> tuple[str, ...]:
        return (self.to,)

    @property
    def weight_vanishes(self) -> bool:
        """The error of the predicted clean latent is t times that of the velocity."""
        return True

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return self.draws, self.draws

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> MatchingRows:
        return probe_matching(self.times, self.draws, rollout, policy, seeds, self.share)

    def recorded_logp(self, rollout: Rollout, rows: MatchingRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: MatchingRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        point = point_of(policy, rows, condition)
        frozen = _frozen(policy, point, [self.to, *(n for n in references if n != self.to)], self.guidance)
        v = policy.velocity(point.x, point.t, point.condition, guidance=self.guidance)
        old = frozen[self.to]
        logp = -self._error(point, old + self.strength * (v - old))
        extra = {"logp_negative": -self._error(point, old - self.strength * (v - old))}
        extra |= {f"prediction/{name}": mean_square(v - other, 1) for name, other in frozen.items()}
        return Likelihood(logp.reshape(rows.t.shape), {k: e.reshape(rows.t.shape) for k, e in extra.items()})

    def _error(self, point: Point, v: Tensor) -> Tensor:
        residual = wide((clean_of(point.x, v, point.t) - point.clean).flatten(1))
        error = residual.square().mean(dim=1)
        if not self.adaptive:
            return error
        return error / residual.detach().abs().mean(dim=1).clamp(min=1e-5)
