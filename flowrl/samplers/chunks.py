"""Sampling in pieces: a sampler's result does not depend on the batch, so large draws are cut and put together
again."""

from __future__ import annotations

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
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    trace = None if first.trace is None else _joined([part.trace for part in parts])
    return replace(
        first,
        condition=condition,
        final=torch.cat([part.final for part in parts]),
        group=draw.group,
        trace=trace,
        forwards=sum(part.forwards for part in parts),
    )


def _joined(traces: list[Any]) -> Any:
    """One trace from several of the same kind: tensors one after the other, everything else shared."""
    changes = {
        f.name: torch.cat([getattr(trace, f.name) for trace in traces])
        for f in fields(traces[0])
        if isinstance(getattr(traces[0], f.name), Tensor)
    }
    return replace(traces[0], **changes)
