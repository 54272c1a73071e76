"""Few-step samplers of diffusers are kernels of `flowrl.math.flow`: with the same noise, the pipelines' own latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from flowrl.math.flow import CPS, DDIM, mean_of
from flowrl.models.diffusion import load_policy
from flowrl.models.diffusion.coordinates import TrigFlowCoordinates
from flowrl.types import Dynamics, prompts_of
from tests import pipelines
from tests.parity.conftest import PROMPTS

KERNELS = [
    ("sdxl_turbo", "scheduling_euler_ancestral_discrete", DDIM(1.0), 4, {}),
    ("sdxl_dmd2", "scheduling_lcm", CPS(1.0), 4, {}),
    ("latent_consistency", "scheduling_lcm", CPS(1.0), 3, {}),
    ("sana_sprint", "scheduling_scm", CPS(1.0), 2, {}),
    ("sana_sprint", "scheduling_scm", CPS(1.0), 4, {"intermediate_timesteps": None}),
]


@contextmanager
def noise_of(scheduler: str) -> Iterator[list[Tensor]]:
    """The noise that a scheduler adds, step by step."""
    module: Any = getattr(diffusers.schedulers, scheduler)
    drawn, real = [], module.randn_tensor

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(real(*args, **kwargs).float())
        return drawn[-1]

    module.randn_tensor = watched
    try:
        yield drawn
    finally:
        module.randn_tensor = real


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheduler", "dynamics", "steps", "further"), KERNELS)
def test_a_pipelines_own_few_steps_are_a_kernel(
    name: str, scheduler: str, dynamics: Dynamics, steps: int, further: dict[str, Any], folder: Any
) -> None:
    call = pipelines.CALLS[name]
    policy = load_policy(folder(name), call=call)
    own: Any = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    own.set_progress_bar_config(disable=True)
    start = torch.randn(len(PROMPTS), *policy.latent_shape, generator=torch.Generator().manual_seed(7))
    arguments = {**call, **further, "latents": start.clone(), "num_inference_steps": steps, "output_type": "latent"}
    with noise_of(scheduler) as drawn, torch.no_grad():
        theirs = own(list(PROMPTS), **arguments).images
    times, condition = policy.times(steps), policy.condition(prompts_of(PROMPTS))
    x = policy.initial(start, times)
    with torch.no_grad():
        for k in range(steps):
            t, t_next = times[k].expand(len(x)), times[k + 1].expand(len(x))
            s = dynamics.coefficients(t, t_next)[2].to(x).reshape(-1, 1, 1, 1)
            x = mean_of(dynamics, x, policy.velocity(x, t, condition), t, t_next)
            if k < steps - 1:  # the last step has no noise
                x = x + s * drawn[k]
    torch.testing.assert_close(x, theirs, rtol=0, atol=2e-3 * float(theirs.abs().max()))


def test_trigonometric_coordinates() -> None:
    """Of clean c and noise e at the angle a: what the scheduler holds and receives, in canonical terms."""
    clean, noise = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle, sigma = torch.tensor([1.57080, 1.3, 0.8, 0.3, 0.01], dtype=torch.float64), 0.5
    at = TrigFlowCoordinates(sigma)
    t = at.levels(torch.cat([angle, torch.zeros(1).double()]), None)
    assert at.ticks(angle.tolist()) == pytest.approx(t.tolist()) and t[0] == pytest.approx(1, abs=1e-5)
    assert bool((t[:-1] > t[1:]).all()) and len(t) == 5
    x = (1 - t)[:, None] * clean + t[:, None] * noise
    held = sigma * (angle.cos()[:, None] * clean + angle.sin()[:, None] * noise)
    torch.testing.assert_close(at.from_sample(held, t), x)
    torch.testing.assert_close(at.to_sample(x, t), held)
    told = sigma * (angle.cos()[:, None] * noise - angle.sin()[:, None] * clean)
    torch.testing.assert_close(at.velocity(at.predicted(told, x, t), x, t), noise - clean)
