"""Whole episodes in an environment: each is one sample, a function of its seed and its prompt."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.environments import CheckedEnvironment, OnError, Step, open_environment
from flowrl.errors import UserError
from flowrl.math.random import each
from flowrl.samplers.categorical import CategoricalSampler
from flowrl.samplers.deployed import Deployed
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.samplers.verified import PastVerified
from flowrl.types import Draw, Episodes, FlowPolicy, Rollout, Sampler, Steps


@dataclass(frozen=True, kw_only=True)
class TemperedStart(FlowSampler):
    """Starts from ``temperature * z``: at 0 from z = 0, as a policy is deployed that has to act in one way."""

    family: ClassVar[str] = "control"
    temperature: float = 0.0

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> TemperedStart:
        """Stays at its temperature."""
        plain = super().heldout(steps, guidance, temperature)
        return TemperedStart(
            steps=plain.steps, guidance=plain.guidance, solver=plain.solver, temperature=self.temperature
        )

    def _noise(self, policy: FlowPolicy, draw: Draw) -> Tensor:
        return self.temperature * super()._noise(policy, draw)


@dataclass(frozen=True, kw_only=True)
class EpisodeSampler:
    """Reset all rows by their seeds, let ``sampler`` decide on a chunk of actions wherever an episode goes on, execute
    it open loop, until every episode has ended or ``decisions`` were made.

    Of a chunk, the model's ``execute`` actions from the present one on are executed (`ControlConfig`). The reward of a
    decision is the sum of those of its actions, without a discount inside (DPPO's MultiStep wrapper,
    irom-princeton/dppo); a row that ends inside a chunk is not stepped again. An episode that is still going on after
    ``decisions`` is cut there, as by a time limit. What decision s draws follows from the sample's seed and s.
    """

    family: ClassVar[str] = "control"
    sampler: Sampler = FlowSampler(guidance=1.0)
    """Makes one chunk; its options are those of one decision."""
    environment: str = "avoid"
    """An embedded world, ``gym:NAME``, or ``path.py:make``."""
    decisions: int = 40
    """S, at most in an episode."""
    on_error: OnError = "raise"
    frozen_base: bool = False
    """Only the steps that ``sampler`` records are the policy's; those before them are made by a copy of the network
    that training started from (DPPO), also where the policy is evaluated, deployed and exported."""
    timeout_s: float | None = None
    """Seconds that a step, or the reset, of all rows may take. The environment is then in a process of its own, killed
    where it takes longer; all its episodes that were going on have failed, as where the process ends by itself.
    ``null``: it is in this process, and is not interrupted."""
    render: bool = False
    """Where samples are kept, make a moving picture of the first episode of what the environment itself shows
    (gymnasium's ``rgb_array``, or ``render(row)`` of one's own), by executing its actions again; without it of what a
    function ``draw`` beside ``make`` draws."""

    def __post_init__(self) -> None:
        if self.decisions < 1:
            raise ValueError(f"decisions={self.decisions} makes no step; give at least 1")
        if self.frozen_base and not isinstance(self.sampler, FlowSampler):
            raise ValueError("frozen_base is of steps from noise to a chunk: use it with sampler: {use: flow}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s} leaves no time; give seconds above 0, or null for no limit")
        if self.render and self.timeout_s is not None:
            raise ValueError(
                "render=true steps the environment in this process, where timeout_s ends nothing; drop one"
            )

    @property
    def tuned(self) -> tuple[int, int] | None:
        """(K, F) where the first K - F of K steps are the frozen base's."""
        if not self.frozen_base or not isinstance(self.sampler, FlowSampler):
            return None
        steps, recorded = self.sampler.steps, self.sampler.recorded
        return (steps, recorded) if recorded < steps else None

    @property
    def forwards(self) -> int:
        return self.decisions * self.sampler.forwards

    @property
    def recorded(self) -> int:
        return self.decisions * max(1, self.sampler.recorded)

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> EpisodeSampler:
        """As the policy is deployed: by the sampler's own form for evaluation. A flow starts from ``temperature * z``,
        z by default; a Gaussian acts by its mean and choices are the likeliest, which is 0. Raises `ValueError` for
        another temperature of these."""
        return replace(self, sampler=_tempered(self.sampler.heldout(steps, guidance, None), temperature))

    def opened(self, count: int) -> closing[CheckedEnvironment]:
        """``count`` rows of the environment, let go at the end of a ``with``."""
        return closing(open_environment(self.environment, count, self.on_error, self.timeout_s))

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        with self.opened(len(draw)) as environment:
            check_sizes(policy, environment, self.environment)
            return run_episodes(self.sampler, policy, environment, condition, draw, self.decisions)


def run_episodes(
    sampler: Sampler, policy: Any, environment: CheckedEnvironment, condition: Any, draw: Draw, decisions: int
) -> Rollout:
    """Let ``sampler`` ask the policy for chunks until all episodes have ended, ``decisions`` times at most."""
    run = _Run(len(draw), decisions, policy)
    observed, failed = environment.reset(draw.seeds, draw.prompts)
    run.begin(observed, failed)
    times, forwards = None, 0
    for event in range(decisions):
        rows = run.going.nonzero()[:, 0]
        if not len(rows):
            break
        part = decision_of(draw, rows, event)
        made = sampler(policy, condition.take(rows).seeing(run.observed[rows, event], run.done[rows]), part)
        times, forwards = made.times, forwards + made.forwards
        run.decide(event, rows, made)
        run.act(event, rows, made.final, environment)
    run.truncated |= run.going
    return Rollout(
        condition,
        run.outcomes(),
        draw.group,
        draw.seeds,
        torch.zeros_like(draw.group),
        run.episodes(),
        times,
        forwards,
        run.feedback(),
    )


def decision_of(draw: Draw, rows: Tensor, number: int) -> Draw:
    """The draw of decision ``number`` of some rows [n]."""
    own = each(draw.seeds[rows], "decision", number)
    return Draw(own, draw.group[rows], draw.iteration, draw.shared_seed, draw.place[rows])


def _tempered(sampler: Sampler, temperature: float | None) -> Sampler:
    """The sampler with its starts scaled. Raises `ValueError` where there is no noise to scale."""
    if temperature is not None and isinstance(sampler, FlowSampler):
        kept = {"steps": sampler.steps, "guidance": sampler.guidance, "solver": sampler.solver}
        return TemperedStart(**kept, temperature=temperature)
    if temperature is not None and isinstance(sampler, Deployed):
        return sampler.heldout(None, None, temperature)
    if isinstance(sampler, PastVerified):
        return replace(sampler, sampler=_tempered(sampler.sampler, temperature))
    if temperature and isinstance(sampler, GaussianSampler):
        raise ValueError(f"temperature={temperature}: a Gaussian policy acts by its mean, which is 0; remove it")
    if temperature and isinstance(sampler, CategoricalSampler):
        raise ValueError(f"temperature={temperature}: choices are the likeliest ones, which is 0; remove it")
    return sampler


def check_sizes(policy: Any, environment: CheckedEnvironment, name: str) -> None:
    """Raise `UserError` where policy and environment do not speak of the same numbers."""
    for what, has, wants in (
        ("observations", environment.observation_size, policy.config.observation),
        ("actions", environment.action_size, policy.config.action),
    ):
        if has != wants:
            raise UserError(
                f"algorithm.sampler.environment={name} has {what} of {has} numbers, and the model's have {wants}; take "
                "a model that was made for it"
            )


@dataclass
class _Run:
    """Episodes while they are made, and what is recorded of them."""

    count: int
    decisions: int
    policy: Any
    observed: Tensor = field(init=False)
    actions: Tensor = field(init=False)
    reward: Tensor = field(init=False)
    going: Tensor = field(init=False)
    failed: Tensor = field(init=False)
    truncated: Tensor = field(init=False)
    done: Tensor = field(init=False)
    success: Tensor = field(init=False)
    mode: Tensor = field(init=False)
    _chain: dict[str, Tensor] = field(default_factory=dict)
    _kernel: tuple[Any, float | None] = (None, None)

    def __post_init__(self) -> None:
        n, s, config = self.count, self.decisions, self.policy.config
        self.observed = torch.zeros(n, s + 1, config.history, config.observation)
        self.actions = torch.zeros(n, s, config.chunk, config.action)
        self.done = torch.full((n, config.past, config.action), torch.nan)
        self.reward = torch.full((n, s), torch.nan, dtype=torch.float64)
        self.truncated = torch.zeros(n, dtype=torch.bool)
        self.success = torch.full((n,), torch.nan, dtype=torch.float64)
        self.mode = torch.full((n,), -1)

    def begin(self, observed: Tensor, failed: Tensor) -> None:
        """With the first observations [N, o]; a history begins with copies of it."""
        self.observed[:, 0] = observed[:, None]
        self.failed, self.going = failed.clone(), ~failed

    def decide(self, event: int, rows: Tensor, made: Rollout) -> None:
        """Record the chunks of some rows."""
        self.actions[rows, event] = made.final.float().cpu()
        steps = made.trace
        if isinstance(steps, Steps):
            self._kernel = (steps.dynamics, steps.guidance)
            found = {"states": steps.states, "t": steps.t, "t_next": steps.t_next, "squared": steps.squared}
            for name, value in found.items():
                if value is not None:
                    room = (self.count, self.decisions, *value.shape[1:])
                    self._chain.setdefault(name, value.new_zeros(room))[rows, event] = value

    def act(self, event: int, rows: Tensor, chunks: Tensor, environment: CheckedEnvironment) -> None:
        """Execute chunks [n, h, d] of standardised actions, as far as they are of the present and to be executed."""
        actions, history = chunks[:, self.policy.config.present], self.observed[rows, event]
        reward = torch.zeros(len(rows), dtype=torch.float64)
        success, mode = self.success[rows], self.mode[rows]
        for number in range(actions.shape[1]):
            found = environment.step(self.policy.executed(history, actions[:, number]).cpu(), rows)
            reward += found.reward
            history = torch.cat([history[:, 1:], found.observed[:, None]], dim=1)
            if self.done.shape[1]:
                self.done[rows] = torch.cat([self.done[rows, 1:], actions[:, number, None].float().cpu()], dim=1)
            ended = found.terminated | found.truncated | found.failed
            success, mode = found.success, found.mode
            if bool(ended.any()):
                stays = ~ended
                self._keep(event, rows[ended], reward[ended], history[ended])
                self._end(rows[ended], found, ended)
                rows, actions, reward, history = rows[stays], actions[stays], reward[stays], history[stays]
                success, mode = success[stays], mode[stays]
                if not len(rows):
                    return
        self.success[rows], self.mode[rows] = success, mode  # of the last step, also of one that is cut
        self._keep(event, rows, reward, history)

    def _keep(self, event: int, rows: Tensor, reward: Tensor, history: Tensor) -> None:
        """Note what a chunk brought some rows."""
        self.reward[rows, event] = reward
        self.observed[rows, event + 1] = history

    def _end(self, rows: Tensor, found: Step, ended: Tensor) -> None:
        """Note how episodes ended, which are those marked among the rows of a step."""
        self.truncated[rows], self.failed[rows] = found.truncated[ended], found.failed[ended]
        self.success[rows], self.mode[rows] = found.success[ended], found.mode[ended]
        self.going[rows] = False

    def feedback(self) -> Tensor:
        """[N, S] float64: the reward of every decision."""
        return torch.where(self.failed[:, None], torch.nan, self.reward)

    def outcomes(self) -> Tensor:
        """[N, 5] float64: return, decisions, whether it was cut, success, mode."""
        count = (~self.reward.isnan()).sum(dim=1).double()
        total = self.feedback().nansum(dim=1)
        return torch.stack([total, count, self.truncated.double(), self.success, self.mode.double()], dim=1)

    def episodes(self) -> Episodes:
        """The record. An episode whose environment failed has no decision to learn from."""
        alive = ~self.reward.isnan() & ~self.failed[:, None]
        kernel = {"dynamics": self._kernel[0], "guidance": self._kernel[1]}
        return Episodes(self.observed, self.actions, alive, self.truncated, **self._chain, **kernel)
