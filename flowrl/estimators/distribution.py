"""Distribution matching: the difference of two scores at the clean latents that a few-step policy predicts, and the
denoising error of those latents, by which the second score learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.matching import Matching, MatchingRows
from flowrl.estimators.pathwise import added_noise, like, recorded_steps
from flowrl.estimators.times import TimeDraw, UniformTimes
from flowrl.estimators.transitions import RecordedRows, predictions
from flowrl.math.flow import clean_of, interpolate
from flowrl.math.gaussians import mean_square
from flowrl.math.random import derive, normal, uniform
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout, Steps

STEP_STREAM = 1015  # far from the samplers' streams of the same seeds, and from those of the other estimators


@dataclass(frozen=True)
class ScoreDifferenceRows(RecordedRows):
    """One recorded step of every sample, and the time up to which what it predicts is noised again."""

    seeds: Tensor  # [N, 1] int64: of that noise
    noised_to: Tensor  # [N, 1] float64


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """``logp = -1/2 mean (x0 - sg(x0 - d))^2`` of the clean latent ``x0 = x - t v`` that a recorded step of each sample
    predicts: the gradient of ``-logp`` with respect to the D numbers of x0 is ``d / D``. DMD2 (arXiv:2405.14867), DMD
    (arXiv:2311.18828, eq. 7 and 8).

    ``d = (x0_fake - x0_real) / mean |x0 - x0_real|`` of the clean latents that two weight sets predict where x0 is
    noised to another time s. The numerator is ``s^2 / (1 - s) (score_fake - score_real)``, so descent along d lowers
    the KL of what the policy predicts to what ``real`` knows, at every noise level with a positive weight, if ``fake``
    knows what the policy predicts: a companion that learns by `PredictedMatching`. d is data. It is 0 where ``fake``
    equals ``real``.

    times: of s, one for every sample. guidance: scale of ``real`` alone (null: the policy's own); ``fake`` has none.
    The step is drawn for every sample, evenly among all recorded (window ``last_steps``); the policy's own guidance is
    the sampler's. ``prediction/<set>``: the mean squared difference of velocities there.
    """

    fake: str = "fake"
    real: str = "reference"
    times: TimeDraw = UniformTimes(0.02, 0.98)
    guidance: float | None = None
    cfg_grad: CfgGrad = "both"

    def __post_init__(self) -> None:
        if self.fake == self.real:
            raise ValueError(f"fake={self.fake!r} and real={self.real!r} have no difference; name two weight sets")

    @property
    def references(self) -> tuple[str, ...]:
        return self.fake, self.real

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        _check_recorded(recorded)
        return 1, 1

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> ScoreDifferenceRows:
        steps, _ = recorded_steps(rollout)
        assert rollout.times is not None
        event = drawn_steps(steps, seeds)[:, None]
        sample = torch.arange(len(seeds))[:, None]
        own = torch.tensor([derive(int(seed), "noised") for seed in seeds])  # apart from what the fake score learns at
        noised_to = policy.snap(self.times(1, rollout.times.cpu(), own))
        at = (steps.t[sample, event], steps.t_next[sample, event])
        return ScoreDifferenceRows(*at, steps, sample, event, own[:, None], noised_to)

    def recorded_logp(self, rollout: Rollout, rows: ScoreDifferenceRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: ScoreDifferenceRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        clean, d = self.direction(policy, rows, condition)
        return nearer(clean - d, policy, rows, condition, references, self.cfg_grad)

    @torch.no_grad()
    def direction(self, policy: FlowPolicy, rows: ScoreDifferenceRows, condition: Condition) -> tuple[Tensor, Tensor]:
        """``(x0, d)``, each [N, ...], without gradient."""
        x, t, s = put(rows.x[:, 0], policy.device), rows.t[:, 0], rows.noised_to[:, 0]
        v = policy.velocity(x, t, condition, guidance=rows.steps.guidance)
        clean = clean_of(x, v, t)
        noise = put(normal(rows.seeds[:, 0], tuple(clean.shape[1:]), stream=STEP_STREAM), clean)
        noised, known = interpolate(clean, noise, s), []
        for name, scale in ((self.fake, 1.0), (self.real, self.guidance)):
            with policy.using(name) as asked:
                known.append(clean_of(noised, asked.velocity(noised, s, condition, guidance=scale), s))
        fake, real = known
        size = (clean - real).abs().flatten(1).mean(dim=1).clamp(min=1e-8)
        return clean, (fake - real) / size.reshape(-1, *[1] * (clean.ndim - 1))


def nearer(
    target: Tensor,
    policy: FlowPolicy,
    rows: RecordedRows,
    condition: Condition,
    references: Sequence[str],
    cfg_grad: CfgGrad,
) -> Likelihood:
    """``-1/2 mean (x0 - target)^2`` of the clean latents x0 that recorded steps predict, which have the gradient;
    ``prediction/<set>``: the mean squared difference of velocities there."""
    shape = rows.t.shape
    made = predictions(policy, rows, condition, references, cfg_grad)
    error = mean_square(clean_of(made.x, made.v, made.t) - target, 1)
    extra = {f"prediction/{name}": mean_square(made.v - v, 1).reshape(shape) for name, v in made.frozen.items()}
    return Likelihood(-0.5 * error.reshape(shape), extra)


@dataclass(frozen=True, kw_only=True)
class PredictedMatching(Matching):
    """`Matching` of what the steps of a few-step policy predict clean, instead of its samples: of the step of each
    sample that `ScoreDifference` asks for as well. What was predicted is read off the record."""

    def decisions(self, recorded: int) -> tuple[int, int]:
        _check_recorded(recorded)
        return super().decisions(recorded)

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> MatchingRows:
        return super().probe(replace(rollout, final=predicted_clean(rollout, seeds)), policy, seeds)


def drawn_steps(steps: Steps, seeds: Tensor) -> Tensor:
    """[N] which of the recorded steps is looked at, evenly drawn for each of the seeds [N]."""
    known = steps.t.shape[1]
    return (uniform(seeds, (1,), stream=STEP_STREAM)[:, 0] * known).long().clamp(max=known - 1)


def predicted_clean(rollout: Rollout, seeds: Tensor) -> Tensor:
    """[N, ...] on the host: the clean latents that the sampling policy predicted in the `drawn_steps` of ``seeds``,
    from the states before and after and the noise that the sampler added in between."""
    steps, first = recorded_steps(rollout)
    event, row = drawn_steps(steps, seeds), torch.arange(len(seeds))
    t, t_next = steps.t[row, event], steps.t_next[row, event]
    x, after = (steps.states[row, event + later].float() for later in (0, 1))
    a, b, s = steps.dynamics.coefficients(t, t_next)
    noise = added_noise(s, first + event, rollout.seeds, x)
    return clean_of(x, (after - like(a, x) * x - noise) / like(b, x), t)


def _check_recorded(recorded: int) -> None:
    if not recorded:
        raise IncompatibleError("distribution matching needs recorded states: give the sampler the window last_steps")
