"""Scores to advantage: one number per sample.

Rows whose ``valid`` is False take no part in any statistic and get advantage 0. Baselines and scales are those of the
samples that the policy made itself (`flowrl.types.Scores.own`); samples of a data set are measured by them. ``memory``
is the part's state over iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.groups import flat_groups, group_count, group_mean, group_std, group_sum
from flowrl.types import Memory, Scores, first_of_group


@dataclass(frozen=True)
class GroupCentred:
    """``(r - mean of the group) / (std + eps)``, clamped. GRPO (arXiv:2402.03300); Flow-GRPO (arXiv:2505.05470).

    scale: ``group`` std of the sample's group, ``global`` std of all rewards of the iteration (Flow-GRPO, AWM and
    DiffusionNFT:
        nearly solved groups are not blown up), ``none`` (Dr. GRPO, arXiv:2503.20783).
    ddof: 0 population, 1 sample standard deviation. A group without spread gets exactly 0.
    merge: with several rewards, ``rewards`` sums them (weighted) before normalising, ``advantages`` normalises each
    over the samples it applies to, and sums
        (MixGRPO's aggregation; GDPO without its final whitening).
    scaled_to: divide by ``clip`` and multiply by this after clamping (AWM's ``advantage_max``).
    soft: ``clip tanh(A / clip)`` instead of cutting at ``clip``, so that samples beyond it keep their order.
    """

    scale: Literal["group", "global", "none"] = "group"
    ddof: int = 1
    eps: float = 1e-8
    clip: float | None = 5.0
    merge: Literal["rewards", "advantages"] = "rewards"
    scaled_to: float | None = None
    soft: bool = False

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        if self.merge == "rewards":
            advantage = self._normalise(scores.total, scores)
        else:
            advantage = self.columns(scores) @ scores.weights
        if self.soft and self.clip:
            advantage = self.clip * (advantage / self.clip).tanh()
        advantage = _finish(advantage, scores.valid, self.clip)
        return advantage if self.scaled_to is None or not self.clip else advantage * (self.scaled_to / self.clip)

    def columns(self, scores: Scores) -> Tensor:
        """[N, R] of every reward by itself, over the samples it applies to; 0 for others."""
        known = [replace(scores, valid=scores.valid & ~column.isnan()) for column in scores.contributions.T]
        columns = [self._normalise(*pair) for pair in zip(scores.contributions.T, known, strict=True)]
        return torch.stack(columns, dim=1).nan_to_num(0.0)

    def _normalise(self, reward: Tensor, scores: Scores) -> Tensor:
        group, own = scores.group, scores.own
        centred = reward - group_mean(reward, group, own)
        if self.scale == "none":
            scaled = centred
        else:
            whole = group if self.scale == "group" else torch.zeros_like(group)
            scaled = centred / (group_std(reward, whole, own, self.ddof) + self.eps)
        return torch.where(flat_groups(reward, group, own), torch.zeros_like(scaled), scaled)


@dataclass(frozen=True)
class LeaveOneOut:
    """``r_i - mean of the other samples of the group``. RLOO (arXiv:2402.14740); LOOP (arXiv:2503.00897).

    Equals ``G / (G - 1) (r - mean)``: unbiased, without a standard deviation. A sample without valid siblings gets 0.
    """

    clip: float | None = None

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward, own = scores.total, scores.own
        count = group_count(scores.group, own).to(reward.dtype) - own.to(reward.dtype)
        others = (group_sum(reward, scores.group, own) - torch.where(own, reward, 0.0)) / count  # 0 / 0 is not taken
        advantage = torch.where(count > 0, reward - others, torch.zeros_like(reward))
        return _finish(advantage, scores.valid, self.clip)


@dataclass(frozen=True)
class PromptTracker:
    """``(r - mean) / (std + eps)`` over a buffer of each prompt's last rewards, across iterations. DDPO
    (arXiv:2305.13301).

    Until a prompt has ``min_count`` rewards, the batch's statistics stand in. Rewards of the iteration enter the
    buffer first, as in the released code; std is the population's.
    """

    buffer: int = 16
    min_count: int = 16
    eps: float = 1e-6
    clip: float | None = 5.0

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward = scores.total
        seen: dict[str, list[float]] = memory.setdefault("rewards", {})
        for key, value, own in zip(scores.prompt_ids.tolist(), reward.tolist(), scores.own.tolist(), strict=True):
            if own:
                seen[str(key)] = [*seen.get(str(key), []), value][-self.buffer :]
        batch = reward[scores.own]
        centre, spread = reward.clone(), torch.ones_like(reward)
        for row, key in enumerate(scores.prompt_ids.tolist()):
            history = torch.tensor(seen.get(str(key), []), dtype=reward.dtype)
            basis = history if len(history) >= self.min_count else batch
            if len(basis):
                centre[row], spread[row] = basis.mean(), basis.std(correction=0)
        return _finish((reward - centre) / (spread + self.eps), scores.valid, self.clip)


@dataclass(frozen=True)
class BestOfGroup:
    """1 for the best sample of its group, shared among ties, 0 for the rest. RAFT (arXiv:2304.06767), keeping one in G.

    A group without spread gets 0: there is nothing to prefer.
    """

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward, group, valid = scores.total, scores.group, scores.valid
        rank_key = torch.where(valid, reward, torch.full_like(reward, -torch.inf))
        best = torch.zeros_like(reward)
        for key in group.unique():
            rows = group == key
            top = rows & (rank_key == rank_key[rows].max()) & valid
            best[top] = 1 / top.sum().to(best)
        return torch.where(flat_groups(reward, group, valid), torch.zeros_like(best), best)


@dataclass(frozen=True)
class ExponentialWeight:
    """``exp(r / temperature)``, normalised to mean 1 in the group. Reward-weighted regression (Peters & Schaal 2007).

    Positive weights only: samples are imitated more or less, never pushed away.
    normalised: without it the weight is the exponential itself, and prompts with high rewards weigh more (ORW-CFM-W2).
    """

    temperature: float = 0.2
    normalised: bool = True

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward, group, own = scores.total, scores.group, scores.own
        if not self.normalised:
            return _finish((reward / self.temperature).exp(), scores.valid, None)
        centred = (reward - group_mean(reward, group, own)) / self.temperature  # keeps the exponential finite
        weight = centred.exp()
        return _finish(weight / group_mean(weight, group, own).clamp(min=1e-12), scores.valid, None)


@dataclass(frozen=True)
class RawReward:
    """The reward itself, less ``baseline``: ``none``, or the ``batch`` mean of the other samples (unbiased). REINFORCE
    (Williams 1992); PPO and REINFORCE++ spread it over tokens afterwards."""

    baseline: Literal["none", "batch"] = "none"

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward = scores.total
        if self.baseline == "batch":
            everything = replace(scores, group=torch.zeros_like(scores.group))
            return LeaveOneOut()(everything, memory)
        return _finish(reward, scores.valid, None)


@dataclass(frozen=True)
class Ones:
    """1 for every sample that could be scored: for losses that do not weigh samples by their reward."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        return scores.valid.to(scores.rewards.dtype)


@dataclass(frozen=True)
class GreedyBaseline:
    """``r - r of the greedy completion``, the first sample of every group (``sampler.greedy_first``), which gets no
    advantage itself. ReMax (arXiv:2310.10505)."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        first = first_of_group(scores.group)
        place = first.cumsum(dim=0) - 1
        greedy = first.nonzero()[:, 0][place]
        usable = scores.valid & scores.valid[greedy]  # of the first itself the difference is 0
        return _finish(scores.total - scores.total[greedy], usable, None)


@dataclass(frozen=True)
class SoftmaxContrast:
    """``G (softmax(a) - softmax(-a))`` within the group of G samples, ``a = (r - mean) / temperature``: sums to 0, at
    most G in size. wd1 (arXiv:2507.08838). The factor makes a mean over samples what the released loss is, the mean
    over groups of a group's sum."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        group, valid = scores.group, scores.valid
        a = (scores.total - group_mean(scores.total, group, valid)) / self.temperature
        contrast = self._softmax(a, group, valid) - self._softmax(-a, group, valid)
        return _finish(group_count(group, valid) * contrast, valid, None)

    def _softmax(self, a: Tensor, group: Tensor, valid: Tensor) -> Tensor:
        weight = a.exp()
        return weight / group_sum(weight, group, valid).clamp(min=1e-300)


@dataclass(frozen=True)
class BestVersusWorst:
    """1 for one best sample of the group, -1 for one worst (the first of equals), 0 for the rest; 0 for a group without
    spread. The preference pairs of VRPO, made from rewards."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward, group, valid = scores.total, scores.group, scores.valid
        advantage = torch.zeros_like(reward)
        flat = flat_groups(reward, group, valid)
        for key in group.unique():
            rows = ((group == key) & valid & ~flat).nonzero()[:, 0]
            if len(rows):
                advantage[rows[reward[rows].argmax()]] = 1.0
                advantage[rows[reward[rows].argmin()]] = -1.0
        return advantage


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"the temperature of the weights should be above 0, found {temperature}")


def _finish(advantage: Tensor, valid: Tensor, clip: float | None) -> Tensor:
    advantage = torch.where(valid, advantage, torch.zeros_like(advantage))
    return advantage if clip is None else advantage.clamp(-clip, clip)
