"""Trajectory distribution matching: scores are compared within the steps of a deterministic few-step sampler, where the
state after a step is noised on; what learns those scores, and a reward, of the same steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.distribution import nearer
from flowrl.estimators.matching import Matching, MatchingRows
from flowrl.estimators.pathwise import like, recorded_steps
from flowrl.estimators.transitions import RecordedRows
from flowrl.math.flow import clean_of, noise_of
from flowrl.math.gaussians import mean_square
from flowrl.math.random import derive, normal, uniform
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout

PLACE_STREAM, ONWARD_STREAM = 1017, 1018  # far from the samplers' streams, and from those of the other estimators


@dataclass(frozen=True)
class OnwardRows(RecordedRows):
    """All recorded steps of every sample, and the time within each to which the state after it is noised on."""

    seeds: Tensor  # [N, D] int64: of the noise
    noised_to: Tensor  # [N, D] float64, between t_next and t

    @property
    def fresh(self) -> Tensor:
        """[N, D, ...] standard normal."""
        drawn = normal(
            self.seeds[:, 0], tuple(self.steps.t.shape[1:] + self.steps.states.shape[2:]), stream=ONWARD_STREAM
        )
        return drawn[torch.arange(len(drawn))[:, None], self.event]


def onward_rows(rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> OnwardRows:
    """All recorded steps, with a time within each, even between its ends."""
    steps, _ = recorded_steps(rollout)
    if bool((steps.dynamics.coefficients(steps.t, steps.t_next)[2] > 0).any()):
        raise IncompatibleError("trajectory matching follows deterministic steps; set sampler.window.noise=false")
    event = torch.arange(steps.t.shape[1]).expand(steps.t.shape)
    sample = torch.arange(len(seeds))[:, None].expand(event.shape)
    within = _within(policy, steps.t.double(), steps.t_next.double(), seeds)
    return OnwardRows(steps.t, steps.t_next, steps, sample, event, seeds[:, None].expand(event.shape), within)


def _within(policy: FlowPolicy, t: Tensor, t_next: Tensor, seeds: Tensor) -> Tensor:
    """[N, D] times between those of steps, that the policy knows."""
    place = uniform(seeds, (t.shape[1],), stream=PLACE_STREAM)
    return torch.maximum(policy.snap(t_next + place * (t - t_next)), t_next)


@dataclass(frozen=True)
class Onward:
    """The state after steps, noised on from t_next to s, flat: ``x_s = (1 - s) clean + s noise``."""

    x: Tensor  # [n, ...]
    noise: Tensor  # of the prediction and what was added, together again of variance near 1
    added: Tensor  # what was added, standard normal
    s: Tensor  # [n]


def onward(clean: Tensor, noise: Tensor, added: Tensor, t_next: Tensor, s: Tensor) -> Onward:
    """From a prediction's clean latent and noise [n, ...], by the forward process from ``t_next`` [n] to ``s`` [n]:
    ``noise_s = (r t_next noise + sqrt(s^2 - (r t_next)^2) added) / s`` with ``r = (1 - s) / (1 - t_next)``."""
    kept = t_next * (1 - s) / (1 - t_next)
    mixed = (like(kept, noise) * noise + like((s**2 - kept**2).clamp(min=0).sqrt(), added) * added) / like(s, noise)
    return Onward(like(1 - s, clean) * clean + like(s, mixed) * mixed, mixed, added, s)


@dataclass(frozen=True, kw_only=True)
class TrajectoryDifference:
    """`ScoreDifference` at every step of a deterministic sampler, where the state after the step is noised on to a time
    within the step; with rewards as further directions. TDM (arXiv:2503.06674), TDM-R1 (arXiv:2603.07700).

    ``d = (x0_fake - x0_real) / |x0 - x0_real| - guided (x0_real - x0_cond) / ((guidance - 1) |x0 - x0_real|)
    - rewarded (x0_surrogate - x0_anchor) / |x0 - x0_surrogate|``, each a mean absolute value in the denominator and all
    asked at the same point. ``x0_real``, ``x0_surrogate`` and ``x0_anchor`` are guided, ``x0_cond`` is real without.

    surrogate: a companion that learned what is rewarded (`BoundaryMatching`); empty for none, which is TDM.
    anchor: the weight set that it started from. guided: of the direction of guidance; without guidance there is none.
    """

    fake: str = "fake"
    real: str = "reference"
    surrogate: str = ""
    anchor: str = "reference"
    guidance: float | None = None
    guided: float = 0.0
    rewarded: float = 0.7
    cfg_grad: CfgGrad = "both"

    def __post_init__(self) -> None:
        if self.fake == self.real or (self.surrogate and self.surrogate in (self.fake, self.anchor)):
            raise ValueError("fake, real and surrogate are asked for differences; name three weight sets")
        if self.guided and self.guidance is None:
            raise ValueError(f"guided={self.guided} follows guidance; give its scale as guidance, or set guided=0")

    @property
    def references(self) -> tuple[str, ...]:
        rewarded = (self.surrogate, self.anchor) if self.surrogate else ()
        return tuple(dict.fromkeys((self.fake, self.real, *rewarded)))

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return _decisions(recorded)

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> OnwardRows:
        own = torch.tensor([derive(int(seed), "noised") for seed in seeds])  # apart from what the scores learn at
        return onward_rows(rollout, policy, own)

    def recorded_logp(self, rollout: Rollout, rows: OnwardRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: OnwardRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        clean, d = self.direction(policy, rows, condition)
        return nearer(clean - d, policy, rows, condition, references, self.cfg_grad)

    @torch.no_grad()
    def direction(self, policy: FlowPolicy, rows: OnwardRows, condition: Condition) -> tuple[Tensor, Tensor]:
        """``(x0, d)``, each [N * D, ...], without gradient."""
        n, d = rows.t.shape
        each = condition.take(torch.arange(n).repeat_interleave(d))
        x, t = put(rows.x.flatten(0, 1), policy.device), rows.t.flatten()
        v = policy.velocity(x, t, each, guidance=rows.steps.guidance)
        clean = clean_of(x, v, t)
        added = put(rows.fresh.flatten(0, 1), clean)
        at = onward(clean, noise_of(x, v, t), added, rows.t_next.flatten().double(), rows.noised_to.flatten())

        def ask(name: str, scale: float | None) -> Tensor:
            with policy.using(name) as asked:
                return clean_of(at.x, asked.velocity(at.x, at.s, each, guidance=scale), at.s)

        real = ask(self.real, self.guidance)
        found = (ask(self.fake, 1.0) - real) / _size(clean - real)
        if self.guided and self.guidance is not None and self.guidance > 1:
            along = (real - ask(self.real, 1.0)) / (self.guidance - 1)
            found = found - self.guided * along / _size(clean - real)
        if self.surrogate:
            liked = ask(self.surrogate, self.guidance)
            known = real if self.anchor == self.real else ask(self.anchor, self.guidance)
            found = found - self.rewarded * (liked - known) / _size(clean - liked)
        return clean, found


@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching:
    """``logp = -w mean (v(x_s, s) - (noise_s - x0))^2`` at the points of `TrajectoryDifference`: by it the fake score
    learns what the policy's steps predict. TDM (arXiv:2503.06674).

    ``w = min((1 - s)^2, snr s^2)`` makes it the error of the clean latent, whose weight is the signal-to-noise ratio,
    at most ``snr``; times ``exp((mean added^2 - mean noise_s^2) / 2)`` within ``importance`` and its inverse, since
    ``noise_s`` holds the prediction's own noise.
    """

    snr: float = 5.0
    importance: float = 20.0
    cfg_grad: CfgGrad = "cond"

    def __post_init__(self) -> None:
        if not (self.snr > 0 and self.importance >= 1):
            raise ValueError(f"snr={self.snr} and importance={self.importance} bound weights: above 0, and 1 or more")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return _decisions(recorded)

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> OnwardRows:
        return onward_rows(rollout, policy, seeds)

    def recorded_logp(self, rollout: Rollout, rows: OnwardRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: OnwardRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        n, d = rows.t.shape
        each = condition.take(torch.arange(n).repeat_interleave(d))
        x, after, added = (put(v.flatten(0, 1), policy.device).float() for v in (rows.x, rows.x_next, rows.fresh))
        t, t_next = rows.t.flatten().double(), rows.t_next.flatten().double()
        a, b, _ = rows.steps.dynamics.coefficients(t, t_next)
        predicted = (after - like(a, x) * x) / like(b, x)
        clean = clean_of(x, predicted, t)
        at = onward(clean, noise_of(x, predicted, t), added, t_next, rows.noised_to.flatten())
        v = policy.velocity(at.x, at.s, each, guidance=1.0, cfg_grad=self.cfg_grad)
        most = math.log(self.importance)
        ratio = (0.5 * (_mean_square(added) - _mean_square(at.noise))).clamp(-most, most).exp()
        weight = torch.minimum((1 - at.s) ** 2, self.snr * at.s**2)
        error = mean_square(v - (at.noise - clean), 1)
        return Likelihood(-(put(weight, error) * put(ratio, error) * error).reshape(n, d))


@dataclass(frozen=True, kw_only=True)
class BoundaryMatching(Matching):
    """`Matching` of the states after all recorded steps, each at a time within its step: the points at which a
    surrogate learns from the rewards of the samples. TDM-R1 (arXiv:2603.07700)."""

    def decisions(self, recorded: int) -> tuple[int, int]:
        return _decisions(recorded)

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> MatchingRows:
        steps, _ = recorded_steps(rollout)
        n, d = steps.t.shape
        within = _within(policy, steps.t.double(), steps.t_next.double(), seeds)
        number = torch.arange(d).expand(n, d)
        return MatchingRows(steps.states[:, 1:].float(), seeds[:, None].expand(n, d), number, within, d)


def _decisions(recorded: int) -> tuple[int, int]:
    if not recorded:
        raise IncompatibleError("trajectory matching needs recorded states: give the sampler the window last_steps")
    return recorded, recorded


def _mean_square(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).mean(dim=1)


def _size(x: Tensor) -> Tensor:
    """Mean absolute value of every sample, to divide it by."""
    return x.abs().flatten(1).mean(dim=1).clamp(min=1e-8).reshape(-1, *[1] * (x.ndim - 1))
