"""Steps of a flow with noise whose deviation the policy learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flowrl.math.learned_noise import LearnedNoise
from flowrl.math.random import normal
from flowrl.samplers.flow import INITIAL_NOISE, FlowSampler
from flowrl.types import Condition, Draw, Rollout, Steps


@dataclass(frozen=True, kw_only=True)
class NoisyFlowSampler:
    """``x' = x + v dt + sigma(s, t) z`` from noise to a chunk of actions, all states recorded: a Markov chain of which
    one likelihood is taken (`flowrl.estimators.noisy`). ReinFlow (arXiv:2505.22094). Evaluation has no noise.

    least, most: range of the deviation, in standardised actions; it moves in it by the logarithm.
    """

    family: ClassVar[str] = "control"
    steps: int = 4
    least: float = 0.1
    most: float = 0.24

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most:
            raise ValueError(
                f"least={self.least} and most={self.most} are the range of the noise that is learned: give "
                "0 < least < most"
            )

    @property
    def forwards(self) -> int:
        return self.steps

    @property
    def recorded(self) -> int:
        return 1

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> FlowSampler:
        """The flow without noise."""
        return FlowSampler(steps=self.steps, guidance=1.0).heldout(steps, guidance, temperature)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        times, dynamics = policy.times(self.steps), LearnedNoise(self.least, self.most)
        x = policy.initial(normal(draw.seeds, policy.latent_shape, stream=INITIAL_NOISE, device=policy.device), times)
        states = [x]
        for k in range(self.steps):
            t, t_next = times[k].expand(len(draw)), times[k + 1].expand(len(draw))
            velocity, level = policy.velocity(x, t, condition), policy.noise_level(t, condition)
            mean, std = dynamics.step(x, velocity, level, t, t_next)
            x = mean + std * normal(draw.seeds, policy.latent_shape, stream=k + 1, device=policy.device)
            states.append(x)
        grid = times.expand(len(draw), -1)
        steps = Steps(torch.stack(states, dim=1).cpu(), grid[:, :-1], grid[:, 1:], None, dynamics, 1.0)
        return Rollout.of(draw, condition, x, steps, times=times, forwards=self.steps * len(draw))
