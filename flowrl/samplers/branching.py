"""Sampling of continuous policies as trees, and as siblings that differ in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.random import derive
from flowrl.samplers.sharing import Plan, SharingSampler
from flowrl.samplers.windows import StepRanges
from flowrl.types import Draw


@dataclass(frozen=True, kw_only=True)
class TreeSampler(SharingSampler):
    """A tree whose ``width ** len(forks)`` leaves are samples: all start from one noise and go together until, at each
    step of ``forks``, every branch splits into ``width``. BranchGRPO (arXiv:2509.06040).

    A tree has ``sum_k (branches at step k)`` forwards: 203 instead of 320 for 16 leaves of 20 steps that fork at 0, 3,
    6 and 9. Row p of a tree follows branch ``p // (leaves of a branch)``, so neighbours part last. ``window`` says
    which steps have noise, those of the forks alone without one (they then follow one another); noise between two forks
    is that of the branch. One fork at step 0 is a sampler with ``share_noise=true``, sample by sample.
    """

    forks: tuple[int, ...] = (0, 1, 2, 3)
    width: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 2:
            raise ValueError(f"width={self.width} branches are no fork; give 2 or more")
        if not self.forks or list(self.forks) != sorted(set(self.forks)) or self.forks[0] < 0:
            raise ValueError(f"forks={list(self.forks)} should be steps in rising order, each once, from 0 on")

    @property
    def tree(self) -> int:
        return self.width ** len(self.forks)

    def step_ranges(self, draw: Draw, times: Tensor | None = None) -> StepRanges:
        forked = range(self.forks[0], self.forks[-1] + 1)
        ranges = StepRanges(forked, forked) if self.window is None else super().step_ranges(draw, times)
        if self.window is None and (len(forked) != len(self.forks) or forked.stop > self.steps):
            raise ValueError(
                f"forks={list(self.forks)} of {self.steps} steps should follow one another where window does not say "
                "which steps have noise; change them, or set sampler.window"
            )
        deaf = [fork for fork in self.forks if fork not in ranges.stochastic]
        if deaf:
            raise ValueError(
                f"a fork at step {deaf[0]} needs noise there, and the steps with noise are {_said(ranges.stochastic)}; "
                "change sampler.forks, sampler.steps or sampler.window"
            )
        return ranges

    def recordable(self, times: Tensor) -> range:
        """The steps that may be recorded."""
        return range(self.forks[0], self.forks[-1] + 1) if self.window is None else super().recordable(times)

    def plan(self, draw: Draw, times: Tensor) -> Plan:
        """All rows go in step."""
        ranges = self.step_ranges(draw, times)
        place = draw.place
        passed = torch.tensor([sum(fork < k for fork in self.forks) for k in range(self.steps + 1)])
        below = self.width ** (len(self.forks) - passed)  # leaves of a branch, before each step
        node = place[:, None] // below * below
        at = torch.arange(self.steps + 1).expand(len(draw), -1)
        noisy = torch.isin(torch.arange(self.steps), torch.tensor([*ranges.stochastic])).expand(len(draw), -1)
        start, count = ranges.recorded.start, len(ranges.recorded)
        recorded = node[:, start : start + count + 1]
        first = torch.full((len(draw),), start)
        return Plan(at, noisy, node, (below > 1).expand_as(node), first, count, recorded)


@dataclass(frozen=True, kw_only=True)
class OneStepSampler(SharingSampler):
    """Deterministic but for one step, which alone is recorded: what samples that start alike end in differs by that
    step's noise, so its credit is exact. TempFlow-GRPO (arXiv:2508.04324), Flash-GRPO (arXiv:2605.15980), E-GRPO
    (arXiv:2601.00423), G2RPO (arXiv:2510.01982).

    candidates: the steps that may have the noise; ``null``: those of the first ``stop`` of the grid.
    choice: ``each``: the candidates one after the other, ``siblings`` samples each, which share all that is before it;
        ``group``: one for all samples of a group, drawn anew for every prompt and iteration.
    siblings: samples that are alike before their noisy step; 1: every sample starts from noise of its own.
    merge: so many steps of the grid, from the noisy one on, are made one (more noise at once: E-GRPO); one number for
        all candidates, or one for each.
    strides: ends of each sibling: the rest of the grid is walked in strides of so many steps, once each.
    """

    candidates: tuple[int, ...] | None = None
    stop: float = 1.0
    choice: Literal["each", "group"] = "each"
    siblings: int = 6
    merge: tuple[int, ...] = (1,)
    strides: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            raise ValueError("a sampler with one noisy step has candidates instead of a window; remove window")
        if min(self.siblings, *self.merge, *self.strides, len(self.merge), len(self.strides)) < 1:
            raise ValueError(
                f"siblings={self.siblings}, merge={list(self.merge)} and strides={list(self.strides)} should be 1 or "
                "more"
            )
        _ = self.noisy_steps()

    @property
    def tree(self) -> int:
        return self.siblings * len(self.strides)

    @property
    def recorded(self) -> int:
        return 1

    def noisy_steps(self) -> list[int]:
        """The candidates. Raises `ValueError` where there are none, or no room for what is merged."""
        end = int(self.stop * self.steps) if self.stop < 1 else self.steps - max(self.merge)
        found = list(range(end)) if self.candidates is None else list(self.candidates)
        if len(self.merge) not in (1, len(found)):
            raise ValueError(
                f"merge={list(self.merge)} should be one number, or one for each of {len(found)} candidates"
            )
        ends = [step + merge for step, merge in zip(found, self.merges(found), strict=True)]
        if not found or min(found) < 0 or max(ends) > self.steps:
            raise ValueError(
                f"the noisy step is one of {found} of {self.steps}, and they end at {ends}; change sampler.candidates, "
                "stop, merge or steps"
            )
        return found

    def merges(self, found: list[int]) -> list[int]:
        """How many steps of the grid each candidate takes."""
        return list(self.merge) * (len(found) if len(self.merge) == 1 else 1)

    def recordable(self, times: Tensor) -> range:
        """From the first to the last candidate."""
        found = self.noisy_steps()
        return range(min(found), max(found) + 1)

    def plan(self, draw: Draw, times: Tensor) -> Plan:
        """Rows walk to their noisy step in step, and on in their own strides."""
        found, kinds = self.noisy_steps(), len(self.strides)
        bunch, position = draw.place // self.tree, draw.place % self.tree
        if self.choice == "each":
            chosen = (bunch + draw.iteration) % len(found)
            trunk = -1 - bunch // len(found)  # negative: it goes on when the samples of its first numbers have left
        else:
            chosen = torch.tensor([derive(draw.shared_seed, "step", int(group)) % len(found) for group in draw.group])
            trunk = -1 - bunch
        start = torch.tensor(found)[chosen]
        end = start + torch.tensor(self.merges(found))[chosen]
        stride = torch.tensor(self.strides)[position % kinds]
        moves = torch.arange(self.steps + 1)[None]
        behind = (moves - start[:, None] - 1).clamp(min=0) * stride[:, None]  # steps since the noisy one
        at = torch.where(moves <= start[:, None], moves, (end[:, None] + behind).clamp(max=self.steps))
        before = moves <= start[:, None]
        own = draw.place // kinds * kinds  # siblings that differ in their strides share the noisy step
        walked = torch.where(moves == start[:, None] + 1, own[:, None], draw.place[:, None])
        node = torch.where(before, trunk[:, None], walked)
        alone = self.siblings == 1
        shared = torch.where(before, not alone or kinds > 1, (moves == start[:, None] + 1) & (kinds > 1))
        if alone and kinds == 1:
            node = draw.place[:, None].expand_as(node)
        events = torch.stack([bunch * self.tree, own], dim=1)
        return Plan(at, moves[:, :-1] == start[:, None], node, shared, start, 1, events)


def _said(steps: range) -> str:
    return f"{steps.start} to {steps.stop - 1}" if len(steps) else "none"
