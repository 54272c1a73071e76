"""Further scores to advantages: other scales and baselines, values at risk, the best of k, values kept over iterations.

As in `flowrl.parts.advantages`, rows that are not valid get 0, and statistics are those of the policy's own samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.groups import group_mean, group_std
from flowrl.parts.selections import mixed
from flowrl.types import IncompatibleError, Memory, Scores


@dataclass(frozen=True)
class GroupShifted:
    """``scale (r - mean of the group - shift)``. AsymRE (arXiv:2506.20520) has a negative ``shift``: a baseline below
    the mean of the samples learns from all of them, one above it collapses onto the best. OPMD (as in arXiv:2509.24203)
    has no shift and ``scale = 1 / (1 + tau)``."""

    shift: float = 0.0
    scale: float = 1.0

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        centred = scores.total - group_mean(scores.total, scores.group, scores.own) - self.shift
        return of_valid(scores, self.scale * centred)


@dataclass(frozen=True)
class BetaNormalised:
    """``(r - p) / Beta(p; a, b)`` with the group's mean reward p and the density fitted to the p of all groups:
    ``a = max(1 + a0 / 3, 1)`` and so b, where Beta(a0, b0) has their mean and variance. BNPO (arXiv:2506.02864;
    changyi7231/BNPO).

    Where the p are spread as with ``a0 = b0 = 1.5`` it is ``pi / 8`` times GRPO's with a population deviation; where
    they vary more than uniformly, `GroupCentred` without a scale. Rewards lie between ``low`` and ``high``. Equal p in
    all groups, where the released code divides by 0, get weight 1.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: rewards lie between them; give low below high")

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        reward = (scores.total - self.low) / (self.high - self.low)
        mean = group_mean(reward, scores.group, scores.own)
        first = torch.stack([(scores.group == key).nonzero()[0, 0] for key in scores.group.unique()])
        a, b = self._fitted(mean[first].clamp(0, 1))
        p = mean.clamp(0, 1)
        normaliser = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        # in logarithms, as prompts that are nearly alike have densities beyond what a number can hold
        log_weight = -(normaliser + torch.xlogy(a - 1, p) + torch.xlogy(b - 1, 1 - p))
        weight = log_weight.clamp(max=math.log(1e6)).exp()
        return of_valid(scores, weight * (reward - mean))

    def _fitted(self, p: Tensor) -> tuple[float, float]:
        if len(p) < 2 or float(p.var()) == 0:
            return 1.0, 1.0
        mean = float(p.mean())
        total = mean * (1 - mean) / float(p.var()) - 1
        return max(1 + total * mean / 3, 1.0), max(1 + total * (1 - mean) / 3, 1.0)


@dataclass(frozen=True)
class MixedValueAtRisk:
    """Bundles of ``bundle`` prompts, of which the j-th samples together are a "paper" with their summed reward X, and a
    risk measure of X: ``(w CVaR + RVaR) / (w + 1)`` with ``CVaR = -relu(q_low - X) / low``, ``RVaR = (relu(X - q_low) -
    relu(X - q_high)) / (high - low)``, over the bundle's deviation of X. RiskPO (arXiv:2510.00911; RTkenny/RiskPO).

    The quantiles q of X follow it over iterations, ``q += rate (level - share of X below q)``; the first iteration has
    those of each bundle. A paper's advantage is shared among its samples as ``(r - mean of the prompt)`` over their
    sum, or equally where that is 0; at most ``most``, which the release does not bound. A bundle without spread gets 0
    (the release divides by 1e-6).
    """

    bundle: int = 5
    low: float = 0.2
    high: float = 0.8
    w: float = 1.5
    rate: float = 0.1
    most: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"low={self.low}, high={self.high} are levels of quantiles: give 0 < low < high <= 1")

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        tracked: list[float] | None = memory.get("quantiles")
        advantage, seen = torch.zeros_like(scores.total), []
        centred = scores.total - group_mean(scores.total, scores.group, scores.own)
        groups = [((scores.group == key) & scores.own).nonzero()[:, 0] for key in scores.group.unique()]
        for start in range(0, len(groups), self.bundle):
            members = groups[start : start + self.bundle]
            papers = torch.stack([rows[: min(map(len, members))] for rows in members])  # [K, papers]
            if not papers.shape[1]:
                continue
            x = scores.total[papers].sum(dim=0)
            seen.append(x)
            q = [float(x.quantile(level)) for level in (self.low, self.high)] if tracked is None else tracked
            spread = float(x.std()) if len(x) > 1 else 0.0
            if spread:
                each = self.measure(x, *q) / (spread + 1e-6)
                advantage[papers.flatten()] = self._shared(each, centred[papers]).flatten()
        if seen:
            memory["quantiles"] = self._followed(torch.cat(seen), tracked)
        return of_valid(scores, advantage.clamp(-self.most, self.most))

    def measure(self, x: Tensor, low: float, high: float) -> Tensor:
        """The risk measure of X, of its quantiles."""
        tail = -(low - x).clamp(min=0) / self.low
        middle = ((x - low).clamp(min=0) - (x - high).clamp(min=0)) / (self.high - self.low)
        return (self.w * tail + middle) / (self.w + 1)

    def _shared(self, each: Tensor, centred: Tensor) -> Tensor:
        total = centred.sum(dim=0)
        share = torch.where(total.abs() > 1e-6, centred / total, 1 / len(centred))
        return each * share

    def _followed(self, x: Tensor, tracked: Sequence[float] | None) -> list[float]:
        levels = (self.low, self.high)
        if tracked is None:
            return [float(x.quantile(level)) for level in levels]
        return [
            q + self.rate * (level - float((x < q).double().mean())) for q, level in zip(tracked, levels, strict=True)
        ]


@dataclass(frozen=True)
class MaxAtK:
    """The gradient of the expected best of ``k`` samples, from G of them: with rewards in ascending order, sample i
    gets ``(C(i-1, k-1) r_i + sum over j > i of C(j-2, k-2) r_j) / C(G, k)``, times G because a mean is taken over
    samples. "The Best of N Worlds" (arXiv:2510.23393) sections 2 to 4, for samples of the policy itself (`BestOfK`
    corrects for older ones). ``k = 1`` is the reward.

    baseline: ``mean`` takes off the group's mean; ``none`` is unbiased.
    """

    k: int = 2
    baseline: Literal["mean", "none"] = "mean"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} samples have no best; give 1 or more")

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        found = torch.zeros_like(scores.total)
        for rows in _own_groups(scores):
            n, k = len(rows), self.k
            if n < k:
                raise IncompatibleError(f"advantage.k={k} is more than the {n} samples of a group; raise data.group")
            order = scores.total[rows].sort(stable=True)
            places = range(1, n + 1)
            above = torch.tensor([choose(j - 2, k - 2) for j in places]).double() * order.values
            later = above.flip(0).cumsum(dim=0).flip(0) - above
            own = torch.tensor([choose(i - 1, k - 1) for i in places]).double() * order.values
            found[rows[order.indices]] = n * (own + later) / math.comb(n, k)
        if self.baseline == "mean":
            found = found - group_mean(found, scores.group, scores.own)
        return of_valid(scores, found)


@dataclass(frozen=True)
class PassAtK:
    """The exact group advantage of "one of ``k`` samples is right", for rewards that are right above ``right``: of c
    right ones in G, ``p = 1 - C(G-c, k) / C(G, k)`` and ``s = sqrt(p (1 - p))``, right samples get ``(1 - p) / s``,
    wrong ones ``(1 - p - C(G-c-1, k-1) / C(G-1, k-1)) / s``. Pass@k training (arXiv:2508.10751;
    RUCAIBox/Passk_Training, which compares rewards with exactly 1 and 0). ``k = 1`` is GRPO's with a population
    deviation."""

    k: int = 4
    right: float = 0.5

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        found = torch.zeros_like(scores.total)
        for rows in _own_groups(scores):
            right = scores.total[rows] > self.right
            n, c = len(rows), int(right.sum())
            if n < self.k:
                raise IncompatibleError(
                    f"advantage.k={self.k} is more than the {n} samples of a group; raise data.group"
                )
            p = 1 - math.comb(n - c, self.k) / math.comb(n, self.k)
            s = math.sqrt(p * (1 - p)) + 1e-6
            wrong = 1 - p - choose(n - c - 1, self.k - 1) / math.comb(n - 1, self.k - 1)
            if 0 < c < n:
                found[rows] = torch.full_like(found[rows], wrong / s).masked_fill(right, (1 - p) / s)
        return of_valid(scores, found)


@dataclass(frozen=True)
class BestOverSecond:
    """``(r - second best) / (std + eps)`` for the best sample of its group (the first of equals), 0 for the others, as
    verl's ``grpo_passk`` has it for arXiv:2503.19595: the best of a group is what counts, and the second is its
    baseline."""

    eps: float = 1e-6

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        found, spread = torch.zeros_like(scores.total), group_std(scores.total, scores.group, scores.own, 1)
        for rows in _own_groups(scores):
            if len(rows) > 1:
                order = scores.total[rows].sort(descending=True, stable=True)
                best = rows[order.indices[0]]
                found[best] = (order.values[0] - order.values[1]) / (spread[best] + self.eps)
        return of_valid(scores, found)


@dataclass(frozen=True)
class SignWeighted:
    """``positive`` for samples that score above ``right`` and -1 for others: positive and negative sample
    reinforcement, weighted (arXiv:2506.01347)."""

    positive: float = 0.1
    right: float = 0.5

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        wrong = torch.full_like(scores.total, -1.0)
        return of_valid(scores, wrong.masked_fill(scores.total > self.right, self.positive))


@dataclass(frozen=True)
class BetaTracker:
    """``r - v`` with a value v of each prompt that is kept over iterations, normalised over the batch: no groups are
    needed. Beta(a, b) of a prompt is updated after the step by ``a = keep a + r``, ``b = keep b + 1 - r``; rewards lie
    in [0, 1]. SPO, single-stream (arXiv:2509.13232; verl's recipe/spo).

    The release starts from 8 offline samples of each prompt, of ``count`` together, and keeps less, down to .875, the
    further the policy has moved on the prompt's last completion; here it starts at 1/2, and ``keep`` is fixed, by
    default at what no move keeps.
    """

    keep: float = 0.96
    count: float = 8.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep={self.keep} of the past stays: give a number from 0 to 1")

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        seen: dict[str, list[float]] = memory.setdefault("values", {})
        keys = [str(key) for key in scores.prompt_ids.tolist()]
        known = [seen.get(key, [self.count / 2, self.count / 2]) for key in keys]
        value = torch.tensor([a / (a + b) for a, b in known], dtype=scores.total.dtype)
        for key, reward, own in zip(keys, scores.total.clamp(0, 1).tolist(), scores.own.tolist(), strict=True):
            if own:
                a, b = seen.get(key, [self.count / 2, self.count / 2])
                seen[key] = [self.keep * a + reward, self.keep * b + 1 - reward]
        return batch_normalised(scores, scores.total - value, self.eps)


@dataclass(frozen=True)
class SmoothStandardised:
    """GRPO's advantage, and the one over all of a prompt's rewards so far, each leaning on the other by the number i of
    visits, and the smaller of both: ``((i - 1) new + total) / i`` and ``(new + (i - 1) total) / i``. DCPO's smooth
    advantage standardisation (arXiv:2509.02333; lime-RL/DCPO): a group without spread still learns from what the
    prompt's rewards were before."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        seen: dict[str, list[float]] = memory.setdefault("statistics", {})
        found = torch.zeros_like(scores.total)
        for rows in _own_groups(scores):
            key, reward = str(int(scores.prompt_ids[rows[0]])), scores.total[rows]
            mean, variance = float(reward.mean()), float(reward.var()) if len(rows) > 1 else 0.0
            count, past_mean, past_variance = seen.get(key, [0.0, 0.0, 0.0])
            i, new = count + 1, _standardised(reward, mean, variance)
            moved = count / i * (mean - past_mean) ** 2
            total_mean = (count * past_mean + mean) / i
            total_variance = (count * past_variance + variance + moved) / i
            seen[key] = [i, total_mean, total_variance]
            total = _standardised(reward, total_mean, total_variance)
            first, second = (count * new + total) / i, (new + count * total) / i
            found[rows] = torch.where(first.abs() < second.abs(), first, second)
        return of_valid(scores, found)


def _own_groups(scores: Scores) -> Iterator[Tensor]:
    """The rows of every group that the policy made itself, where there are any."""
    for key in scores.group.unique():
        rows = ((scores.group == key) & scores.own).nonzero()[:, 0]
        if len(rows):
            yield rows


def _standardised(reward: Tensor, mean: float, variance: float) -> Tensor:
    return (reward - mean) / math.sqrt(variance) if variance > 0 else torch.zeros_like(reward)


def batch_normalised(scores: Scores, advantage: Tensor, eps: float) -> Tensor:
    """[N] mean 0 and deviation 1 over all own samples; unchanged if there are fewer than two."""
    inside = advantage[scores.own]
    if len(inside) < 2:
        return of_valid(scores, advantage)
    return of_valid(scores, (advantage - inside.mean()) / (inside.std() + eps))


def of_valid(scores: Scores, advantage: Tensor) -> Tensor:
    """[N] 0 for samples that could not be scored."""
    return torch.where(scores.valid, advantage, torch.zeros_like(advantage))


def choose(n: int, k: int) -> int:
    """The binomial coefficient, 0 where a number is negative."""
    return math.comb(n, k) if n >= 0 and k >= 0 else 0


@dataclass(frozen=True)
class RescuedCentred:
    """``r - mean`` over the samples of the group that take part (`flowrl.parts.selections.mixed`), 0 for the others.
    IGPO (arXiv:2509.10396)."""

    correct: float = 1.0
    most: int = 4

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        kept = mixed(scores, self.correct, self.most)
        return torch.where(kept, scores.total - group_mean(scores.total, scores.group, kept), 0.0)
