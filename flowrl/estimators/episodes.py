"""Likelihood of the decisions of episodes: any estimator of single samples, asked about every decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.estimators.matching import Matching
from flowrl.math.random import each
from flowrl.types import EpisodeRows, Episodes, Estimator, IncompatibleError, Likelihood, Rollout


@dataclass(frozen=True, kw_only=True)
class PerDecision:
    """What an estimator says of single samples, of every decision of an episode as if it were one: its chunk of actions
    given its observation. The rows of an episode are its decisions' rows side by side.

    average: the mean of a decision's draws instead of each of them, so that a decision has one number: FPO's ratio,
        ``exp`` of the mean difference (arXiv:2507.21053); False gives every draw a ratio of its own (FPO++).

    Where the policy has a critic, ``value`` is what it expects at a decision's observation, also at the one after an
    episode's end, which is no decision.
    """

    family: ClassVar[str] = "control"
    estimator: Estimator = Matching()
    average: bool = False

    @property
    def references(self) -> tuple[str, ...]:
        return self.estimator.references

    @property
    def has_recorded_logp(self) -> bool:
        return self.estimator.has_recorded_logp

    @property
    def explores(self) -> bool:
        """Whether it reads how much noise the policy's steps have, which is then learned."""
        return bool(getattr(self.estimator, "explores", False))

    @property
    def network(self) -> Mapping[str, Any]:
        """What the network has to be for it, as `load_control` takes it (`flowrl.estimators.imitation`)."""
        return getattr(self.estimator, "network", {})

    @property
    def in_units(self) -> bool:
        """Whether its log-probabilities depend on the scale of the actions (`Matching`)."""
        return bool(getattr(self.estimator, "in_units", False))

    def decisions(self, recorded: int) -> tuple[int, int]:
        """Of ``recorded`` numbers; those of the observation after the end, which are never trained, are not counted."""
        count, rows = self.estimator.decisions(1)
        return recorded * (1 if self.average else count), recorded * rows

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> EpisodeRows:
        trace = episodes_of(rollout)
        rows, events = trace.alive.nonzero(as_tuple=True)
        decided = each(seeds, "probe")
        condition: Any = rollout.condition
        chunks = Rollout(
            condition.take(rows).seeing(trace.observed[rows, events]),
            trace.actions[rows, events],
            torch.arange(len(rows)),
            decided[rows] ^ (events + 1) * 0x9E3779B1,
            rollout.source[rows],
            trace.steps(rows, events),
            rollout.times,
        )
        inner = self.estimator.probe(chunks, policy, chunks.seeds)
        return _rows(trace, rows, events, inner, 1 if self.average else inner.shape[1])

    def recorded_logp(self, rollout: Rollout, rows: EpisodeRows) -> Likelihood | None:
        if rows.inner is None:
            return None
        found = self.estimator.recorded_logp(rollout, rows.inner)
        if found is None:
            return None
        return Likelihood(self._spread(rows, found.logp, (rows.slot >= 0).nonzero()))

    def __call__(self, policy: Any, rows: EpisodeRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        assert rows.inner is not None, "the rows of a process that holds the samples"
        made = (rows.slot >= 0).nonzero()
        asked = rows.slot[made[:, 0], made[:, 1]]
        some = asked if len(asked) else torch.zeros(1, dtype=torch.int64)  # of a block without a decision
        seen = rows.observed[made[:, 0], made[:, 1]] if len(asked) else rows.observed[:1, 0]
        inner = rows.inner.block(some, slice(None))
        found = self.estimator(policy, inner, condition.seeing(seen), references)
        names = {"": found.logp, **found.extra}
        spread = {name: self._spread(rows, value if len(asked) else value * 0, made) for name, value in names.items()}
        logp = spread.pop("")
        if getattr(policy, "critic", None) is not None and policy.weights.active == "live":
            spread["value"] = self._values(policy, rows)
        return Likelihood(logp, spread)

    def _spread(self, rows: EpisodeRows, value: Tensor, made: Tensor) -> Tensor:
        """[N, D] of numbers [l, d] of decisions at ``made`` [l, 2], the sample and event of each; 0 elsewhere."""
        value = value.mean(dim=1, keepdim=True) if self.average else value
        n, e = rows.slot.shape
        wide = value.new_zeros(n * e, value.shape[1])
        if not len(made):
            return (wide + value.sum()).reshape(n, e * value.shape[1])
        place = (made[:, 0] * e + made[:, 1]).to(value.device)
        return wide.index_copy(0, place, value).reshape(n, e * value.shape[1])

    def _values(self, policy: Any, rows: EpisodeRows) -> Tensor:
        """[N, D] of a critic: the same for all numbers of an event."""
        where = rows.seen.nonzero()
        value = policy.value(rows.observed[where[:, 0], where[:, 1]])
        n, e = rows.seen.shape
        place = (where[:, 0] * e + where[:, 1]).to(value.device)
        return value.new_zeros(n * e).index_copy(0, place, value).reshape(n, e).repeat_interleave(rows.per, dim=1)


def episodes_of(rollout: Rollout) -> Episodes:
    """The record of a rollout's episodes. Raises `IncompatibleError` where there is none."""
    if not isinstance(rollout.trace, Episodes):
        raise IncompatibleError("PerDecision estimates the decisions of episodes: sample with EpisodeSampler")
    return rollout.trace


def _rows(trace: Episodes, rows: Tensor, events: Tensor, inner: Any, per: int) -> EpisodeRows:
    n, s = trace.alive.shape
    beyond = torch.zeros(n, 1, dtype=torch.bool)
    alive = torch.cat([trace.alive, beyond], dim=1)
    seen = torch.cat([~beyond, trace.alive], dim=1)
    slot = torch.full((n, s + 1), -1)
    slot[rows, events] = torch.arange(len(rows))
    event = torch.where(alive, torch.arange(s + 1), -1)
    wide = alive.repeat_interleave(per, dim=1)
    return EpisodeRows(
        alive=wide,
        event=event.repeat_interleave(per, dim=1),
        number=torch.arange(per).repeat(s + 1).expand(wide.shape),
        truncated=trace.truncated[:, None].expand(wide.shape),
        per=per,
        observed=trace.observed,
        seen=seen,
        slot=slot,
        inner=inner,
    )
