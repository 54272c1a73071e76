"""Sampling in pieces: a sampler's result does not depend on the batch, so large draws are cut and put together
again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from flowrl.types import Condition, Draw, Policy, Rollout, Sampler, Steps, TokenTrace


def sample(sampler: Sampler, policy: Policy, condition: Condition, draw: Draw, rows: int) -> Rollout:
    """The rollout of ``draw``, made ``rows`` samples at a time. A sampler that returns other rows than were drawn takes
    all of them at once."""
    if rows < 1:
        raise ValueError(f"a sampling batch needs at least one row, not {rows}")
    parts = []
    for index in torch.arange(len(draw)).split(rows):
        parts.append(sampler(policy, condition.take(index), draw.take(index)))
    if len(parts) == 1:
        return parts[0]
    if sum(len(part.group) for part in parts) != len(draw):
        raise ValueError(f"{type(sampler).__name__} returns other rows than were drawn: sample all {len(draw)} at once")
    return joined(parts, condition, draw.group)


def joined(parts: Sequence[Rollout], condition: Condition, group: Tensor) -> Rollout:
    """One rollout from several of the same sampler, with the condition and the groups [N] of all its samples."""
    first = parts[0]
    assert all(part.judge is None for part in parts), "a judge is set once all samples are there"
    trace, feedback = first.trace, [part.feedback for part in parts if part.feedback is not None]
    return replace(
        first,
        condition=condition,
        final=torch.cat([part.final for part in parts]),
        group=group,
        seeds=torch.cat([part.seeds for part in parts]),
        source=torch.cat([part.source for part in parts]),
        trace=None if trace is None else replace(trace, **_joined([part.trace for part in parts])),
        feedback=torch.cat(feedback) if feedback else None,
        forwards=sum(part.forwards for part in parts),
    )


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


def _tensors(record: Steps | TokenTrace | None) -> dict[str, Tensor]:
    """The fields of a record that are tensors."""
    assert record is not None
    every = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in every.items() if isinstance(value, Tensor)}


def _joined(records: Sequence[Steps | TokenTrace | None]) -> dict[str, Tensor]:
    """The tensors of several records of the same kind, one after the other; everything else is shared."""
    parts = [_tensors(record) for record in records]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
