"""Advantages of samples that share steps, from the nodes that a sampler records (`flowrl.types.Scores.nodes`): [N, E].

The value of a node is the mean reward of the samples below it, its leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.groups import group_count, group_mean, group_sum
from flowrl.parts.advantages import GroupCentred
from flowrl.types import IncompatibleError, Memory, Scores, place_in_group


@dataclass(frozen=True)
class Tree:
    """The value of the node that an event leads to, compared with others: [N, E]. Events between two forks lead no
    further than the fork before them did, and have its advantage.

    against: ``parent`` subtracts the value of the node that the last fork started from; over the forks of a sample
        that telescopes to its reward less the mean of its tree, and one fork is GRPO without a standard deviation.
        ``siblings`` subtracts the mean of the other branches of that fork (leave-one-out; unbiased), which has to be
        even: d-TreeRPO (arXiv:2512.09675). ``depth`` takes all nodes of the tree after the same event, each once, and
        divides by their standard deviation (ddof 1): BranchGRPO (arXiv:2509.06040). A level without spread gets 0.
        ``tree`` normalises the leaves in their tree, by mean and standard deviation (ddof 1), and a node has the mean
        of its leaves: TreeGRPO (arXiv:2512.08153).
    """

    against: Literal["parent", "siblings", "depth", "tree"] = "parent"
    clip: float | None = None

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        nodes, reward, own = nodes_of(scores), scores.total, scores.own
        at = [_numbered(scores.group, nodes[:, e]) for e in range(nodes.shape[1])]  # node of each row before event e
        if self.against == "tree":
            reward = GroupCentred(clip=None)(replace(scores, group=at[0]), memory)
        value = [group_mean(reward, node, own) for node in at]
        if self.against == "depth":
            columns = [self._of_level(value[e], at[e], at[0], own) for e in range(1, len(at))]
        elif self.against == "tree":
            columns = value[1:]
        else:
            columns = self._of_forks(value, at, own)
        advantage = torch.where(scores.valid[:, None], torch.stack(columns, dim=1), 0.0)
        return advantage if self.clip is None else advantage.clamp(-self.clip, self.clip)

    def _of_forks(self, value: list[Tensor], at: list[Tensor], own: Tensor) -> list[Tensor]:
        last, columns = torch.zeros_like(value[0]), []
        everyone = torch.ones_like(own)
        for e in range(1, len(at)):
            before, after = group_count(at[e - 1], everyone), group_count(at[e], everyone)
            gain = value[e] - value[e - 1]
            if self.against == "siblings":
                here, there = group_count(at[e - 1], own), group_count(at[e], own)
                gain = torch.where(here > there, gain * here / (here - there).clamp(min=1), 0.0)
            last = torch.where(before > after, gain, last)
            columns.append(last)
        return columns

    def _of_level(self, value: Tensor, node: Tensor, tree: Tensor, own: Tensor) -> Tensor:
        share = torch.where(own, 1 / group_count(node, own).clamp(min=1), 0.0)  # every node counts once
        count = group_sum(share, tree, own)
        centred = value - group_sum(share * value, tree, own) / count.clamp(min=1)
        variance = group_sum(share * centred**2, tree, own) / (count - 1).clamp(min=1)
        flat = (variance.sqrt() < 1e-6) | (count < 1.5)
        return torch.where(flat, 0.0, centred / (variance.sqrt() + 1e-8))


@dataclass(frozen=True)
class Siblings(GroupCentred):
    """`GroupCentred` among the samples that differ in one step and what follows: those whose last event started from
    the same node, and that ended in the same way where a step has several ends (`OneStepSampler.strides`). Their
    advantages add up at the step they share. TempFlow-GRPO (arXiv:2508.04324), G2RPO (arXiv:2510.01982)."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        nodes = nodes_of(scores)
        end = place_in_group(scores.group) - nodes[:, -1]
        group = _numbered(_numbered(scores.group, nodes[:, -2]), end)
        return super().__call__(replace(scores, group=group), memory)


@dataclass(frozen=True)
class SiblingPair:
    """1 for the best and -1 for the worst of the samples that start their last event from one state, of the state in
    each group where they differ most; 0 for all others: a preference between two steps from the same place. SPO
    (arXiv:2406.04314).

    least: pairs whose rewards differ by less, after a softmax over the siblings, are left out.
    """

    least: float = 0.0

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        nodes = nodes_of(scores)
        advantage = torch.zeros_like(scores.total)
        for group in scores.group.unique():
            found: list[tuple[float, int, int]] = []
            mine = (scores.group == group) & scores.own
            for node in nodes[mine, -2].unique():
                rows = (mine & (nodes[:, -2] == node)).nonzero()[:, 0]
                share = scores.total[rows].softmax(dim=0)
                best, worst = int(share.argmax()), int(share.argmin())
                found.append((float(share[best] - share[worst]), int(rows[best]), int(rows[worst])))
            gap, best, worst = max(found, default=(0.0, 0, 0), key=lambda pair: pair[0])
            if gap > self.least:
                advantage[best], advantage[worst] = 1.0, -1.0
        return advantage


def nodes_of(scores: Scores) -> Tensor:
    """[N, E + 1]. Raises `IncompatibleError` for samples that share nothing."""
    if scores.nodes is None:
        raise IncompatibleError(
            "this advantage compares the branches of a tree: give the algorithm a sampler that makes one, such as "
            "TreeSampler"
        )
    return scores.nodes


def _numbered(first: Tensor, second: Tensor) -> Tensor:
    """[N] a number for every pair of two [N]."""
    return torch.stack([first, second], dim=1).unique(dim=0, return_inverse=True)[1]


@dataclass(frozen=True)
class BudgetRelative:
    """Advantages of a thought that is cut at S budgets and answered A times after each (`BudgetSampler`): [N, 2], of
    what a budget adds to the thought, and of the answer. BRPO (arXiv:2505.13438).

    With r_s the mean reward of the answers at budget s and P the prior of the budgets, the thought's tokens up to
    budget s have the return ``R_s = sum_{j >= s} P_j r_j``, less a baseline that mixes what its own shorter parts
    earned, later ones twice as much as those before, and what the group did: ``(s V1 + (S - s) V2) / S``, ``V1 =
    (sum_{j < s} 2^j r_j / sum 2^j) sum_{j >= s} P_j``, ``V2`` the group's mean of R_s. An answer is compared with the
    others of its part, or, where there is one, with the group's at this budget. No standard deviation.

    prior: weights of the budgets, normalised; ``null``: all the same.
    """

    prior: tuple[float, ...] | None = None

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        nodes, reward = nodes_of(scores), torch.where(scores.own, scores.total, 0.0)
        part = _numbered(scores.group, nodes[:, 1])
        share = group_mean(reward, part, scores.own)
        shape = self._shape(nodes, scores.group)
        r = share.reshape(shape)[..., 0]  # [B, G, S]
        answered = reward.reshape(shape)
        count = shape[2]
        prior = torch.ones(count) if self.prior is None else torch.tensor(self.prior)
        if len(prior) != count:
            raise IncompatibleError(f"advantage.prior has {len(prior)} weights, and there are {count} budgets")
        prior = prior.double() / prior.double().sum()
        later = (r * prior).flip(-1).cumsum(dim=-1).flip(-1)  # R_s
        ahead = prior.flip(0).cumsum(dim=0).flip(0)
        double = 2.0 ** torch.arange(count, dtype=torch.float64)
        before = (r * double).cumsum(dim=-1) / double.cumsum(dim=0)
        own = torch.cat([torch.zeros_like(r[..., :1]), before[..., :-1]], dim=-1) * ahead
        step = torch.arange(count, dtype=torch.float64)
        thought = later - (step * own + (count - step) * later.mean(dim=1, keepdim=True)) / count
        level = answered.mean(dim=1, keepdim=True) if shape[3] == 1 else r[..., None]
        both = torch.stack([thought[..., None].expand(shape), answered - level], dim=-1).reshape(-1, 2)
        return torch.where(scores.valid[:, None], both, 0.0)

    def _shape(self, nodes: Tensor, group: Tensor) -> tuple[int, int, int, int]:
        """``(groups, thoughts, budgets, answers)``."""
        groups = len(group.unique())
        thoughts = len(_numbered(group, nodes[:, 0]).unique())
        parts = len(_numbered(group, nodes[:, 1]).unique())
        return groups, thoughts // groups, parts // thoughts, len(group) // parts
