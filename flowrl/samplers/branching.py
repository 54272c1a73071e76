"""Sampling of continuous policies where samples of a group share steps: trees, and siblings that differ in one step.

A shared step is made once and counts for all samples below it. Noise of a shared step follows from the group and the
number of its node, everything else from a sample's own seed, so that a sample does not depend on the batch or the
process that makes it, only the number of forwards saved does: a group that is cut shares nothing across the cut.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.flow import ODE, clean_of, mean_of, measure_step
from flowrl.math.random import derive, normal
from flowrl.samplers.flow import INITIAL_NOISE, FlowSampler, as_latents
from flowrl.samplers.windows import StepRanges
from flowrl.types import Condition, Draw, FlowPolicy, IncompatibleError, Rollout, Steps


@dataclass(frozen=True)
class Plan:
    """What each of N rows does in K moves along the grid, and what of it rows share."""

    at: Tensor
    """[N, K + 1] int64: places of the grid; a row that does not move has arrived."""
    noisy: Tensor  # [N, K] bool
    node: Tensor
    """[N, K + 1] int64: rows of a group with the same number here share the state before a move."""
    shared: Tensor  # [N, K + 1] bool: whether there may be several of them
    first: Tensor  # [N] int64: the first move that is recorded
    recorded: int
    """How many moves are, one after the other."""
    event_node: Tensor
    """[N, recorded + 1] int64: the nodes of the recorded states as advantages see them (`Steps.node`)."""


@dataclass(frozen=True, kw_only=True)
class SharingSampler(FlowSampler):
    """What samplers that share steps have in common: they differ in their `plan`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver != "euler" or self.record_mean:
            raise ValueError("solver=dpmpp_2m and record_mean=true are not for samplers that share steps; remove them")
        if self.share_noise or self.own_noise:
            raise ValueError("share_noise and own_noise mean nothing where a tree says what is shared; remove them")

    @property
    @abstractmethod
    def tree(self) -> int:
        """Samples that share something: a group should hold whole trees."""

    @abstractmethod
    def plan(self, draw: Draw, times: Tensor) -> Plan:
        """Of the rows of a draw, on a grid [steps + 1]."""

    @torch.no_grad()
    def __call__(self, policy: FlowPolicy, condition: Condition, draw: Draw) -> Rollout:
        times = self.grid(policy)
        plan = self.plan(draw, times)
        record = _Record(plan)
        every = torch.arange(len(draw))
        x = policy.initial(self._noise_of(draw, plan, every, 0, policy), times)
        forwards = 0
        for move in range(plan.noisy.shape[1]):
            rows = (plan.at[:, move + 1] > plan.at[:, move]).nonzero()[:, 0]
            keys = torch.stack([draw.group[rows], plan.node[rows, move], plan.at[rows, move]], dim=1)
            one, which = distinct(keys)
            forwards += len(one)
            alone = rows[one]
            there, of_rows = put(alone, x.device), put(rows, x.device)
            v = policy.velocity(x[there], times[plan.at[alone, move]], condition.take(alone), guidance=self.guidance)
            v = v[put(which, v.device)]
            before, t, t_next = x[of_rows], times[plan.at[rows, move]], times[plan.at[rows, move + 1]]
            after = mean_of(ODE(), before, v, t, t_next)
            noisy = plan.noisy[rows, move].nonzero()[:, 0]
            if len(noisy):
                pick = put(noisy, x.device)
                z = self._noise_of(draw, plan, rows[noisy], move + 1, policy)
                step = (before[pick], v[pick], z, t[noisy], t_next[noisy])
                after[pick] = self._noisy_move(step, rows[noisy], move, record)
            if self.decode_clean:
                last = (plan.at[rows, move + 1] == self.steps).nonzero()[:, 0]
                pick = put(last, x.device)
                after[pick] = clean_of(before[pick], v[pick], t[last])
            x[of_rows] = after
        trace = record.steps(times, self, plan)
        return Rollout.of(draw, condition, as_latents(x, times[-1]), trace, times=times, forwards=forwards)

    def _noise_of(self, draw: Draw, plan: Plan, rows: Tensor, state: int, policy: FlowPolicy) -> Tensor:
        """[n, ...] of the step that leads to a state; drawn once for rows that share it."""
        keys = torch.stack([draw.group[rows], plan.node[rows, state]], dim=1)
        one, which = distinct(keys)
        some = rows[one]
        seeds = torch.where(
            plan.shared[some, state], tied_seeds(draw.take(some), plan.node[some, state]), draw.seeds[some]
        )
        noise = normal(seeds, policy.latent_shape, stream=INITIAL_NOISE + state, device=policy.device)
        return noise[put(which, noise.device)]

    def _noisy_move(self, step: tuple[Tensor, ...], rows: Tensor, move: int, record: _Record) -> Tensor:
        x, v, z, t, t_next = step
        mean = mean_of(self.dynamics, x, v, t, t_next)
        s = self.dynamics.coefficients(t, t_next)[2]
        x_next = mean + put(s, x).reshape(-1, *[1] * (x.ndim - 1)) * z
        kept = record.among(rows, move)
        if len(kept):
            if not bool((s[kept] > 0).all()):
                raise IncompatibleError(
                    "a recorded step has no noise, so no density: leave it out of the sampler's window"
                )
            pick = put(kept, x.device)
            squared = measure_step(self.dynamics, x[pick], v[pick], x_next[pick], t[kept], t_next[kept])[0]
            record.add(rows[kept], move, x[pick], x_next[pick], squared)
        return x_next


class _Record:
    """The recorded moves of every row, on the host."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._states: Tensor | None = None  # [N, D + 1, ...]
        self._squared = torch.full((len(plan.first), plan.recorded), torch.nan, dtype=torch.float64)

    def among(self, rows: Tensor, move: int) -> Tensor:
        """Which of these rows record the move."""
        since = move - self._plan.first[rows]
        return ((since >= 0) & (since < self._plan.recorded)).nonzero()[:, 0]

    def add(self, rows: Tensor, move: int, x: Tensor, x_next: Tensor, squared: Tensor) -> None:
        """Of these rows, where the move started and ended."""
        n, d = self._squared.shape
        if self._states is None:
            self._states = torch.empty(d + 1, n, *x.shape[1:], dtype=x.dtype).transpose(0, 1)
        place = move - self._plan.first[rows]
        self._states[rows, place] = x.cpu()
        self._states[rows, place + 1] = x_next.cpu()
        self._squared[rows, place] = squared.cpu()

    def steps(self, times: Tensor, sampler: FlowSampler, plan: Plan) -> Steps | None:
        """What the estimator replays."""
        if self._states is None:
            return None
        if bool(self._squared.isnan().any()):
            raise IncompatibleError("a recorded step has no noise, so no density: move the sampler's window")
        moves = plan.first[:, None] + torch.arange(plan.recorded + 1)
        grid = times.cpu()[plan.at.gather(1, moves)]  # [N, D + 1]
        return Steps(
            self._states,
            t=grid[:, :-1],
            t_next=grid[:, 1:],
            squared=self._squared,
            dynamics=sampler.dynamics,
            guidance=sampler.guidance,
            node=plan.event_node,
        )


@dataclass(frozen=True, kw_only=True)
class TreeSampler(SharingSampler):
    """A tree whose ``width ** len(forks)`` leaves are samples: all start from one noise and go together until, at each
    step of ``forks``, every branch splits into ``width``. BranchGRPO (arXiv:2509.06040).

    A tree has ``sum_k (branches at step k)`` forwards: 203 instead of 320 for 16 leaves of 20 steps that fork at 0, 3,
    6 and 9. Row p of a tree follows branch ``p // (leaves of a branch)``, so neighbours part last. ``window`` says
    which steps have noise, those of the forks alone without one (they then follow one another); noise between two forks
    is that of the branch. One fork at step 0 is a sampler with ``share_noise=true``, sample by sample.
    """

    forks: tuple[int, ...] = (0, 3, 6, 9)
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


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """``(first [m], which [n])`` of keys [n, k]: a row of each different key, and which of them every row is."""
    unique, which = keys.unique(dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(keys)).scatter_reduce(0, which, torch.arange(len(keys)), "amin")
    return first, which


def tied_seeds(draw: Draw, node: Tensor) -> Tensor:
    """[N] int64: the stream of the rows that are the same node [N] of their group; node 0 has that of a whole group."""
    facts = zip(draw.group.tolist(), node.tolist(), strict=True)
    tied = [derive(draw.shared_seed, "group", group, *([first] if first else [])) for group, first in facts]
    return torch.tensor(tied, dtype=torch.int64)


def _said(steps: range) -> str:
    return f"{steps.start} to {steps.stop - 1}" if len(steps) else "none"
