"""Likelihood of recorded steps that samples share: each is measured once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.transitions import TransitionRows, Transitions
from flowrl.types import Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout, Share


@dataclass(frozen=True)
class SharedRows(TransitionRows):
    """Steps of which the first sample that has each of them counts."""

    first: Tensor | None = None  # [N, D] bool

    @property
    def counted(self) -> Tensor | None:
        return self.first

    def gathered(self, share: Share) -> SharedRows:
        """A step that several processes have counts where it is first among all."""
        known: Any = super().gathered(share)
        return known if share.whole else replace(known, first=_first_of(known))


@dataclass(frozen=True, kw_only=True)
class SharedTransitions(Transitions):
    """`Transitions` of a tree (`TreeSampler`), where a step counts, and is computed, once for all samples that share
    it: 202 of 304 steps of 16 leaves that fork at 0, 3, 6 and 9 of 20. With ``aggregation: decision_mean`` every edge
    weighs the same, as with ``loss_weight: once_per_node`` and all copies. Copies should have the same advantage, as
    `Tree` gives them."""

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> SharedRows:
        rows = super().probe(rollout, policy, seeds)
        if rows.shared is None:
            raise IncompatibleError("shared transitions are those of a tree: give the algorithm a TreeSampler")
        held = {f.name: getattr(rows, f.name) for f in fields(TransitionRows)}
        held["shared"] = rows.shared + (rollout.group[:, None] << 32)  # of all groups, not only its own
        made = SharedRows(**held)
        return replace(made, first=_first_of(made))

    def __call__(
        self, policy: FlowPolicy, rows: TransitionRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        assert isinstance(rows, SharedRows) and rows.first is not None
        row, column = rows.first.nonzero(as_tuple=True)
        if not len(row):  # a block of copies: one stands for them, and counts nothing
            row = column = torch.zeros(1, dtype=torch.int64)
        names = (f.name for f in fields(TransitionRows))
        cut = {name: value[row, column][:, None] for name in names if isinstance(value := getattr(rows, name), Tensor)}
        made = super().__call__(policy, TransitionRows(steps=rows.steps, **cut), condition.take(row), references)
        there = tuple(put(index, made.logp.device) for index in (row, column))
        known = put(self.recorded(rows), made.logp.device)

        def spread(values: Tensor, others: Tensor) -> Tensor:
            return others.to(values.dtype).index_put(there, values[:, 0])

        extra = {name: spread(value, torch.zeros_like(known)) for name, value in made.extra.items()}
        return Likelihood(spread(made.logp, known), extra)


def _first_of(rows: TransitionRows) -> Tensor:
    """[N, D] bool: the first row that has each node of each event."""
    assert rows.shared is not None
    keys = torch.stack([rows.event, rows.shared], dim=2).reshape(-1, 2)
    unique, which = keys.unique(dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(keys)).scatter_reduce(0, which, torch.arange(len(keys)), "amin")
    return torch.zeros(len(keys), dtype=torch.bool).index_fill(0, first, True).view(rows.shared.shape)
