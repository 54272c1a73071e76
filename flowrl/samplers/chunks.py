"""Sampling in pieces: a sampler's result does not depend on the batch, so large draws are cut and put together
again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from flowrl.types import Condition, Draw, Episodes, Policy, Rollout, Sampler, Steps, TokenTrace


def sample(sampler: Sampler, policy: Policy, condition: Condition, draw: Draw, rows: int) -> Rollout:
    """The rollout of ``draw``, made ``rows`` samples at a time. A sampler that returns other rows than were drawn takes
    all of them at once."""
    if rows < 1:
        raise ValueError(f"a sampling batch needs at least one row, not {rows}")
    if len(draw) <= rows:
        return sampler(policy, condition, draw)
    made, found = Pieces(len(draw)), 0
    for index in torch.arange(len(draw)).split(rows):
        found = made.add(sampler(policy, condition.take(index), draw.take(index)))
        if found > len(draw):
            break
    if found != len(draw):
        raise ValueError(f"{type(sampler).__name__} returns other rows than were drawn: sample all {len(draw)} at once")
    return made.rollout(condition, draw.group)


def joined(parts: Sequence[Rollout], condition: Condition, group: Tensor) -> Rollout:
    """One rollout from several of the same sampler, with the condition and the groups [N] of all its samples."""
    made = Pieces(sum(len(part.group) for part in parts))
    for part in parts:
        made.add(part)
    return made.rollout(condition, group)


def interleaved(parts: Sequence[tuple[Tensor, Rollout]], condition: Condition, group: Tensor) -> Rollout:
    """One rollout of rows [N] that several samplers made, each the ones with its indices."""
    order = torch.cat([rows for rows, _ in parts])
    whole = joined([part for _, part in parts], condition.take(order), group[order])
    return replace(take(whole, order.argsort()), condition=condition)


class Pieces:
    """A rollout that comes in pieces: every tensor has its final size from the first piece on, and a piece is copied
    into it and let go, so that no more than one rollout and one piece are ever held."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.rows = 0
        """Samples so far."""
        self._forwards = 0
        self._first: Rollout | None = None
        """Of the first piece, what is no tensor of rows."""
        self._tensors: dict[str, Tensor] = {}

    def add(self, part: Rollout) -> int:
        """Add the next samples, unless there would be too many; how many there would be."""
        assert part.judge is None, "a judge is set once all samples are there"
        before, after = self.rows, self.rows + len(part.group)
        if after > self._count:
            return after
        given = rows_of(part)
        if self._first is None:
            self._tensors = {name: value.new_empty(self._count, *value.shape[1:]) for name, value in given.items()}
            self._first = _without_rows(part)
        for name, whole in self._tensors.items():
            whole[before:after] = given[name]
        self.rows, self._forwards = after, self._forwards + part.forwards
        return after

    def rollout(self, condition: Condition, group: Tensor) -> Rollout:
        """All of it, with the condition and the groups [N] of all samples."""
        assert self._first is not None
        filled = {name: whole[: self.rows] for name, whole in self._tensors.items()}
        trace = {name.removeprefix(TRACE): value for name, value in filled.items() if name.startswith(TRACE)}
        own = {name: value for name, value in filled.items() if not name.startswith(TRACE)}
        kept = None if self._first.trace is None else replace(self._first.trace, **trace)
        return replace(self._first, condition=condition, group=group, trace=kept, forwards=self._forwards, **own)


def take(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some samples of a rollout, copied: the others are not kept alive. ``forwards`` stays that of all."""
    assert rollout.judge is None, "a judge knows all samples of its rollout"
    trace = rollout.trace
    return replace(
        rollout,
        condition=rollout.condition.take(rows),
        final=rollout.final[rows.to(rollout.final.device)],
        group=rollout.group[rows],
        seeds=rollout.seeds[rows],
        source=rollout.source[rows],
        trace=None if trace is None else replace(trace, **{k: v[rows] for k, v in _tensors(trace).items()}),
        feedback=None if rollout.feedback is None else rollout.feedback[rows],
    )


TRACE = "trace."
"""Prefix of the tensors of a rollout's record."""


def rows_of(rollout: Rollout) -> dict[str, Tensor]:
    """The tensors of a rollout that have a row for every sample."""
    own = {"final": rollout.final, "seeds": rollout.seeds, "source": rollout.source}
    own |= {} if rollout.feedback is None else {"feedback": rollout.feedback}
    return own | ({} if rollout.trace is None else {TRACE + k: v for k, v in _tensors(rollout.trace).items()})


def _without_rows(rollout: Rollout) -> Rollout:
    """What is left of a rollout without them: its tensors are empty and hold no memory."""
    empty = {name: value.new_empty(0) for name, value in rows_of(rollout).items() if not name.startswith(TRACE)}
    trace = rollout.trace
    kept = None if trace is None else replace(trace, **{k: v.new_empty(0) for k, v in _tensors(trace).items()})
    return replace(rollout, trace=kept, **empty)


def _tensors(record: Steps | TokenTrace | Episodes) -> dict[str, Tensor]:
    """The fields of a record that are tensors."""
    every = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in every.items() if isinstance(value, Tensor)}
