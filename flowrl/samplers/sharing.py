"""Sampling of continuous policies where samples of a group share steps, as a plan says.

A shared step is made once and counts for all samples below it. Noise of a shared step follows from the group and the
number of its node, everything else from a sample's own seed, so that a sample does not depend on the batch or the
process that makes it, only the number of forwards saved does: a group that is cut shares nothing across the cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.flow import ODE, clean_of, mean_of, measure_step
from flowrl.math.random import derive, normal
from flowrl.samplers.flow import INITIAL_NOISE, FlowSampler, as_latents
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
class SharingSampler(FlowSampler, ABC):
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
