"""Recorded episodes: what a demonstrator saw and did, read from the columns of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.types import DATA, Draw, Episodes, Prompt, Rollout, Sampler


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Every prompt is an episode: ``observed``, a list of observations, and ``action``, what was done at each. Every
    step is a decision, with the chunk of actions that followed (and of the model's ``past`` ones before it); beyond the
    end the last action is repeated and before the beginning the first one, as Diffusion Policy pads its sequences
    (arXiv:2303.04137). Evaluation acts in an environment, by ``sampler``.

    An optional column ``reward`` says what every step paid, for methods that learn of bad episodes as well; a step's
    credit is then that of its own action, the first of its chunk. The episode ends after its last action.
    """

    family: ClassVar[str] = "control"
    sampler: Sampler = EpisodeSampler()
    length: int = 200
    """Steps of an episode that are read, from its beginning."""

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
            _check_paid(prompt.columns.get(PAID), len(action), f"{where}, prompt {prompt.id + 1}")
            sizes = sizes or [observed.shape[1], action.shape[1]]
            if [observed.shape[1], action.shape[1]] != sizes:
                raise UserError(f"{where}, prompt {prompt.id + 1}: observations and actions of {sizes} numbers before")
        return list(prompts)

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        config, n, s = policy.config, len(draw), self.length
        observed = torch.zeros(n, s + 1, config.history, config.observation)
        actions = torch.zeros(n, s, config.chunk, config.action)
        alive, paid = torch.zeros(n, s, dtype=torch.bool), torch.full((n, s), torch.nan, dtype=torch.float64)
        for row, prompt in enumerate(draw.prompts):
            seen, done = (torch.tensor(prompt.columns[key], dtype=torch.float32) for key in COLUMNS)
            if [seen.shape[1], done.shape[1]] != [config.observation, config.action]:
                raise UserError(
                    f"data: prompt {prompt.id + 1} has observations and actions of {[seen.shape[1], done.shape[1]]}"
                    f" numbers, and the model's have {[config.observation, config.action]}"
                )
            count = min(len(done), s)
            alive[row, :count] = True
            observed[row, :count] = seen[_windows(count, config.history, -1)]
            chunk = _windows(count, config.chunk, 1, config.past)
            actions[row, :count] = done[chunk.clamp(max=len(done) - 1)]
            paid[row, :count] = torch.tensor(prompt.columns.get(PAID, [0.0] * count), dtype=torch.float64)[:count]
        actions = policy.network.actions(actions.to(policy.device)).cpu()
        length, nothing = alive.sum(dim=1).double(), torch.zeros(n, dtype=torch.float64)
        final = torch.stack([paid.nansum(dim=1), length, nothing, nothing + torch.nan, nothing - 1], dim=1)
        trace = Episodes(observed, actions, alive, torch.zeros(n, dtype=torch.bool))
        acting: Any = getattr(self.sampler, "sampler", None)
        made = Rollout.of(draw, condition, final, trace, times=policy.times(getattr(acting, "steps", 10)))
        return replace(made, source=torch.full_like(draw.group, DATA), feedback=paid)


COLUMNS, PAID = ("observed", "action"), "reward"
_NEEDS = "an episode has the columns observed (a list of observations) and action (what was done at each)"


def _check_paid(paid: Any, count: int, where: str) -> None:
    """Raise `UserError` where rewards are given that are not one finite number for each action."""
    if paid is None:
        return
    try:
        fits = len(paid) == count and bool(torch.tensor(paid, dtype=torch.float64).isfinite().all())
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"{where}: the column {PAID} has one number for each of the {count} actions; correct it")


def _windows(count: int, size: int, step: int, before: int = 0) -> Tensor:
    """[count, size] numbers of the steps at and after each one (``step`` 1), beginning so many ``before`` it, or at and
    before it, the newest last (-1); before the first one is the first."""
    around = torch.arange(-before, size - before) if step > 0 else torch.arange(1 - size, 1)
    return (torch.arange(count)[:, None] + around).clamp(min=0)
