"""Sampling in pieces: a sampler's result does not depend on the batch, so large draws are cut and put together
again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.types import Condition, Draw, Rollout, Sampler


def sample(sampler: Sampler, policy: Any, condition: Condition, draw: Draw, rows: int) -> Rollout:
    """The rollout of ``draw``, made ``rows`` samples at a time."""
    if rows < 1:
        raise ValueError(f"a sampling batch needs at least one row, not {rows}")
    parts = []
    for index in torch.arange(len(draw)).split(rows):
        parts.append(sampler(policy, condition.take(index), draw.take(index)))
    return parts[0] if len(parts) == 1 else joined(parts, condition, draw.group)


def joined(parts: Sequence[Rollout], condition: Condition, group: Tensor) -> Rollout:
    """One rollout from several of the same sampler, with the condition and the groups [N] of all its samples."""
    first = parts[0]
    return replace(
        first,
        condition=condition,
        final=torch.cat([part.final for part in parts]),
        group=group,
        trace=None if first.trace is None else _joined([part.trace for part in parts]),
        forwards=sum(part.forwards for part in parts),
    )


def take(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some samples of a rollout, copied: the others are not kept alive. ``forwards`` stays that of all."""
    trace = rollout.trace
    if trace is not None:
        cut = {f.name: getattr(trace, f.name) for f in fields(trace)}
        trace = replace(trace, **{name: value[rows] for name, value in cut.items() if isinstance(value, Tensor)})
    return replace(
        rollout,
        condition=rollout.condition.take(rows),
        final=rollout.final[rows.to(rollout.final.device)],
        group=rollout.group[rows],
        trace=trace,
    )


def _joined(traces: list[Any]) -> Any:
    """One trace from several of the same kind: tensors one after the other, everything else shared."""
    changes = {
        f.name: torch.cat([getattr(trace, f.name) for trace in traces])
        for f in fields(traces[0])
        if isinstance(getattr(traces[0], f.name), Tensor)
    }
    return replace(traces[0], **changes)
