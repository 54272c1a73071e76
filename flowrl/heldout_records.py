"""Evaluation on held-out records: what the objective measures of samples that nobody made."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.coupling import Measure
from flowrl.runtime.ranks import together
from flowrl.session import Session
from flowrl.step import spread
from flowrl.types import Likelihood, Rollout, Scores, Share, Table

ACCURACY = "preference/accuracy"


def measure_records(session: Session, weights: str, rollout: Rollout, scores: Scores, spare: bool) -> dict[str, float]:
    """``eval/loss`` and ``eval/<measure>`` of a weight set on records, of all processes; ``scores`` are those of all
    samples, ``rollout`` is of this process and a ``spare`` one of no consequence. Nothing where no sample takes
    part."""
    algorithm, settings = session.algorithm, session.update_settings()
    share = Share.following(session.ranks, len(rollout.group), spare)
    feedback = None if rollout.feedback is None else share.gather(rollout.feedback)
    source, group = share.gather(rollout.source), share.gather(rollout.group)
    scores = replace(scores, source=source, feedback=feedback)
    advantage = algorithm.advantage(scores, deepcopy(session.memory))
    with session.policy.using(weights) as asked:
        with together(session.ranks):
            held = algorithm.estimator.probe(rollout, asked, rollout.seeds)
        rows = held.gathered(share)
        mask = algorithm.selection(scores, advantage)[:, None].expand(rows.shape)
        mask = mask if rows.counted is None else mask & rows.counted
        even = torch.ones(rows.shape, dtype=torch.float64)
        own = None if share.whole else held
        table = Table(rows, group, source, feedback, spread(advantage, rows), mask, even, None, own)
        index = mask.any(dim=1).nonzero()[:, 0]
        portion = (settings.micro_batch, settings.micro_tokens)
        split = session.ranks.size > 1 and bool(getattr(asked, "is_split", False))
        measure = Measure(asked, algorithm.estimator, rollout.condition, share, *portion, level=split)
        live = measure.whole(table, index, algorithm.references)
    return _described(session, table, index, live) if len(index) else {}


@torch.no_grad()
def _described(session: Session, table: Table, index: Tensor, live: Likelihood) -> dict[str, float]:
    algorithm = session.algorithm
    weight = algorithm.aggregation(table.mask[index], table.rows.unit, table.source[index])
    some = Likelihood(live.logp[index], {name: value[index] for name, value in live.extra.items()})
    batch = table.batch(index, slice(None), weight * table.loss_weight[index], some)
    found = {"eval/loss": float((batch.weight * algorithm.objective(some, batch)).sum())}
    for name, values in algorithm.objective.measures(some, batch).items():
        found[f"eval/{name}"] = float(values.nanmean())
    return found
