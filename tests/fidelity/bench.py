"""A small guided flow on SD3's grid, rolled out and scored, on which presets and released formulas are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl import composition
from flowrl.math.random import derive, seeds
from flowrl.models.tiny_flow import TinyFlow
from flowrl.parts.algorithm import Algorithm
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Rollout, Scores, Steps, prompts_of
from tests.contract.toys import Recorder, disturb

SIZE, PROMPTS, GROUP, GUIDANCE = 16, ("a", "b", "c"), 6, 4.5


def sd3_times(steps: int) -> Tensor:
    """The grid of SD3.5's scheduler, whose shift of 3 is applied twice to the smallest time."""

    def shift(t: Tensor) -> Tensor:
        return 3 * t / (1 + 2 * t)

    smallest = shift(torch.tensor(0.001, dtype=torch.float64))
    return torch.cat([shift(torch.linspace(1, float(smallest), steps, dtype=torch.float64)), torch.zeros(1).double()])


class GuidedFlow(TinyFlow):
    """The toy flow with a latent of sixteen numbers, SD3's grid and its own guidance scale."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        super().__init__(torch.randn(3, SIZE, generator=generator), prompts=PROMPTS)

    def times(self, steps: int) -> Tensor:
        return sd3_times(steps)

    def velocity(self, x: Tensor, t: Tensor, condition: Any, *, guidance=None, cfg_grad="cond") -> Tensor:
        guidance = GUIDANCE if guidance is None else guidance
        return super().velocity(x, t, condition, guidance=guidance, cfg_grad=cfg_grad)

    def guided(self, x: Tensor, t: Tensor, index: Tensor, scale: float, detach_empty: bool = False) -> Tensor:
        """Both branches, written out."""
        conditional = self._predict(x, t, index)
        if scale == 1:
            return conditional
        empty = self._predict(x, t, torch.full_like(index, -1))
        empty = empty.detach() if detach_empty else empty
        return empty + scale * (conditional - empty)


@dataclass
class Trial:
    """A scored rollout, and the weights that made it."""

    algorithm: Algorithm
    policy: GuidedFlow
    rollout: Rollout
    scores: Scores
    advantage: Tensor
    draw: Draw

    def gradient(self) -> Tensor:
        """flowrl's gradient of one optimiser batch, flat."""
        recorder = Recorder(self.policy.parameters())
        arguments = (self.algorithm, self.rollout, self.scores, self.advantage)
        self.metrics = improve(self.policy, recorder, *arguments, UpdateSettings(max_grad_norm=1e9))
        return recorder.gradients[0]

    def probe(self) -> Any:
        """Where the estimator looks: the same draws that `gradient` uses."""
        return self.algorithm.estimator.probe(self.rollout, self.policy, self.draw.seeds)

    def gradient_of(self, loss: Tensor) -> Tensor:
        """The gradient of a loss that was written out, flat."""
        found = torch.autograd.grad(loss, self.policy.parameters(), allow_unused=True)
        pairs = zip(found, self.policy.parameters(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


class DDPMFlow(GuidedFlow):
    """The same on Stable Diffusion's leading grid of training times, in flow coordinates."""

    def __init__(self) -> None:
        super().__init__()
        a = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(dim=0)
        self.trained = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())

    def times(self, steps: int) -> Tensor:
        index = (torch.arange(steps) * (1000 // steps)).flip(0) + 1
        return torch.cat([self.trained[index], torch.zeros(1).double()])

    def snap(self, t: Tensor) -> Tensor:
        return self.trained[(t[..., None] - self.trained).abs().argmin(dim=-1)]


@dataclass(frozen=True)
class SumJudge:
    """The reward of a trial with its gradient; longer words multiply it by how long they are."""

    names: tuple[str, ...] = ("sum",)

    def __call__(self, clean: Tensor, rows: Tensor) -> Tensor:
        return clean.double().sum(dim=1, keepdim=True).tanh()

    def in_words(self, clean: Tensor, rows: Tensor, templates: Sequence[str]) -> list[Tensor]:
        return [len(template) * self(clean, rows) for template in templates]


def trial(
    name: str,
    *,
    off: float = 0.0,
    iteration: int = 3,
    flat: bool = True,
    flow: type[GuidedFlow] = GuidedFlow,
    each: int = GROUP,
    **spec: Any,
) -> Trial:
    """A preset rolled out with disturbed weights; the last group scores the same throughout if ``flat``. ``off`` moves
    the live weights after sampling, so that ratios differ from 1; the set ``sampled`` keeps those that sampled, others
    the weights they had before. ``each``: samples of a prompt."""
    algorithm = composition.build({"use": name, **spec})
    policy = flow()
    disturb(policy, 0.1)
    for held in algorithm.weight_sets:  # a reference and an old policy that are not the live one
        policy.update_ema(held, 0.0)
    disturb(policy, 0.05)
    count = each * len(PROMPTS)
    group = torch.arange(len(PROMPTS)).repeat_interleave(each)
    draw = Draw.of(seeds(0, "fidelity", count=count), group, iteration, derive(0, "shared", iteration))
    with policy.using(algorithm.behaviour):
        rollout = algorithm.sampler(policy, policy.condition(prompts_of([PROMPTS[g] for g in group])), draw)
    if algorithm.judged:
        rollout = replace(rollout, judge=SumJudge())
    reward = rollout.final.double().sum(dim=1).tanh()
    if flat:
        reward = torch.where(group == 2, torch.full_like(reward, 0.3), reward)
    scores = Scores(reward[:, None], torch.ones(1).double(), ("sum",), group, group, torch.ones(count).bool())
    scores = replace(scores, nodes=rollout.nodes)
    if isinstance(rollout.trace, Steps) and rollout.trace.previews is not None:
        scores = replace(scores, steps=rollout.trace.previews.double().sum(dim=2).tanh())
    made = Trial(algorithm, policy, rollout, scores, algorithm.advantage(scores, {}), draw)
    policy.update_ema("sampled", 0.0)
    if off:
        disturb(policy, off)
    return made


def released_advantage(reward: Tensor, group: Tensor, *, whole: bool) -> Tensor:
    """yifan123/flow_grpo's PerPromptStatTracker: std of all rewards or of the group, ddof 0, plus 1e-4."""
    out = torch.empty_like(reward)
    for g in group.unique():
        mine = reward[group == g]
        spread = (reward if whole else mine).std(correction=0) + 1e-4
        out[group == g] = (mine - mine.mean()) / spread
    return out


def alike(first: Tensor, second: Tensor, tolerance: float = 2e-5) -> bool:
    """Whether two gradients agree in every direction, relative to their size."""
    return bool((first - second).norm() <= tolerance * second.norm())


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two gradients."""
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))
