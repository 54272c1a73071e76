"""Recorded episodes: what a demonstrator saw and did, read from the columns of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.math.random import uniform
from flowrl.samplers.chunks import interleaved
from flowrl.samplers.deployed import Deployed
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.types import DATA, Draw, Episodes, Prompt, Rollout, Sampler


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Every prompt is an episode: ``observed``, a list of observations, and ``action``, what was done at each. Every
    step is a decision, with the chunk of actions that followed, and of the model's ``past`` ones before it; beyond the
    end the last action is repeated, before the beginning the first one, as Diffusion Policy pads its sequences
    (arXiv:2303.04137). Evaluation acts in an environment, by ``sampler``.

    executed: decisions are those of a policy that carries out whole chunks: every h-th step (h of those that the model
        executes) from one that the sample's seed draws among the first h, so that the observation after a decision is
        the one after its chunk. What was paid is then known too: ``reward``, a list of numbers, one for each action (0
        where there is no such column), is summed over a chunk, and ``terminated`` says whether the task ended the
        episode (true where there is no such column). Where it did not, one more observation stands at the end of
        ``observed``, whose value counts.
    """

    family: ClassVar[str] = "control"
    sampler: Sampler = EpisodeSampler()
    length: int = 200
    """Decisions of an episode that are read, from its beginning."""
    executed: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} reads no step of an episode; give at least 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a prompt, what holds its episode."""
        return COLUMNS

    @property
    def group(self) -> int:
        """One sample of each prompt."""
        return 1

    @property
    def forwards(self) -> int:
        return 0

    @property
    def recorded(self) -> int:
        return self.length

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """What acts."""
        return self.sampler.heldout(steps, guidance, temperature)

    def prepared(self, prompts: Sequence[Prompt], where: str) -> list[Prompt]:
        """The prompts, looked at. Raises `UserError` for one without an episode, or of other sizes than the first."""
        sizes: list[int] = []
        for prompt in prompts:
            try:
                observed, action = (torch.tensor(prompt.columns[key], dtype=torch.float32) for key in COLUMNS)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{where}, prompt {prompt.id + 1}: {_NEEDS} ({type(error).__name__}: {error})"
                ) from error
            if observed.dim() != 2 or action.dim() != 2 or not 0 < len(action) <= len(observed):
                shapes = f"{list(observed.shape)} and {list(action.shape)}"
                raise UserError(f"{where}, prompt {prompt.id + 1}: {_NEEDS}, and their shapes are {shapes}")
            sizes = sizes or [observed.shape[1], action.shape[1]]
            if [observed.shape[1], action.shape[1]] != sizes:
                raise UserError(f"{where}, prompt {prompt.id + 1}: observations and actions of {sizes} numbers before")
            if self.executed:
                _check_paid(prompt, len(observed), len(action), f"{where}, prompt {prompt.id + 1}")
        return list(prompts)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        config, n, s = policy.config, len(draw), self.length
        stride = config.executes if self.executed else 1
        phases = uniform(draw.seeds, (1,), stream=PHASE)[:, 0] * stride
        observed = torch.zeros(n, s + 1, config.history, config.observation)
        actions = torch.zeros(n, s, config.chunk, config.action)
        alive, truncated = torch.zeros(n, s, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        paid = torch.full((n, s), torch.nan, dtype=torch.float64)
        for row, prompt in enumerate(draw.prompts):
            seen, done = (torch.tensor(prompt.columns[key], dtype=torch.float32) for key in COLUMNS)
            if [seen.shape[1], done.shape[1]] != [config.observation, config.action]:
                raise UserError(
                    f"data: prompt {prompt.id + 1} has observations and actions of {[seen.shape[1], done.shape[1]]}"
                    f" numbers, and the model's have {[config.observation, config.action]}"
                )
            steps = torch.arange(min(int(phases[row]), len(done) - 1), len(done), stride)[:s]
            count = len(steps)
            alive[row, :count], paid[row, :count] = True, 0.0
            observed[row, :count] = seen[_windows(steps, config.history, -1)]
            chunks = _windows(steps - config.past, config.chunk, 1)
            actions[row, :count] = done[chunks.clamp(max=len(done) - 1)]
            if self.executed:
                present = _windows(steps, config.executes, 1)
                after = int(present[-1, -1]) + 1  # of an end by the task nothing is asked
                observed[row, count] = seen[_windows(torch.tensor([min(after, len(seen) - 1)]), config.history, -1)[0]]
                given = torch.tensor(prompt.columns.get("reward", [0.0] * len(done)), dtype=torch.float64)
                paid[row, :count] = torch.cat([given, torch.zeros(config.chunk)])[present].sum(dim=1)
                truncated[row] = after < len(done) or not prompt.columns.get("terminated", True)
        actions = policy.network.actions(actions.to(policy.device)).cpu()
        length, nothing = alive.sum(dim=1).double(), torch.zeros(n, dtype=torch.float64)
        final = torch.stack([paid.nansum(dim=1), length, truncated.double(), nothing + torch.nan, nothing - 1], dim=1)
        trace = Episodes(observed, actions, alive, truncated)
        acting: Any = getattr(self.sampler, "sampler", None)
        made = Rollout.of(draw, condition, final, trace, times=policy.times(getattr(acting, "steps", 10)))
        return replace(made, source=torch.full_like(draw.group, DATA), feedback=paid)


PHASE = 1023  # stream of a sample's seed
COLUMNS = ("observed", "action")
_NEEDS = "an episode has the columns observed (a list of observations) and action (what was done at each)"


def _windows(steps: Tensor, size: int, step: int) -> Tensor:
    """[count, size] numbers of the steps at and after each one (``step`` 1), or at and before it, the newest last (-1);
    before the first one is the first."""
    around = torch.arange(size) if step > 0 else torch.arange(1 - size, 1)
    return (steps[:, None] + around).clamp(min=0)


def _check_paid(prompt: Prompt, observed: int, actions: int, where: str) -> None:
    """Raise `UserError` for rewards and an end that do not fit an episode of so many observations and actions."""
    reward, ended = prompt.columns.get("reward", [0.0] * actions), prompt.columns.get("terminated", True)
    if not isinstance(reward, list) or len(reward) != actions or not all(_finite(paid) for paid in reward):
        raise UserError(f"{where}: reward has to be a list of {actions} numbers, one for each action")
    if not isinstance(ended, bool):
        raise UserError(f"{where}: terminated is {ended!r}; give true or false")
    if not ended and observed != actions + 1:
        raise UserError(
            f"{where}: the episode goes on after its last action (terminated: false), so that the observation there "
            f"counts: give {actions + 1} observations, not {observed}"
        )


def _finite(paid: object) -> bool:
    return isinstance(paid, int | float) and not isinstance(paid, bool) and math.isfinite(paid)


@dataclass(frozen=True, kw_only=True)
class BesideDemonstrations:
    """The first ``shown`` samples of every group are the recorded episode of the prompt (`Demonstrations`,
    ``executed``), the others are made by the policy: offline and online data in one batch. In the first ``offline``
    iterations all are recorded: offline learning before the policy acts at all."""

    family: ClassVar[str] = "control"
    sampler: EpisodeSampler = EpisodeSampler()
    shown: int = 1
    offline: int = 0

    def __post_init__(self) -> None:
        if self.shown < 0 or self.offline < 0:
            raise ValueError(f"shown={self.shown} samples and offline={self.offline} iterations: give 0 or more")

    @property
    def data(self) -> Demonstrations:
        """What reads the recorded episodes."""
        return Demonstrations(sampler=self.sampler, length=self.sampler.decisions, executed=True)

    @property
    def environment(self) -> str:
        """Where the policy acts."""
        return self.sampler.environment

    @property
    def forwards(self) -> int:
        return self.sampler.forwards

    @property
    def recorded(self) -> int:
        return self.sampler.recorded

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """The policy alone."""
        return self.sampler.heldout(steps, guidance, temperature)

    def prepared(self, prompts: Sequence[Prompt], where: str) -> list[Prompt]:
        """The prompts, checked as `Demonstrations` does."""
        return self.data.prepared(prompts, where)

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        told = draw.place < (self.shown if draw.iteration >= self.offline else len(draw))
        parts: list[tuple[Tensor, Rollout]] = []
        for sampler, chosen in ((self.sampler, ~told), (self.data, told)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                made = sampler(policy, condition.take(rows), draw.take(rows))
                parts.append((rows, replace(made, times=None)))
        return interleaved(parts, condition, draw.group)


def episodes(environment: str, decisions: int, shown: int, offline: int) -> EpisodeSampler | BesideDemonstrations:
    """Episodes of a policy as it is deployed, beside ``shown`` recorded ones of each group where data take part."""
    acting = EpisodeSampler(sampler=Deployed(), environment=environment, decisions=decisions)
    return BesideDemonstrations(sampler=acting, shown=shown, offline=offline) if shown or offline else acting
