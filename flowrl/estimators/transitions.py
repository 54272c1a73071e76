"""Likelihood of recorded Gaussian steps, by replaying them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor

from flowrl.devices import put, wide
from flowrl.math.flow import Floored, measure_step
from flowrl.math.gaussians import Reduction, elements, kl_equal_variance, log_density, mean_square, reduce_factor
from flowrl.math.random import uniform
from flowrl.types import (
    CfgGrad,
    Condition,
    Dynamics,
    FlowPolicy,
    IncompatibleError,
    Likelihood,
    Rollout,
    Share,
    StepRows,
    Steps,
)

SUBSET_STREAM = 1001  # far from the sampler's streams of the same seeds


@dataclass(frozen=True)
class RecordedRows(StepRows):
    """Recorded steps. The states are the sampler's, shared by every block and read where they are asked for. An event
    is a step of the sampler's record."""

    steps: Steps
    sample: Tensor  # [N, D] int64: whose step it is
    event: Tensor  # [N, D] int64: which of the recorded steps it is

    @property
    def x(self) -> Tensor:
        """[N, D, ...]: where the steps start."""
        return self.steps.states[self.sample, self.event]

    @property
    def x_next(self) -> Tensor:
        """[N, D, ...]: where the steps end."""
        return self.steps.states[self.sample, self.event + 1]

    @property
    def mean(self) -> Tensor | None:
        """[N, D, ...]: the sampling policy's means, where they were kept."""
        return None if self.steps.mean is None else self.steps.mean[self.sample, self.event]

    @property
    def dynamics(self) -> Dynamics:
        """The kernel they were made with."""
        return self.steps.dynamics

    @property
    def events(self) -> Tensor:
        return self.event

    def gathered(self, share: Share) -> Self:
        """The states stay where they were made."""
        if share.whole:
            return self
        known, mean = super().gathered(share), self.steps.mean
        elsewhere = {"states": self.steps.states.to("meta"), "mean": None if mean is None else mean.to("meta")}
        return replace(known, steps=replace(self.steps, **elsewhere))


@dataclass(frozen=True)
class TransitionRows(RecordedRows):
    """Recorded steps to be trained."""

    squared: Tensor
    shared: Tensor | None = None  # [N, D] int64, see `Rows.node`

    @property
    def node(self) -> Tensor | None:
        return self.shared


@dataclass(frozen=True)
class Predictions:
    """Velocities at recorded steps, flat over rows and decisions and on the policy's device."""

    x: Tensor  # [n * d, ...]
    x_next: Tensor
    t: Tensor  # [n * d]
    t_next: Tensor
    v: Tensor
    """The live policy's, with gradient where enabled."""
    frozen: dict[str, Tensor]
    """Those of other weight sets, by name."""


def predictions(
    policy: FlowPolicy, rows: RecordedRows, condition: Condition, references: Sequence[str], cfg_grad: CfgGrad
) -> Predictions:
    """What the live policy and other weight sets predict where recorded steps start, with the guidance of the steps."""
    n, d = rows.t.shape
    x, x_next = (put(_flat(value), policy.device) for value in (rows.x, rows.x_next))
    t, t_next = rows.t.reshape(-1), rows.t_next.reshape(-1)
    wide = condition.take(torch.arange(n).repeat_interleave(d))

    def velocity(model: FlowPolicy) -> Tensor:
        return model.velocity(x, t, wide, guidance=rows.steps.guidance, cfg_grad=cfg_grad)

    frozen = {}
    for name in references:  # before the live pass: swapping weights under a live graph would corrupt it
        with policy.using(name) as reference:
            frozen[name] = velocity(reference)
    return Predictions(x, x_next, t, t_next, velocity(policy), frozen)


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """``log p(x_next | x)`` of every recorded step under the kernel it was made with. DDPO (arXiv:2305.13301).

    measure: ``gaussian`` is the log-density. ``unit`` is ``-|x_next - mean|^2``, FlowCPS's own, i.e. the log-density
    times
        ``2 s^2`` without its normaliser: an implicit weight that fades out the late, nearly noiseless steps.
        ``noise`` is GRPO-Guard's normalised log-ratio (arXiv:2510.22319) ``z . (mean - old mean)``, with the recorded
        noise z: it equals ``s (l - l_old + |mean - old mean|^2 / 2 s^2)``, is unbiased, and has a spread that does
        not depend on s.
    reduction: over the D latent elements, see `flowrl.math.gaussians.reduce_factor`.
    bounds: log-densities of single elements outside this range are moved into it before they are reduced, and have no
        gradient there; of a `Floored` kernel in the units of a DDPM, as `irom-princeton/dppo` does with -5 and 2. The
        rollout then does not know them, and they are measured before the first update. Measure ``gaussian`` alone.
    fraction: share of the recorded steps trained, drawn anew for each sample (DanceGRPO: 0.6).
    kl: what ``kl/<set>`` means (``kl/sampler`` is always ``exact``, without gradient, and there where the sampler keeps
        its means). ``exact`` is the KL of the two kernels per latent element; ``per_time`` multiplies
    it by
        ``|t' - t|``, which is what Flow-GRPO's code computes (its std omits the square root of the step); ``shift`` is
        the mean squared shift of the mean itself, FlowCPS's.
    """

    measure: Literal["gaussian", "unit", "noise"] = "gaussian"
    reduction: Reduction = "mean"
    bounds: tuple[float, float] | None = None
    fraction: float = 1.0
    kl: Literal["exact", "per_time", "shift"] = "per_time"
    cfg_grad: CfgGrad = "both"
    path_error: bool = False
    """Also measure ``path_error``, the mean squared difference of the velocity and that of a step itself,
    ``(x_next - x) / (t_next - t)``: on the straight path of a picture of a data set (`flowrl.samplers.mixed`) it is the
    denoising error."""

    def __post_init__(self) -> None:
        if self.bounds is None:
            return
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds={self.bounds} of log-densities are two numbers, the smaller one first")
        if self.measure != "gaussian":
            raise ValueError(f"bounds are those of log-densities, and measure={self.measure}; remove one of them")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return not self.path_error and self.bounds is None

    @property
    def weight_vanishes(self) -> bool:
        """Whether the weight of a step vanishes with its noise."""
        return self.measure == "unit"

    def decisions(self, recorded: int) -> tuple[int, int]:
        if not recorded:
            raise IncompatibleError("the sampler records no step, so there is nothing to train; give it a window")
        kept = max(1, int(recorded * min(self.fraction, 1)))
        return kept, kept

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> TransitionRows:
        steps = rollout.trace
        if not isinstance(steps, Steps):
            raise IncompatibleError("transitions need recorded steps: give the sampler a window and noisy dynamics")
        if steps.squared is None:
            raise IncompatibleError("transitions need the densities of steps, and this window records states alone")
        if self.measure == "noise" and steps.mean is None:
            raise IncompatibleError("measure='noise' needs the sampling policy's means: set sampler.record_mean=true")
        event = torch.arange(steps.t.shape[1]).expand(steps.t.shape)
        sample = torch.arange(len(event))[:, None].expand(event.shape)
        node = None if steps.node is None else steps.node[:, 1:]
        rows = TransitionRows(steps.t, steps.t_next, steps, sample, event, steps.squared, node)
        return rows if self.fraction >= 1 else self._subset(rows, seeds)

    def _subset(self, rows: TransitionRows, seeds: Tensor) -> TransitionRows:
        count = rows.t.shape[1]
        kept = max(1, int(count * self.fraction))
        order = uniform(seeds, (count,), stream=SUBSET_STREAM).argsort(dim=1)[:, :kept].sort(dim=1).values
        line = torch.arange(len(order))[:, None]

        picked = {f.name: getattr(rows, f.name) for f in fields(rows)}
        return replace(rows, **{k: v[line, order] for k, v in picked.items() if isinstance(v, Tensor)})

    def recorded_logp(self, rollout: Rollout, rows: TransitionRows) -> Likelihood | None:
        """Known from the rollout: replaying it with an unchanged policy must give exactly this. ``None`` with
        ``path_error``, because the paths of a data set were drawn by nobody, and with ``bounds``."""
        return Likelihood(self.recorded(rows)) if self.has_recorded_logp else None

    def recorded(self, rows: TransitionRows) -> Tensor:
        """[N, D] the sampling policy's."""
        if self.measure == "noise":
            return torch.zeros_like(rows.squared)
        s = rows.dynamics.coefficients(rows.t, rows.t_next)[2]
        return self._log(rows.squared, s, elements(rows.steps.states, 2))

    def __call__(
        self, policy: FlowPolicy, rows: TransitionRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        n, d = rows.t.shape
        at = predictions(policy, rows, condition, references, self.cfg_grad)
        x, x_next, t, t_next, v = at.x, at.x_next, at.t, at.t_next, at.v
        squared, mean, s = measure_step(rows.dynamics, x, v, x_next, t, t_next)
        extra = {}
        for name, other in at.frozen.items():
            apart, mean_other, _ = measure_step(rows.dynamics, x, other, x_next, t, t_next)
            shift = mean - mean_other
            extra[f"kl/{name}"] = self._divergence(shift, s, put(t - t_next, s))
            extra[f"prediction/{name}"] = mean_square(v - other, 1)
            if self.measure != "noise":
                count = elements(x, 1)
                extra[f"log_ratio/{name}"] = self._log(squared.detach(), s, count) - self._log(apart, s, count)
        if self.path_error:
            step = put(t_next - t, v).reshape(-1, *[1] * (x.ndim - 1))
            extra["path_error"] = mean_square(v - (x_next - x) / step, 1)
        kept = rows.mean
        if kept is not None:
            moved = mean.detach() - put(_flat(kept), mean.device)
            extra["kl/sampler"] = kl_equal_variance(moved, s, 1) / elements(moved, 1)
        if self.measure == "noise":
            logp = self._noise_ratio(mean, rows, x_next, s)
        elif self.bounds is not None:
            logp = self._bounded(mean, x_next, s, rows.dynamics, t_next)
        else:
            logp = self._log(squared, s, elements(x, 1))
        return Likelihood(logp.reshape(n, d), {key: value.reshape(n, d) for key, value in extra.items()})

    def _divergence(self, shift: Tensor, s: Tensor, step: Tensor) -> Tensor:
        """[B] per latent element, from the shift [B, ...] of the mean."""
        if self.kl == "shift":
            return mean_square(wide(shift), 1)
        kl = kl_equal_variance(shift, s, 1) / elements(shift, 1)
        return kl * step if self.kl == "per_time" else kl

    def _log(self, squared: Tensor, s: Tensor, count: int) -> Tensor:
        factor = reduce_factor(self.reduction, count)
        if self.measure == "unit":
            return -squared * s**2 * factor
        return log_density(squared, s, count) * factor

    def _bounded(self, mean: Tensor, x_next: Tensor, s: Tensor, dynamics: Dynamics, t_next: Tensor) -> Tensor:
        """[n] float64: the reduced log-densities of single elements, each moved into ``bounds``."""
        assert self.bounds is not None
        unit = put(dynamics.scale(t_next), s) if isinstance(dynamics, Floored) else torch.ones_like(s)
        z = wide((x_next - mean).flatten(1)) / s[:, None]
        each = -0.5 * z**2 - ((s / unit).log() + 0.5 * math.log(2 * math.pi))[:, None]
        return each.clamp(*self.bounds).sum(dim=1) * reduce_factor(self.reduction, z.shape[1])

    def _noise_ratio(self, mean: Tensor, rows: TransitionRows, x_next: Tensor, s: Tensor) -> Tensor:
        kept = rows.mean
        assert kept is not None
        old_mean = put(_flat(kept), mean.device)
        z = wide((x_next - old_mean).flatten(1)) / s[:, None]
        shift = wide((mean - old_mean).flatten(1))
        return (z * shift).sum(dim=1) * reduce_factor(self.reduction, elements(mean, 1))


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1, *value.shape[2:])
