"""Sampling of continuous policies: deterministic solvers, stochastic kernels, or a window of one inside the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import fetch, pinned, put, synchronize
from flowrl.math.flow import ODE, clean_of, dpm_solver_2m, mean_of, moments, negligible, squared_distance
from flowrl.math.random import derive, normal
from flowrl.samplers.windows import LastSteps, StepRanges, Window
from flowrl.types import Condition, Draw, Dynamics, FlowPolicy, IncompatibleError, Rollout, Steps

INITIAL_NOISE = 0  # stream of a sample's starting point; step k draws from stream k + 1
OWN_NOISE = 1011  # of what is its own of it, beyond the streams of steps and estimators


@dataclass(frozen=True, kw_only=True)
class FlowSampler:
    """Integrate from noise to a clean latent, recording the stochastic steps that will be trained.

    Deterministic unless ``window`` names steps where ``dynamics`` injects noise. Every draw is a function of the
    sample's seed and the step, so a sample does not depend on the batch it is made in.
    """

    family: ClassVar[str] = "diffusion"
    steps: int = 10
    dynamics: Dynamics = ODE()
    window: Window | None = None
    solver: Literal["euler", "midpoint", "dpmpp_2m"] = "euler"
    """Solver of the deterministic steps. ``midpoint`` goes by the velocity in the middle of every step, where half a
    step by the first one leads, for two forwards; of models of any time, and also in evaluation."""
    guidance: float | None = None
    """Guidance scale; ``None`` is the policy's own, 1 switches it off."""
    share_noise: bool = False
    """Start all samples of a group from the same noise (DanceGRPO), so that they differ by the steps' noise only."""
    own_noise: float = 0.0
    """With ``share_noise``: start from ``cos(a) e + sin(a) z`` of the shared e and a sample's own z, ``a = own_noise pi
    / 2``, the churn that `CPS` gives every step (FDFO)."""
    decode_clean: bool = False
    """Return the last step's predicted clean latent instead of its noisy sample (DanceGRPO)."""
    record_mean: bool = False
    """Also keep the sampling policy's means (GRPO-Guard)."""
    end: Literal["clean", "first_trained"] = "clean"
    """Integrate to t = 0, or to the cleanest time the network was trained on and decode that state as it is, in the
    scale of the model's own latents (DDPO's released code; the same for flow models, which are trained down to 0)."""

    shift: float | None = None
    """Times ``s u / (1 + (s - 1) u)`` of even u from 1 to 0, whatever the model's scheduler does (DanceGRPO, MixGRPO:
    3); ``None`` is the scheduler's own grid. For flow models; the held-out form keeps the scheduler's."""

    noise_bound: float | None = None
    """Noise of a stochastic step outside ``-noise_bound`` to ``noise_bound`` is moved to it, the density stays that of
    a Gaussian (DPPO: 3)."""

    heldout_noise: bool = False
    """Evaluate with the noise of ``dynamics`` in every step, as few-step models are used that predict and noise again
    (LCM, DMD2), instead of without."""

    def __post_init__(self) -> None:
        if self.shift is not None and not self.shift > 0:
            raise ValueError(f"shift={self.shift} moves the times towards noise; give more than 0, 1 for even times")
        if self.noise_bound is not None and not self.noise_bound > 0:
            raise ValueError(f"noise_bound={self.noise_bound} is the largest noise; give more than 0, or null for none")

    @property
    def forwards(self) -> int:
        return self.steps * (2 if self.solver == "midpoint" else 1)

    @property
    def recorded(self) -> int:
        nobody = torch.zeros(1, dtype=torch.int64)
        return len(self.step_ranges(Draw.of(nobody, nobody, 0, 0)).recorded)

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> FlowSampler:
        """Noise-free, unless ``heldout_noise``; a continuous policy has no temperature."""
        if temperature is not None:
            raise ValueError("diffusion models have no sampling temperature; remove it")
        solver = "midpoint" if self.solver == "midpoint" else "euler"
        scale = self.guidance if guidance is None else guidance
        plain = FlowSampler(steps=steps or self.steps, guidance=scale, solver=solver)
        if not self.heldout_noise:
            return plain
        return replace(plain, dynamics=self.dynamics, window=LastSteps(1, noise=True), heldout_noise=True)

    @torch.no_grad()
    def __call__(self, policy: FlowPolicy, condition: Condition, draw: Draw) -> Rollout:
        times = self.grid(policy)
        ranges = self.step_ranges(draw, times)
        self._check_replayable(ranges)
        x = policy.initial(self._noise(policy, draw), times)
        track = _Track(ranges)
        previous: Tensor | None = None
        calls = self.steps
        for k in range(self.steps):
            t, t_next = times[k].expand(len(draw)), times[k + 1].expand(len(draw))
            v = policy.velocity(x, t, condition, guidance=self.guidance)
            before = x
            if k in ranges.stochastic:
                x = self._noisy_step(x, v, t, t_next, draw, k, track)
                previous = None
            elif self.solver == "euler":
                x = mean_of(ODE(), x, v, t, t_next)
            elif self.solver == "midpoint":
                x, calls = self._by_midpoint(policy, condition, x, v, t, t_next), calls + 1
            else:
                clean = clean_of(x, v, t)
                x = dpm_solver_2m(x, clean, previous, times[k], times[k + 1], times[max(k - 1, 0)])
                previous = clean
            if k in ranges.recorded and not ranges.densities:
                track.record(before, x)
            if self.decode_clean and k == self.steps - 1:
                x = clean_of(before, v, t)
        return Rollout.of(
            draw,
            condition,
            as_latents(x, times[-1]),
            track.steps(times, self.dynamics if ranges.stochastic else ODE(), self.guidance),
            times=times,
            forwards=calls * len(draw),
        )

    def _by_midpoint(
        self, policy: FlowPolicy, condition: Condition, x: Tensor, v: Tensor, t: Tensor, t_next: Tensor
    ) -> Tensor:
        middle = (t + t_next) / 2
        if not torch.equal(policy.snap(middle), middle):
            raise IncompatibleError("sampler.solver=midpoint needs a model of any time; use euler")
        there = policy.velocity(mean_of(ODE(), x, v, t, middle), middle, condition, guidance=self.guidance)
        return mean_of(ODE(), x, there, t, t_next)

    def _check_replayable(self, ranges: StepRanges) -> None:
        """Raise `IncompatibleError` where recorded states would not lead to what is returned, step by step."""
        if ranges.densities:
            return
        if self.solver != "euler" and not ranges.stochastic:
            raise IncompatibleError(f"a replay goes on by single steps, not by solver={self.solver}; set euler")
        if self.decode_clean or self.end != "clean":
            raise IncompatibleError("a replay ends at the last state: set decode_clean=false and end=clean")

    def grid(self, policy: FlowPolicy) -> Tensor:
        """[steps + 1] float64: the times it visits."""
        times = policy.times(self.steps)
        if self.shift is not None:
            even = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
            shifted = self.shift * even / (1 + (self.shift - 1) * even)
            if not torch.equal(policy.snap(shifted[1:-1]), shifted[1:-1]):
                raise IncompatibleError(
                    "sampler.shift needs a model of any time, and this one has discrete times; remove it"
                )
            times = shifted.to(times)
        if self.end == "first_trained":
            end = policy.snap(torch.zeros(1, dtype=torch.float64)).to(times)
            if end < times[-2]:  # else the grid's own last step starts there, and goes on to 0
                times = torch.cat([times[:-1], end])
        return times

    def step_ranges(self, draw: Draw, times: Tensor | None = None) -> StepRanges:
        """Which steps are stochastic and recorded; at most, without the grid [steps + 1] of a model."""
        if self.window is None:
            return StepRanges(range(0), range(0))
        return self.window(self.steps, draw, self._noisy(times))

    def recordable(self, times: Tensor) -> range:
        """The steps of a grid [steps + 1] that may be recorded, in whatever iteration."""
        return range(0) if self.window is None else self.window.recordable(self.steps, self._noisy(times))

    def _noisy(self, times: Tensor | None) -> int | None:
        """How many steps there are through the last one with noise that is not negligible."""
        if times is None:
            return None
        noisy = (~negligible(self.dynamics, times)).nonzero()[:, 0]
        return int(noisy[-1]) + 1 if len(noisy) else 0

    def _noise(self, policy: FlowPolicy, draw: Draw) -> Tensor:
        seeds = draw.seeds
        if self.share_noise:
            seeds = torch.tensor([derive(draw.shared_seed, "group", int(g)) for g in draw.group], dtype=torch.int64)
        noise = normal(seeds, policy.latent_shape, stream=INITIAL_NOISE, device=policy.device)
        if not self.share_noise or not self.own_noise:
            return noise
        own, angle = normal(draw.seeds, policy.latent_shape, stream=OWN_NOISE, device=policy.device), self.own_noise
        return math.cos(angle * math.pi / 2) * noise + math.sin(angle * math.pi / 2) * own

    def _noisy_step(self, x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, draw: Draw, k: int, track: _Track) -> Tensor:
        mean, s = moments(self.dynamics, x, v, t, t_next)
        z = normal(draw.seeds, tuple(x.shape[1:]), stream=k + 1, device=x.device)
        z = z if self.noise_bound is None else z.clamp(-self.noise_bound, self.noise_bound)
        x_next = mean + put(s, x).reshape(-1, *[1] * (x.ndim - 1)) * z
        if k in track.ranges.recorded and track.ranges.densities:
            if not bool((s > 0).all()):
                raise IncompatibleError(
                    "a recorded step has no noise, so no density: leave it out of the sampler's window"
                )
            squared, _ = squared_distance(x_next, mean, s)
            track.record(x, x_next, squared, mean if self.record_mean else None)
        return x_next


def as_latents(x: Tensor, t: Tensor) -> Tensor:
    """A state at time ``t`` in the scale in which the model holds it, ``x / sqrt((1 - t)^2 + t^2)``; itself at 0."""
    return x / ((1 - t) ** 2 + t**2).sqrt().to(x) if float(t) > 0 else x


class _Track:
    """The recorded part of a trajectory, on the host, where a device writes it while it goes on; each state is stored
    once although it ends one step and starts the next."""

    def __init__(self, ranges: StepRanges) -> None:
        self.ranges = ranges
        self._states: Tensor | None = None  # [N, D + 1, ...]
        self._means: Tensor | None = None  # [N, D, ...]
        self._squared: list[Tensor] = []
        self._count = 0

    def record(self, x: Tensor, x_next: Tensor, squared: Tensor | None = None, mean: Tensor | None = None) -> None:
        done, steps = self._count, len(self.ranges.recorded)
        self._count = done + 1
        if self._states is None:
            self._states = _on_host(x, steps + 1)
            fetch(x, self._states[:, 0])
        fetch(x_next, self._states[:, done + 1])
        if mean is not None:
            self._means = _on_host(mean, steps) if self._means is None else self._means
            fetch(mean, self._means[:, done])
        if squared is not None:
            self._squared.append(squared)

    def steps(self, times: Tensor, dynamics: Dynamics, guidance: float | None) -> Steps | None:
        if self._states is None:
            return None
        # the only wait of a trajectory: what was fetched before is there as well
        squared = torch.stack(self._squared, dim=1).cpu() if self._squared else None
        if squared is None:
            synchronize()
        first, count = self.ranges.recorded.start, self._count
        grid = times[first : first + count + 1].cpu().expand(len(self._states), -1)
        return Steps(
            self._states,
            t=grid[:, :-1],
            t_next=grid[:, 1:],
            squared=squared,
            dynamics=dynamics,
            guidance=guidance,
            mean=self._means,
        )


def _on_host(like: Tensor, count: int) -> Tensor:
    """Room for ``count`` tensors like [N, ...]: [N, count, ...], each of them in one piece."""
    room = torch.empty(count, *like.shape, dtype=like.dtype, pin_memory=pinned(like.device))
    return room.transpose(0, 1)
