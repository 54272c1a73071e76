"""A flow's actions, and Gaussian noise added to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from flowrl.math.flow import ODE
from flowrl.math.random import normal
from flowrl.samplers.flow import INITIAL_NOISE, OWN_NOISE, FlowSampler
from flowrl.types import Condition, Draw, Rollout, Steps

SHIFT = 1  # stream of a decision's seed


@dataclass(frozen=True, kw_only=True)
class NoisyActionSampler(FlowSampler):
    """A flow's chunk with noise of the deviation ``noise`` added to its standardised actions: it is executed, and an
    estimator of chunks (`flowrl.estimators.matching`) measures it, as if the flow had made it. FPO++ explores by .02 in
    typoverflow/flow-rl (8 Jun 2026). Evaluation has none."""

    family: ClassVar[str] = "control"
    noise: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise >= 0:
            raise ValueError(f"noise={self.noise} is a deviation; give 0 for none, or more")
        if self.window is not None:
            raise ValueError("noise on actions is in no density of steps, which a window records; remove it")

    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        made = super().__call__(policy, condition, draw)
        added = normal(draw.seeds, policy.latent_shape, stream=OWN_NOISE, device=made.final.device)
        return replace(made, final=made.final + self.noise * added)


@dataclass(frozen=True, kw_only=True)
class PerturbedFlowSampler:
    """``a = ODE(z) + n``: the flow's chunk from noise z, and ``n = exp(log_std) e`` with the policy's learned deviation
    (PolicyFlow, arXiv:2602.01156). Records z, the flow's end and the action, in this order. Evaluation has no n.

    The times of its rollout are those where the solver asks for the velocity; by ``midpoint`` also the last one, 0, as
    in the release."""

    family: ClassVar[str] = "control"
    steps: int = 10
    solver: Literal["euler", "midpoint"] = "midpoint"

    @property
    def flow(self) -> FlowSampler:
        """What makes the chunk."""
        return FlowSampler(steps=self.steps, guidance=1.0, solver=self.solver)

    @property
    def forwards(self) -> int:
        return self.flow.forwards

    @property
    def recorded(self) -> int:
        return 1

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> FlowSampler:
        """The flow alone."""
        return self.flow.heldout(steps, guidance, temperature)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        made = self.flow(policy, condition, draw)
        times, end, shape = policy.times(self.steps), made.final.float(), policy.latent_shape
        start = policy.initial(normal(draw.seeds, shape, stream=INITIAL_NOISE, device=end.device), times)
        action = end + policy.network.log_std.exp() * normal(draw.seeds, shape, stream=SHIFT, device=end.device)
        reached = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(len(draw), -1)
        states = torch.stack([start, end, action], dim=1).cpu()
        steps = Steps(states, reached[:, :-1], reached[:, 1:], None, ODE(), 1.0)
        asked = times[:-1]
        if self.solver == "midpoint":
            middle = (times[:-1] + times[1:]) / 2
            asked = torch.cat([torch.stack([asked, middle], dim=1).flatten(), times[-1:]])
        return Rollout.of(draw, condition, action, steps, times=asked, forwards=made.forwards)
