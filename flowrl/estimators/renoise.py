"""The reward's own gradient through one step from noise that is known: samples noised afresh, and judged again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.matching import MatchingRows, probe_matching
from flowrl.estimators.pathwise import EVENT_STREAM, judge_of, like, named
from flowrl.estimators.times import LastTime, TimeDraw
from flowrl.math.flow import clean_of, interpolate
from flowrl.math.gaussians import mean_square
from flowrl.math.random import normal, uniform
from flowrl.types import CfgGrad, Condition, FlowPolicy, Judge, Likelihood, Rollout


@dataclass(frozen=True)
class RenoiseRows(MatchingRows):
    """Where the policy is asked to denoise, and what judges its answer."""

    row: Tensor  # [N, M] int64
    judge: Judge


@dataclass(frozen=True, kw_only=True)
class Renoise:
    """Noises the sample afresh and judges the clean latent ``x_t - t v`` that one step predicts: M one-step gradients,
    each at another noise. With the last time of the grid DRaFT-LV (arXiv:2309.17400), whose further draws make the
    gradient of DRaFT-1 less noisy for the cost of a forward each. Needs no recorded states and any sampler will do.

    ``prediction/<set>`` is the mean squared difference of velocities; ``logp`` minus the mean square of how far the
    prediction is from the sample.
    """

    times: TimeDraw = LastTime()
    draws: int = 2
    guidance: float | None = None
    cfg_grad: CfgGrad = "both"
    judged: ClassVar[bool] = True

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return self.draws, self.draws

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> RenoiseRows:
        rows = probe_matching(self.times, self.draws, rollout, policy, seeds)
        number = torch.arange(len(seeds))[:, None].expand(rows.t.shape)
        return RenoiseRows(**vars(rows), row=number, judge=judge_of(rollout))

    def recorded_logp(self, rollout: Rollout, rows: RenoiseRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: RenoiseRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        clean, noise = (put(value, policy.device).flatten(0, 1) for value in (rows.clean, rows.noise))
        t = rows.t.flatten()
        x = interpolate(clean, noise, t)
        v, extra = _asked(self, policy, rows, x, t, condition, references)
        predicted = clean_of(x, v, t)
        rewards = rows.judge(predicted, rows.row.flatten())
        return _answered(rows, predicted - clean, rewards, extra)


@dataclass(frozen=True)
class RelativeRows(RenoiseRows):
    """Of every sample two branches: from above the common time down to it, and from below it up."""

    start: Tensor  # [N, 2] float64: where the network is asked; ``t`` is the common time, which the step leads to
    emphasis: Tensor  # [N, 2] float64: k
    down: Tensor  # [N, 2] bool: whether it is the branch from above

    @property
    def noise(self) -> Tensor:
        """[N, 2, ...]: the noise that the sampler began with."""
        drawn = normal(self.seeds[:, 0], tuple(self.clean.shape[2:]), stream=0)
        return drawn[:, None].expand(-1, self.clean.shape[1], *drawn.shape[1:])


@dataclass(frozen=True, kw_only=True)
class RelativeRenoise:
    """SRPO (arXiv:2509.06942): a known noise e is added to the sample, and after one step of the network taken off
    again, ``x0^ = (x_t' - t' e) / (1 - t')``, so that what is judged is sharp at any noise level. The reward is
    relative between two texts, ``(1 + k) r(first) - r(second)``, which differ by control words.

    Branch 0 begins at ``t' + width`` and steps down to t', with ``good`` first; branch 1 begins at ``t' - width`` and
    steps up, with ``bad`` first. An error of the velocity moves what the two judge in opposite directions, so that with
    the texts exchanged their gradients add, and what a reward says of any text cancels.

    low, high: of the common time, which every sample draws for itself; ``width`` is cut short at these ends.
    denoise, invert: k at ``high`` and at ``low`` for the two branches, linear between.
    """

    low: float = 0.75
    high: float = 0.964
    width: float = 0.0214
    denoise: tuple[float, float] = (0.1, 0.25)
    invert: tuple[float, float] = (0.3, 0.01)
    good: str = "Realistic photo. {}"
    bad: str = "CG render. {}"
    guidance: float | None = None
    cfg_grad: CfgGrad = "both"
    judged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"low={self.low} and high={self.high} are times between 0 and 1, the lower one first")
        if not self.width > 0:
            raise ValueError(f"width={self.width} is how far a step goes; give more than 0")
        for name, text in (("good", self.good), ("bad", self.bad)):
            if "{}" not in text:
                raise ValueError(f"{name}={text!r} has no place for the prompt; write {{}} where it goes")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return 2, 2

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> RelativeRows:
        place = 0.02 + 0.96 * uniform(seeds, (1,), stream=EVENT_STREAM)  # at the ends a step would have no width
        place = place.expand(-1, 2)
        t = policy.snap(self.high + place * (self.low - self.high))
        side = torch.tensor([self.width, -self.width], dtype=torch.float64)
        start = policy.snap((t + side).clamp(self.low, self.high))
        first, last = (torch.tensor(k, dtype=torch.float64) for k in zip(self.denoise, self.invert, strict=True))
        clean = rollout.final.float().cpu()
        row = torch.arange(len(seeds))[:, None].expand(-1, 2)
        return RelativeRows(
            clean=clean[:, None].expand(-1, 2, *clean.shape[1:]),
            seeds=rollout.seeds[:, None].expand(-1, 2),
            number=torch.zeros_like(row),
            t=t,
            draws=1,
            row=row,
            judge=judge_of(rollout),
            start=start,
            emphasis=first + place * (last - first),
            down=(side > 0).expand(row.shape),
        )

    def recorded_logp(self, rollout: Rollout, rows: RelativeRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: RelativeRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        clean, noise = (put(value, policy.device).flatten(0, 1) for value in (rows.clean, rows.noise))
        t, start = rows.t.flatten(), rows.start.flatten()
        x = interpolate(clean, noise, start)
        v, extra = _asked(self, policy, rows, x, start, condition, references)
        moved = x + like(t - start, x) * v
        predicted = (moved - like(t, x) * noise) / like(1 - t, x)
        good, bad = rows.judge.in_words(predicted, rows.row.flatten(), (self.good, self.bad))
        down = put(rows.down.flatten()[:, None], good.device)
        first, second = torch.where(down, good, bad), torch.where(down, bad, good)
        relative = (1 + put(rows.emphasis.flatten()[:, None], good)) * first - second
        return _answered(rows, predicted - clean, relative, extra)


def _asked(
    estimator: Renoise | RelativeRenoise,
    policy: FlowPolicy,
    rows: RenoiseRows,
    x: Tensor,
    t: Tensor,
    condition: Condition,
    references: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The live velocity at x [n * d, ...] and t [n * d], and how far those of weight sets are from it."""
    n, d = rows.t.shape
    each = condition.take(torch.arange(n).repeat_interleave(d))
    frozen = {}
    for name in references:  # before the live pass, whose graph waits
        with policy.using(name) as asked:
            frozen[name] = asked.velocity(x, t, each, guidance=estimator.guidance)
    v = policy.velocity(x, t, each, guidance=estimator.guidance, cfg_grad=estimator.cfg_grad)
    return v, {f"prediction/{name}": mean_square(v - other, 1) for name, other in frozen.items()}


def _answered(rows: RenoiseRows, miss: Tensor, rewards: Tensor, extra: dict[str, Tensor]) -> Likelihood:
    every = {**named(rows.judge, rewards), **extra}
    logp = -mean_square(miss.detach(), 1).reshape(rows.t.shape)
    return Likelihood(logp, {key: value.reshape(rows.t.shape) for key, value in every.items()})
