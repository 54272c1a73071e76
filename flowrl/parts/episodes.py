"""Credit in episodes of a control policy: rewards of decisions, values of observations, time limits apart from ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.parts.token_advantages import old_of, whitened
from flowrl.types import EpisodeRows, IncompatibleError, Scores, Table

Truncation = Literal["bootstrap", "terminate"]


@dataclass(frozen=True)
class DecisionRewards:
    """[N, S]: what the environment paid for each decision, times the weight of the reward named ``reward``; the
    contributions of all other rewards come with an episode's last decision. Their sum over an episode is its total
    score. A baseline is a matter of the critic (`EpisodeGAE`)."""

    reward: str = "episode_return"

    def __call__(self, scores: Scores, memory: object) -> Tensor:
        if scores.feedback is None or scores.feedback.dim() != 2:
            raise IncompatibleError("DecisionRewards are those of an environment: sample with EpisodeSampler")
        if self.reward not in scores.names:
            have = ", ".join(scores.names)
            raise IncompatibleError(
                f"advantage.reward={self.reward} is what the environment pays, and the rewards are {have}; name the"
                " one that stands for it, or add it to rewards (weight 0 leaves it out)"
            )
        paid = scores.feedback.nan_to_num(0.0).double()
        mine = scores.names.index(self.reward)
        rewards = scores.weights[mine] * paid
        others = scores.weights.clone()
        others[mine] = 0
        watched = others != 0
        rest = (scores.rewards[:, watched] * others[watched]).sum(dim=1)
        last = ((~scores.feedback.isnan()).sum(dim=1) - 1).clamp(min=0)
        rewards[torch.arange(len(rest)), last] += rest
        return torch.where(scores.valid[:, None], rewards, torch.zeros_like(rewards))


@dataclass(frozen=True)
class BackupRewards(DecisionRewards):
    """[N, S]: ``sum_{i < backup} gamma^i r_{s + i}`` of the rewards of `DecisionRewards`: what is paid until the value
    is taken, nothing after an episode's end."""

    gamma: float = 0.999
    backup: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or self.backup < 1:
            raise ValueError(f"gamma={self.gamma}, backup={self.backup}: give a discount from 0 to 1, and 1 or more")

    def __call__(self, scores: Scores, memory: object) -> Tensor:
        rewards = super().__call__(scores, memory)
        found = torch.zeros_like(rewards)
        for later in range(min(self.backup, rewards.shape[1])):
            found[:, : rewards.shape[1] - later] += self.gamma**later * rewards[:, later:]
        return found


@dataclass(frozen=True)
class EpisodeGAE:
    """Generalised advantage estimation (arXiv:1506.02438) over the decisions of an episode.

    ``delta_t = r_t + gamma V(s'_t) (1 - terminated_t) - V(s_t)``, ``A_t = delta_t + gamma lambda A_{t+1}`` up to the
    episode's end; ``A + V`` are the returns that the critic learns. ``s'_t`` is the observation after the decision and
    before any reset, also where a time limit cut the episode: there ``bootstrap`` counts what would have come,
    ``terminate`` nothing (CleanRL's ppo_continuous_action; DPPO and ReinFlow take the value of the next episode's first
    observation instead). gamma is per decision, so ``gamma ** (1 / h)`` per action of a chunk.

    whiten: advantages have mean 0 and variance 1 over the decisions of the iteration (after the returns are taken).
    gamma_denoise: number k of the F denoising steps of a decision, the noisiest first, has the advantage times
        ``gamma_denoise ** (F - 1 - k)`` (DPPO, arXiv:2409.00588 section 4.2, after whitening as in its code).
    """

    gamma: float = 0.99
    lam: float = 0.95
    truncation: Truncation = "bootstrap"
    whiten: bool = True
    gamma_denoise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gamma", "lam", "gamma_denoise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} discounts what comes later: give one from 0 to 1")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        rows, old = episode_rows(table, "EpisodeGAE"), old_of(table)
        per = rows.per
        alive = rows.alive[:, ::per]
        value = old.need("value").double()[:, ::per]
        advantage = gae(
            torch.where(alive, table.advantage[:, ::per].double(), 0.0)[:, :-1],
            value,
            alive[:, :-1],
            rows.truncated[:, 0] & (self.truncation == "bootstrap"),
            self.gamma,
            self.lam,
        )
        advantage = torch.cat([advantage, torch.zeros_like(advantage[:, :1])], dim=1)
        returns = torch.where(alive, advantage + value, 0.0)
        mask = table.mask[:, ::per]
        advantage = whitened(advantage, mask) if self.whiten else advantage
        weight = self.gamma_denoise ** (per - 1 - rows.number).double()
        extra = {**old.extra, "returns": returns.repeat_interleave(per, dim=1)}
        wide = advantage.repeat_interleave(per, dim=1) * weight
        return replace(table, advantage=wide, old=replace(old, extra=extra))


def gae(reward: Tensor, value: Tensor, alive: Tensor, bootstrap: Tensor, gamma: float, lam: float) -> Tensor:
    """[N, S] float64 advantages from rewards [N, S], values [N, S + 1] of all observations, which decisions were made
    [N, S], and whether the value of the last observation counts [N]."""
    s = reward.shape[1]
    following = torch.cat([alive[:, 1:], torch.zeros_like(alive[:, :1])], dim=1)
    counts = (following | bootstrap[:, None]) & alive
    delta = torch.where(alive, reward + gamma * torch.where(counts, value[:, 1:], 0.0) - value[:, :-1], 0.0)
    advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(s)):
        running = delta[:, t] + gamma * lam * running
        advantage[:, t] = running
    return advantage


@dataclass(frozen=True)
class Improved:
    """What a policy with a label learns of every decision: with label 1 those whose advantage is above 0, without a
    label all of them, which counts ``null`` (CFGRL, arXiv:2505.23458). Both halves of a decision's numbers, those
    without the label first, are doubled: a mean over all numbers is then the sum of a mean over each half."""

    null: float = 0.1

    def __post_init__(self) -> None:
        if not self.null > 0:
            raise ValueError(f"null={self.null} is how much the answer without a label learns; give more than 0")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        rows = episode_rows(table, "Improved")
        better = (table.advantage > 0).double()
        learned = torch.where(rows.number < rows.per // 2, self.null, better)
        return replace(table, advantage=2 * learned.to(table.advantage.dtype))


@dataclass(frozen=True)
class StepClip:
    """A range for the ratio of each denoising step k of F, the noisiest first: ``e_k = least + (most - least)
    (exp(c k / (F - 1)) - 1) / (exp(c) - 1)``, c = ``growth``; ``most`` where F is 1. DPPO's clip schedule
    (irom-princeton/dppo, model/diffusion/diffusion_ppo.py; there F = 1 divides 0 by 0 and the loss is NaN)."""

    least: float = 1e-3
    most: float = 0.01
    growth: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(
                f"least={self.least} and most={self.most} are the clips of the first and last step: give "
                "0 <= least <= most"
            )
        if not self.growth > 0:
            raise ValueError(f"growth={self.growth} bends the schedule; give more than 0")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        rows, old = episode_rows(table, "StepClip"), old_of(table)
        clip = self.of_step(rows.number, rows.per)
        return replace(table, old=replace(old, extra={**old.extra, "low": clip, "high": clip}))

    def of_step(self, number: Tensor, steps: int) -> Tensor:
        """float64, the shape of ``number``."""
        if steps == 1:
            return torch.full(number.shape, self.most, dtype=torch.float64)
        share = torch.expm1(self.growth * number.double() / (steps - 1)) / math.expm1(self.growth)
        return self.least + (self.most - self.least) * share


def episode_rows(table: Table, who: str) -> EpisodeRows:
    """The rows of episodes. Raises `IncompatibleError` for others."""
    if not isinstance(table.rows, EpisodeRows):
        raise IncompatibleError(f"{who} is for episodes: sample with EpisodeSampler and estimate with PerDecision")
    return table.rows
