"""Episodes in which every single action of a frozen policy's chunks is corrected: what a residual learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.environments import CheckedEnvironment, Step
from flowrl.math.random import normal
from flowrl.samplers.episodes import EpisodeSampler, check_sizes, decision_of, run_episodes
from flowrl.types import Condition, Draw, Residual, Rollout, Sampler

CORRECTION = 1013  # stream of an action's seed, beyond those of a chunk's steps


@dataclass(frozen=True, kw_only=True)
class ResidualEpisodes(EpisodeSampler):
    """``a = a_base + scale r``, ``r ~ N(f(s, a_base), exp(log_std)^2)``, at every step of the environment, where the
    policy itself decides on the chunks that a_base come from, by ``sampler`` and without learning. ResiP
    (arXiv:2407.16677). Evaluation adds the mean of r.

    An event is a step of the environment: the record is that of the residual as a Gaussian policy of its own, whose
    observations have a_base beside them and whose actions are r. ``decisions`` are the policy's, as in evaluation, and
    each has as many events as a chunk has actions. What the policy draws is what it draws without a residual.
    """

    family: ClassVar[str] = "control"
    scale: float = 0.1
    log_std: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.residual  # its scale is looked at

    @property
    def residual(self) -> Residual:
        """What the policy has to learn."""
        return Residual(self.scale, self.log_std)

    @property
    def recorded(self) -> int:
        """Of a policy that decides on single actions; the length of its chunks is the model's."""
        return self.decisions

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> EpisodeSampler:
        """As the policy is deployed, whose decisions are its chunks."""
        kept = super().heldout(steps, guidance, temperature)
        return EpisodeSampler(**{each.name: getattr(kept, each.name) for each in fields(EpisodeSampler)})

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        steps = self.decisions * policy.config.executes
        with self.opened(len(draw)) as environment:
            check_sizes(policy, environment, self.environment)
            base = _BaseActs(environment, policy, self.sampler, condition, draw)
            made = run_episodes(_Corrections(), _Residual(policy), base, condition, draw, steps)
        trace: Any = made.trace
        return replace(made, trace=replace(trace, beside=policy.config.action), forwards=made.forwards + base.forwards)


class _BaseActs(CheckedEnvironment):
    """An environment in which a policy acts already: its observations have the action beside them that the policy would
    execute, and its actions are what is added to that."""

    def __init__(
        self, environment: CheckedEnvironment, policy: Any, sampler: Sampler, condition: Any, draw: Draw
    ) -> None:
        self._environment, self._policy, self._sampler = environment, policy, sampler
        self._condition, self._draw = condition, draw
        self._history = torch.zeros(len(draw), policy.config.history, policy.config.observation)
        self._chunk = torch.zeros(len(draw), *policy.latent_shape)[:, policy.config.present]
        self._done = torch.full((len(draw), policy.config.past, policy.config.action), torch.nan)
        self._next = torch.zeros(len(draw), policy.config.action)
        self._time = 0
        self.forwards = 0
        """Network rows of the policy so far."""

    @property
    def observation_size(self) -> int:
        """o + d."""
        return self._environment.observation_size + self._environment.action_size

    @property
    def action_size(self) -> int:
        """d."""
        return self._environment.action_size

    def reset(self, seeds: Tensor, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """First observations [N, o + d], and which rows failed [N]."""
        observed, failed = self._environment.reset(seeds, prompts)
        self._history[:] = observed[:, None]
        self._time = 0
        self._decide((~failed).nonzero()[:, 0])
        return self._beside(observed, torch.arange(len(observed))), failed

    def step(self, actions: Tensor, rows: Tensor) -> Step:
        """One step of the rows [n] that are left, by what is added to their actions [n, d]."""
        now = self._next[rows]
        executed = self._policy.in_own_units(self._policy.corrected(now, actions))
        self._done[rows] = torch.cat([self._done[rows], now[:, None]], dim=1)[:, 1:]
        found = self._environment.step(executed.cpu(), rows)
        self._history[rows] = torch.cat([self._history[rows][:, 1:], found.observed[:, None]], dim=1)
        self._time += 1
        if self._time % self._chunk.shape[1] == 0:
            self._decide(rows[~(found.terminated | found.failed)])  # of what a time limit cut, the value counts
        return replace(found, observed=self._beside(found.observed, rows))

    def _decide(self, rows: Tensor) -> None:
        """New chunks of some rows, all of which have executed as many."""
        if not len(rows):
            return
        part = decision_of(self._draw, rows, self._time // self._chunk.shape[1])
        seen = self._condition.take(rows).seeing(self._history[rows], self._done[rows])
        made = self._sampler(self._policy, seen, part)
        self._chunk[rows] = made.final.float().cpu()[:, self._policy.config.present]
        self.forwards += made.forwards

    def _beside(self, observed: Tensor, rows: Tensor) -> Tensor:
        decided = self._chunk[rows, self._time % self._chunk.shape[1]]
        self._next[rows] = self._policy.ascended(observed, decided).cpu()
        return torch.cat([observed, self._next[rows]], dim=1)


class _Residual:
    """A policy's residual as a policy that decides on single actions."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        numbers = policy.config.observation + policy.config.action
        shape = {"chunk": 1, "past": 0, "present": slice(0, 1), "action": policy.config.action}
        self.config = SimpleNamespace(history=1, observation=numbers, **shape)

    def executed(self, observed: Tensor, action: Tensor) -> Tensor:
        """What is added, as it is."""
        return action


@dataclass(frozen=True)
class _Corrections:
    """What is added to actions, by the residual's Gaussian."""

    forwards: int = 1
    recorded: int = 1

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> _Corrections:
        """Itself: evaluation is the policy's, and asks nobody here."""
        return self

    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout:
        mean, log_std = policy.policy.residual_gaussian(condition)
        z = normal(draw.seeds, tuple(mean.shape[1:]), stream=CORRECTION, device=mean.device)
        return Rollout.of(draw, condition, mean + log_std.exp() * z, forwards=len(draw))
