"""The reward's own gradient, through the steps that made a sample: what it is asked is `flowrl.types.Rollout.judge`.

Estimators answer ``reward/<name>``, the rewards of what a sample becomes as a function of the live weights, for
`flowrl.parts.objectives.Ascent`. The way there is recorded, so that nothing but the steps with a gradient is computed
again, and memory is that of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowrl.devices import put, wide
from flowrl.estimators.transitions import RecordedRows
from flowrl.math.flow import clean_of, mean_of
from flowrl.math.gaussians import elements, kl_equal_variance, mean_square, squared_norm
from flowrl.math.random import normal, uniform
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Judge, Likelihood, Rollout, Steps

EVENT_STREAM = 1005  # far from the samplers' streams of the same seeds, and from those of the other estimators


@dataclass(frozen=True)
class ReplayRows(RecordedRows):
    """Steps to be taken again, one after the other: decision j of a sample follows its decision j - 1."""

    seeds: Tensor  # [N, D] int64: of the sampler's noise
    number: Tensor  # [N, D] int64: the step's number on the sampler's grid
    taken: Tensor  # [N, D] bool: whether it is a step of this sample
    carried: Tensor
    """[N, D] float64: by how much the recorded steps since decision j - 1 multiply a change of the state."""
    judge: Judge

    @property
    def unit(self) -> int:
        """All steps of a sample stay together."""
        return self.t.shape[1]

    @property
    def counted(self) -> Tensor:
        return self.taken


@dataclass(frozen=True)
class _Replayed:
    clean: Tensor  # [N, ...] what is judged
    states: Tensor  # [N, D, ...] where the steps start, without gradient
    miss: Tensor  # [N, D] |state after the step - recorded one|^2, without gradient
    velocities: Tensor  # [N, D, ...]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Goes on from a recorded state and judges where that leads: the gradient runs through the steps, of which none but
    these have one. DRaFT-K (arXiv:2309.17400), AlignProp (arXiv:2310.03739), ReFL (arXiv:2304.05977), DRTune
    (arXiv:2405.00760).

    It needs states of a window `flowrl.samplers.windows.LastSteps`. Noise that the sampler added is added again.
    ``logp = -|state after a step - recorded one|^2``, 0 before the first update: the check of the ratio is one of the
    replay. ``kl/<set>`` is the KL of the steps' kernels per latent element (0 for a step without noise; not measured
    where none has any), ``prediction/<set>`` the mean squared difference of velocities, ``norm_growth/<set>`` |v| /
    |v_set| - 1, all at the states of the replay, through which alone the live weights' gradient runs, not the weight
    set's.

    first: where it begins: at the first ``recorded`` step, at a ``random`` one, uniform or, with ``around`` and
        ``spread`` (shares of the recorded steps), normal; or at the ``last``, the judged step alone.
    last: which step is judged: the ``final`` one, or a ``random`` one of the last ``stop`` (None: of all recorded).
        After the final step of the grid the sample is judged, after an earlier one the clean latent it predicts.
    inputs: whether the gradient also runs through the network's input. If not, a change of one step's velocity is
        carried on by the later steps' ``A`` alone (DRTune).
    trained: without ``inputs``, how many steps have a gradient, evenly spaced back from the judged one (None: all);
        what lies between is taken from the record and costs nothing.
    checkpoint: keep no activations of the network, but compute each step again in the backward: the memory of one step
        instead of all, for a third more time.
    """

    first: Literal["recorded", "random", "last"] = "recorded"
    last: Literal["final", "random"] = "final"
    stop: int | None = None
    around: float | None = None
    spread: float = 0.1
    inputs: bool = True
    trained: int | None = None
    checkpoint: bool = True
    cfg_grad: CfgGrad = "both"
    judged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.trained is not None and self.inputs:
            raise ValueError(f"trained={self.trained} chooses steps whose input has no gradient; set inputs=false")
        if self.first != "recorded" and self.trained is not None:
            raise ValueError(f"trained={self.trained} already says where steps begin; leave first=recorded")
        if self.around is not None and self.first != "random":
            raise ValueError(f"around={self.around} is the middle of a random first step; set first=random")
        for name, value in (("trained", self.trained), ("stop", self.stop)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} leaves no step; give 1 or more, or null")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return True

    def decisions(self, recorded: int) -> tuple[int, int]:
        if not recorded:
            raise IncompatibleError("a replay needs recorded states: give the sampler the window last_steps")
        most = 1 if self.first == "last" else min(self.trained or recorded, recorded)
        return most, most

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> ReplayRows:
        steps, number = recorded_steps(rollout)
        known = steps.t.shape[1]
        last = self._last(known, seeds)
        count = self.decisions(known)[0]
        place = torch.arange(count)
        if self.trained is not None:
            apart = ((last + 1) // count).clamp(min=1)
            event = last[:, None] - (count - 1 - place) * apart[:, None]
        else:
            event = self._first(last, seeds)[:, None] + place
        taken = (event >= 0) & (event <= last[:, None])
        event = event.clamp(0, known - 1)
        sample = torch.arange(len(event))[:, None].expand(event.shape)
        return ReplayRows(
            steps.t[sample, event],
            steps.t_next[sample, event],
            steps,
            sample,
            event,
            rollout.seeds[:, None].expand(event.shape),
            number + event,
            taken,
            self._carried(steps, event),
            judge_of(rollout),
        )

    def _last(self, known: int, seeds: Tensor) -> Tensor:
        """[N] which of the recorded steps is judged."""
        if self.last == "final":
            return torch.full((len(seeds),), known - 1)
        among = min(self.stop or known, known)
        drawn = uniform(seeds, (1,), stream=EVENT_STREAM)[:, 0]
        return known - among + (drawn * among).long().clamp(max=among - 1)

    def _first(self, last: Tensor, seeds: Tensor) -> Tensor:
        """[N] the recorded step it begins with."""
        if self.first == "last":
            return last
        if self.first == "recorded":
            return torch.zeros_like(last)
        if self.around is None:
            drawn = uniform(seeds, (1,), stream=EVENT_STREAM + 1)[:, 0]
            return torch.minimum((drawn * (last + 1)).long(), last)
        drawn = self.around + self.spread * normal(seeds, (1,), stream=EVENT_STREAM + 1, dtype=torch.float64)[:, 0]
        return torch.minimum((drawn * (last + 1)).round().long().clamp(min=0), last)

    def _carried(self, steps: Steps, event: Tensor) -> Tensor:
        """[N, D]: the product of the ``A`` of the recorded steps between two decisions."""
        gain = steps.dynamics.coefficients(steps.t, steps.t_next)[0][:, None, :]  # [N, 1, K]
        place = torch.arange(steps.t.shape[1])
        before = torch.cat([event[:, :1] - 1, event[:, :-1]], dim=1)
        between = (place > before[..., None]) & (place < event[..., None])
        return torch.where(between, gain, 1.0).prod(dim=2)

    def recorded_logp(self, rollout: Rollout, rows: ReplayRows) -> Likelihood:
        """A replay with unchanged weights arrives where the sampler did."""
        return Likelihood(torch.zeros(rows.t.shape, dtype=torch.float64))

    def __call__(
        self, policy: FlowPolicy, rows: ReplayRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        n, d = rows.t.shape
        frozen = self._frozen(policy, rows, condition, references)  # before the live pass, whose graph waits
        made = self._replay(policy, rows, condition)
        rewards = rows.judge(made.clean, rows.sample[:, 0])
        extra = {name: column[:, None].expand(n, d) for name, column in named(rows.judge, rewards).items()}
        _, b, s = rows.steps.dynamics.coefficients(rows.t, rows.t_next)
        noisy = put(s > 0, made.miss)
        for name, other in frozen.items():
            apart = made.velocities - other
            extra[f"prediction/{name}"] = mean_square(apart, 2)
            growth = squared_norm(made.velocities, 2) / squared_norm(other, 2).clamp(min=1e-30)
            extra[f"norm_growth/{name}"] = growth.sqrt() - 1
            if bool(noisy.any()):
                ratio = put(torch.where(s > 0, b / s, 0.0), made.miss)
                extra[f"kl/{name}"] = (
                    ratio**2 * kl_equal_variance(apart, torch.ones_like(ratio), 2) / elements(apart, 2)
                )
        return Likelihood(-made.miss, extra)

    def _frozen(
        self, policy: FlowPolicy, rows: ReplayRows, condition: Condition, references: Sequence[str]
    ) -> dict[str, Tensor]:
        """The velocities [N, D, ...] of weight sets at the states that the live weights come through."""
        if not references:
            return {}
        with torch.no_grad():
            states = self._replay(policy, rows, condition).states
        n, d = rows.t.shape
        wide_condition = condition.take(torch.arange(n).repeat_interleave(d))
        found = {}
        for name in references:
            with policy.using(name) as asked:
                v = asked.velocity(states.flatten(0, 1), rows.t.flatten(), wide_condition, guidance=rows.steps.guidance)
            found[name] = v.reshape(states.shape)
        return found

    def _replay(self, policy: FlowPolicy, rows: ReplayRows, condition: Condition) -> _Replayed:
        states = rows.steps.states
        x = put(states[rows.sample[:, 0], rows.event[:, 0]], policy.device)
        left = x.detach()  # where the recorded trajectory is when x is there
        final = rows.taken.long().cumsum(dim=1).argmax(dim=1)  # the last decision that each sample takes
        judged: list[tuple[Tensor, Tensor]] = []
        tracks: list[tuple[Tensor, Tensor, Tensor]] = []
        for j in range(rows.t.shape[1]):
            here = rows.taken[:, j].nonzero()[:, 0]
            there = put(here, policy.device)
            start, velocity, miss = torch.zeros_like(x), torch.zeros_like(x), wide(x.detach().flatten(1)[:, 0] * 0)
            if len(here):
                t, t_next = rows.t[here, j], rows.t_next[here, j]
                recorded, following = (
                    put(states[rows.sample[here, j], rows.event[here, j] + later], policy.device) for later in (0, 1)
                )
                now = x[there]
                if j and not self.inputs:  # the steps in between are the recorded ones, and carry on a change
                    now = recorded + like(rows.carried[here, j], now) * (now - left[there])
                v = self._velocity(policy, now, t, condition.take(here), rows.steps.guidance)
                after = mean_of(rows.steps.dynamics, now, v, t, t_next) + _noise(rows, here, j, now)
                ends = (final[here] == j).nonzero()[:, 0]
                if len(ends):
                    at = put(ends, policy.device)
                    whole = like(t_next[ends] == 0, now).bool()
                    judged.append((there[at], torch.where(whole, after[at], clean_of(now[at], v[at], t[ends]))))
                start = start.index_copy(0, there, now.detach())
                velocity = velocity.index_copy(0, there, v)
                miss = miss.index_copy(0, there, squared_norm((after - following).detach(), 1))
                x, left = x.index_copy(0, there, after), left.index_copy(0, there, following)
            tracks.append((start, velocity, miss))
        order = torch.cat([places for places, _ in judged]).argsort()
        starts, velocities, misses = (torch.stack(values, dim=1) for values in zip(*tracks, strict=True))
        return _Replayed(torch.cat([clean for _, clean in judged])[order], starts, misses, velocities)

    def _velocity(self, policy: FlowPolicy, x: Tensor, t: Tensor, condition: Condition, guidance: Any) -> Tensor:
        def ask(read: Tensor) -> Tensor:
            return policy.velocity(read, t, condition, guidance=guidance, cfg_grad=self.cfg_grad)

        read = x if self.inputs else x.detach()
        if self.checkpoint and torch.is_grad_enabled():
            made: Any = checkpoint(ask, read, use_reentrant=False)
            return made
        return ask(read)


def recorded_steps(rollout: Rollout) -> tuple[Steps, int]:
    """The recorded steps, which lead to what is judged, and the number of the first of them on the sampler's grid."""
    steps, times = rollout.trace, rollout.times
    if not isinstance(steps, Steps) or times is None:
        raise IncompatibleError("a replay needs recorded states: give the sampler the window last_steps")
    times = times.cpu()
    if float(steps.t_next[0, -1]) != 0:
        raise IncompatibleError("a replay ends at the sample, and the last step is not recorded; use last_steps")
    return steps, int((times == steps.t[0, 0]).nonzero()[0, 0])


def judge_of(rollout: Rollout) -> Judge:
    """The judge of a rollout. Raises `IncompatibleError` where none was set."""
    if rollout.judge is None:
        raise IncompatibleError("this estimator follows the gradient of rewards, and no judge of the samples was set")
    return rollout.judge


def _noise(rows: ReplayRows, here: Tensor, j: int, x: Tensor) -> Tensor:
    """The noise that the sampler added to the rows [n] in their decision j, like ``x``; zeros where there was none."""
    s = rows.steps.dynamics.coefficients(rows.t[here, j], rows.t_next[here, j])[2]
    return added_noise(s, rows.number[here, j], rows.seeds[here, j], x)


def added_noise(s: Tensor, numbers: Tensor, seeds: Tensor, x: Tensor) -> Tensor:
    """The noise, like ``x`` [n, ...] and times its deviation s [n], that the sampler added in steps of these numbers
    [n] to the samples of these seeds [n]."""
    noise = torch.zeros_like(x)
    for number in numbers[s > 0].unique().tolist():
        same = ((numbers == number) & (s > 0)).nonzero()[:, 0]
        z = normal(seeds[same], tuple(x.shape[1:]), stream=number + 1, device=x.device)
        noise[put(same, x.device)] = like(s[same], x) * z.to(x)
    return noise


def like(values: Tensor, x: Tensor) -> Tensor:
    """Values [n] as numbers like those of x [n, ...], to multiply it with."""
    return put(values, x).reshape(-1, *[1] * (x.ndim - 1))


def named(judge: Judge, rewards: Tensor) -> dict[str, Tensor]:
    """[n, R] rewards as quantities of a likelihood."""
    return {f"reward/{name}": column for name, column in zip(judge.names, rewards.T, strict=True)}
