"""The start-up check: the replayed denoiser and canonical coordinates against the pipeline itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.deviation import deviation
from flowrl.models.diffusion.coordinates import Coordinates
from flowrl.models.diffusion.denoiser_spec import PROBES, canonical, received
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.diffusion.recorder import Recorder

STEPS = 3
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest deviation of a prediction, relative to its largest value."""
ROLLOUT = 20
"""How much further a whole rollout, or an image, may be off than one prediction."""
EULER = ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler")
"""Schedulers whose own noise-free step is the Euler step of canonical coordinates."""
DDIM = ("DDIMScheduler", "CogVideoXDDIMScheduler")
"""These too, where their steps are evenly spaced: they step to ``t - 1000 // steps`` whatever comes next."""


@torch.no_grad()
def check(policy: DiffusionPolicy) -> float:
    """Compare on two prompts and three steps: predictions, the end of a noise-free rollout, and its images. Where the
    pipeline's scheduler is of higher order, its step is replaced by Euler's on the same schedule.

    Raises:
        UserError: when the replayed prediction is not what the pipeline's scheduler receives, or a noise-free rollout
            through canonical coordinates does not end where the pipeline does.
    """
    name = type(policy.pipeline).__name__
    coordinates = policy.spec.coordinates
    rule = None if has_euler_step(policy.pipeline.scheduler) else _euler(policy.recorder, coordinates)
    trace = policy.recorder.record(PROBES, STEPS, step=rule, output_type="pt")
    assert trace.timesteps is not None
    levels = coordinates.levels(trace.timesteps, trace.sigmas)
    condition = policy.probe(PROBES)
    call = policy.spec.calls[0]
    shown = zip(trace.steps, levels, strict=False)  # fewer steps where a pipeline starts at a later time
    points = [canonical(step, t, call, coordinates) for step, t in shown]
    _check_start(points[0], policy, levels, trace.init_noise_sigma, name)

    worst = 0.0
    for step, x, t in zip(trace.steps, points, levels, strict=True):
        native = policy.native(x, t.expand(len(x)), condition, None, "cond")
        wanted = received(step, t, call, coordinates)
        worst = max(worst, deviation(native.reshape(wanted.shape), wanted))
    tolerance = TOLERANCE[policy.dtype]
    if not worst <= tolerance:
        raise UserError(
            f"replaying the denoiser of {name} deviates by {worst:.2g} from what its scheduler receives; unsupported"
        )

    x = points[0]
    for t, t_next in zip(levels, [*levels[1:], torch.tensor(0.0)], strict=True):
        x = x + float(t_next - t) * policy.velocity(x, t.expand(len(x)), condition)
    final = coordinates.from_sample(trace.steps[-1].prev_sample, torch.zeros(len(x), dtype=torch.float64))
    drift = deviation(x, final.reshape(x.shape))
    if not drift <= ROLLOUT * tolerance:
        raise UserError(
            f"a noise-free rollout of {name} ends {drift:.2g} away from the pipeline's own output; unsupported"
        )
    if trace.media is None:
        raise UserError(f"{name} does not return its images as tensors for output_type='pt'; unsupported")
    # from the pipeline's own latents: a decoder may well amplify the rounding of ours
    decoded = deviation(policy.decode(final), trace.media.cpu().clamp(0, 1))
    if not decoded <= ROLLOUT * tolerance:
        raise UserError(
            f"decoding the final latents of {name} gives images {decoded:.2g} away from its own; unsupported"
        )
    return max(worst, drift, decoded)


@torch.no_grad()
def predictions(policy: DiffusionPolicy) -> Tensor:
    """Velocities [2, ...] of two prompts at fixed noise, the same at each call."""
    noise = torch.randn(len(PROBES), *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    times = policy.snap(torch.tensor([0.4, 0.8], dtype=torch.float64))
    return policy.velocity(noise.to(policy.device), times.to(policy.device), policy.probe(PROBES))


def _check_start(x: Tensor, policy: DiffusionPolicy, levels: Tensor, init_noise_sigma: float, name: str) -> None:
    expected = float(policy.spec.coordinates.initial(torch.ones(1, dtype=torch.float64), levels[0], init_noise_sigma))
    if not 0.7 < float(x.std()) / expected < 1.4:
        raise UserError(
            f"{name} starts from noise of standard deviation {float(x.std()):.3g}, expected {expected:.3g}; unsupported"
        )


def has_euler_step(scheduler: Any) -> bool:
    """Whether the pipeline's own scheduler can be compared with as it is."""
    name = type(scheduler).__name__
    if name in DDIM:
        return scheduler.config.timestep_spacing == "leading"
    return name in EULER and not scheduler.config.get("stochastic_sampling", False)


def _euler(recorder: Recorder, coordinates: Coordinates) -> Callable[[Tensor, int, Tensor], Tensor]:
    """Euler's step between the scheduler's own times, for schedulers of higher order and DDIM's uneven spacings."""

    def step(model_output: Tensor, index: int, sample: Tensor) -> Tensor:
        scheduler = recorder.pipeline.scheduler
        sigmas = getattr(scheduler, "sigmas", None)
        timesteps = torch.as_tensor(scheduler.timesteps).cpu().double()
        levels = coordinates.levels(timesteps, None if sigmas is None else torch.as_tensor(sigmas).cpu().double())
        t = levels[index].expand(len(sample))
        t_next = (levels[index + 1] if index + 1 < len(levels) else torch.zeros(())).expand(len(sample)).to(t)
        x = coordinates.from_sample(sample.float(), t)
        native = coordinates.predicted(model_output.float(), x, t)
        x = x + float(t_next[0] - t[0]) * coordinates.velocity(native, x, t)
        return coordinates.to_sample(x, t_next).to(sample.dtype)

    return step
