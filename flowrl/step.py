"""One optimisation pass: scored samples in, updated weights and diagnostics out. Knows no method by name.

The loss of an optimiser batch is ``sum weight * (loss masks * objective + regularizers)`` with weights fixed before the
first forward, so its gradient is the same, but for rounding, for every micro-batch size and number of processes. Each
process measures the samples that it holds; numbers [N, D] are known to all, and the gradient is summed over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from flowrl.coupling import Gradients, Measure, add_combined, clip, coupled_gradient, gathered, summed, take_gradients
from flowrl.errors import UserError
from flowrl.math.random import derive, permutation
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.combinations import OfTerms
from flowrl.parts.decision_record import DecisionRecord
from flowrl.parts.diagnostics import StepMetrics
from flowrl.parts.token_advantages import spread, zero_outside
from flowrl.runtime.ranks import together
from flowrl.types import (
    Batch,
    IncompatibleError,
    Likelihood,
    Policy,
    Ranks,
    Rollout,
    Rows,
    Scores,
    Share,
    Table,
    TokenTrace,
)
from flowrl.update_checks import UpdateChecks, few_samples

UNSCALED = GradScaler("cpu", enabled=False)
"""Leaves loss and gradient as they are."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How the samples of an iteration are turned into updates."""

    updates: int = 1
    """Optimiser steps per epoch; the samples are split among them."""
    epochs: int = 1
    split: Literal["random", "even"] = "random"
    """How: at random, or evenly from every group (of a loss that couples rows: from neighbouring groups), so that every
    process, which holds whole groups, has about as many samples of each batch. Neither depends on the processes."""
    micro_batch: int = 64
    """Network rows per forward and backward."""
    micro_tokens: int | None = None
    """Of language models: tokens per forward and backward instead, padding included."""
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class _Update:
    """What stays the same through the updates of an iteration."""

    algorithm: Algorithm
    measure: Measure
    settings: UpdateSettings
    metrics: StepMetrics
    scaler: GradScaler
    checks: UpdateChecks
    record: DecisionRecord

    @property
    def share(self) -> Share:
        """Which samples are here."""
        return self.measure.share

    @property
    def ranks(self) -> Ranks:
        """Who has the others."""
        return self.share.ranks


def improve(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    rollout: Rollout,
    scores: Scores,
    advantage: Tensor,
    settings: UpdateSettings,
    scaler: GradScaler = UNSCALED,
    share: Share | None = None,
    checks: UpdateChecks | None = None,
    record: DecisionRecord | None = None,
) -> dict[str, float]:
    """Update the live weights from a scored rollout. Returns the iteration's diagnostics.

    ``advantage`` is what the algorithm's advantage answered: [N] per sample, or per event or channel as well.
    ``share`` says which of the N samples of ``scores`` and ``advantage`` those of ``rollout`` are; all of them by
    default. With several processes each calls this with its own, and has the same weights and diagnostics afterwards.
    ``scaler`` multiplies the loss, whose gradient would fall below what float16 can hold, and skips a step whose scaled
    gradient is beyond it (arXiv:1710.03740, section 3.2). ``checks`` and ``record`` look at the update on its way.
    Raises `UserError` if a loss term or all weights have no gradient, or if loss or gradient is not finite (the weights
    are left as they were).
    """
    share = Share.alone(len(rollout.group)) if share is None else share
    split = share.ranks.size > 1 and bool(getattr(policy, "is_split", False))
    portion = (settings.micro_batch, settings.micro_tokens)
    measure = Measure(policy, algorithm.estimator, rollout.condition, share, *portion, level=split)
    parts = (StepMetrics(share.ranks), scaler, checks or UpdateChecks(), record or DecisionRecord())
    update = _Update(algorithm, measure, settings, *parts)
    tables = _tables(update, rollout, scores, advantage)
    update.record.begin(tables[0].advantage)
    if tables[0].old is None:
        update.metrics.add_deviation(_deviation(update, tables[0]))
    if update.checks.wants_drift(algorithm):
        update.checks.see_drift(policy, tables[0], partial(_alone, update, algorithm, terms="objective"))
    steps = skipped = 0
    for epoch in range(settings.epochs):
        table = tables[epoch % len(tables)]
        for index in _split(table, algorithm, settings, epoch):
            norm = _apply(update, optimizer, _accumulate(update, table, index))
            if norm is None:
                skipped += 1
            else:
                update.metrics.add_gradient_norm(norm)
                steps += 1
                for name, decay in algorithm.each_step.items():
                    policy.update_ema(name, decay)
    scaling = {"scaler/scale": scaler.get_scale(), "scaler/skipped_steps": float(skipped)}
    metrics = update.metrics.metrics() | update.checks.metrics()
    return metrics | {"optimizer_steps": steps} | (scaling if scaler.is_enabled() else {})


def _tables(update: _Update, rollout: Rollout, scores: Scores, advantage: Tensor) -> list[Table]:
    """What is known before the first update: one table for all epochs, or one for each where the algorithm draws its
    probes anew."""
    algorithm = update.algorithm
    keep = algorithm.selection(scores, advantage)
    if algorithm.mask_truncated_completions:
        keep = keep & update.share.gather(_ended(rollout))
    found = []
    for epoch in range(update.settings.epochs if algorithm.redraw else 1):
        seeds = rollout.seeds
        if epoch:
            seeds = torch.tensor([derive(int(seed), "epoch", epoch) for seed in seeds])
        with together(update.ranks):
            held = algorithm.estimator.probe(rollout, update.measure.policy, seeds)
        rows = held.gathered(update.share)
        wide = spread(advantage, rows, channels=algorithm.combination is not None)
        found.append(replace(_table(update, rollout, rows, held, wide, keep), penalty_weight=scores.penalty_weight))
    return found


def _ended(rollout: Rollout) -> Tensor:
    """[N] bool: completions that said their end token."""
    trace = rollout.trace
    if not isinstance(trace, TokenTrace) or trace.ended is None:
        raise IncompatibleError(
            "mask_truncated_completions needs completions of a language model's sampler, which tells which ones ended"
        )
    return trace.ended


def _table(update: _Update, rollout: Rollout, rows: Rows, held: Rows, advantage: Tensor, keep: Tensor) -> Table:
    """The table of a probe, ``rows`` of all processes and ``held`` here. The old likelihood is measured unless the
    rollout tells it or nothing changes before it is used."""
    algorithm, settings, share = update.algorithm, update.settings, update.share
    mask = keep[:, None].expand(rows.shape)
    if rows.counted is not None:
        mask = mask & rows.counted
    old = algorithm.estimator.recorded_logp(rollout, held)
    old = old if old is None else gathered(old, share)
    even = torch.ones(rows.shape, dtype=torch.float64)
    feedback = None if rollout.feedback is None else share.gather(rollout.feedback)
    of_all = (share.gather(rollout.group), share.gather(rollout.source), feedback)
    table = Table(rows, *of_all, advantage, mask, even, old, None if share.whole else held)
    changes = algorithm.needs_old_logp and settings.updates * settings.epochs > 1
    if algorithm.token_advantage or (old is None and changes):
        table = replace(table, old=_old(update, table, torch.arange(len(mask))))
    for part in algorithm.token_advantage:
        table = part(table)
        table = replace(table, advantage=zero_outside(mask, table.advantage))
    return replace(table, loss_weight=algorithm.loss_weight(table))


def _old(update: _Update, table: Table, index: Tensor, alone: bool = False) -> Likelihood:
    """The live policy's likelihood of ``index`` rows before any update, without gradient; with ``alone`` measured one
    by one."""
    references = tuple(dict.fromkeys(part.reference for part in update.algorithm.token_advantage if part.reference))
    measure = replace(update.measure, micro_batch=1, micro_tokens=None) if alone else update.measure
    return measure.whole(table, index, references)


def _split(table: Table, algorithm: Algorithm, settings: UpdateSettings, epoch: int) -> Iterator[Tensor]:
    """Row indices of each optimiser batch. Losses that couple rows keep groups whole."""
    group, updates = table.group, settings.updates
    if updates == 1:
        yield torch.arange(len(group))
        return
    ids, which = group.unique(return_inverse=True)
    count = len(ids) if algorithm.coupled else len(group)
    order = permutation(settings.seed + epoch, count)
    if settings.split == "even":
        strata = torch.arange(count) // updates if algorithm.coupled else which
        order = order[strata[order].argsort(stable=True)]
        chunks = [order[start::updates] for start in range(updates)]
    else:
        chunks = list(order.tensor_split(updates))
    if algorithm.coupled:
        chunks = [torch.isin(group, ids[part]).nonzero()[:, 0] for part in chunks]
    yield from (chunk for chunk in chunks if len(chunk))


def _terms(update: _Update, table: Table, index: Tensor, weight: Tensor) -> None:
    """Let the checks see the gradient that each term of the loss has alone, of a few samples that have an advantage."""
    channels = update.algorithm.combination is not None
    one = replace(table, advantage=table.advantage.mean(dim=-1)) if channels else table
    some = index[((weight != 0) & (one.advantage != 0)).any(dim=1)[index]][: few_samples(table)]
    alone = partial(_alone, update, table=one, some=some, weight=weight)
    update.checks.see_terms(update.measure.policy, update.algorithm, float(weight[some].sum()), alone)


def _alone(
    update: _Update, algorithm: Algorithm, table: Table, some: Tensor, weight: Tensor, terms: Terms
) -> tuple[float, Gradients]:
    """Loss and gradient of terms of a loss, of all processes, of some samples; nothing of it is noted or kept."""
    noted, every = StepMetrics(update.ranks), update.measure.policy.parameters()
    _gradient(replace(update, algorithm=algorithm, metrics=noted), table, some, weight, terms)
    return noted.close_batch()[0], summed(take_gradients(every), every, update.ranks)


Terms = Literal["all", "objective", "regularizers"]
"""Which terms of the loss."""


def _accumulate(update: _Update, table: Table, index: Tensor) -> bool:
    """Accumulate the (scaled) gradient of one optimiser batch, as far as its samples are here; whether any sample, here
    or elsewhere, has one."""
    algorithm = update.algorithm
    weight = torch.zeros(table.mask.shape, dtype=torch.float64)
    shares = algorithm.aggregation(table.mask[index], table.rows.unit, table.source[index])
    weight[index] = shares * table.loss_weight[index]
    update.checks.see_batch(table, index, weight)
    if update.checks.wants_terms(algorithm):
        _terms(update, table, index, weight)
    if algorithm.combination is None:
        return _gradient(update, table, index, weight, "all")
    parameters, channels, trained = update.measure.policy.parameters(), [], False
    for channel in range(table.advantage.shape[2]):
        one = replace(table, advantage=table.advantage[..., channel])
        trained |= _gradient(update, one, index, weight, "objective")
        channels.append(take_gradients(parameters))
    if algorithm.penalised:
        one = replace(table, advantage=table.advantage[..., 0])
        trained |= _gradient(update, one, index, weight, "regularizers")
        if isinstance(algorithm.combination, OfTerms):
            channels.append(take_gradients(parameters))
    scale, note = update.scaler.get_scale(), update.metrics.add_combination
    add_combined(channels, parameters, algorithm.combination, scale, update.ranks, note)
    return trained


def _gradient(update: _Update, table: Table, index: Tensor, weight: Tensor, terms: Terms) -> bool:
    """Accumulate the gradient of some terms of the loss; ``table.advantage`` is [N, D] here. Whether there are
    samples that have one."""
    algorithm, measure, scale = update.algorithm, update.measure, update.scaler.scale
    # A coupled loss is that of all samples, on every process alike: one of them notes it.
    noted = update.metrics if not algorithm.coupled or update.ranks.rank == 0 else None

    def loss(live: Likelihood, batch: Batch) -> Tensor:
        return _loss(algorithm, live, batch, noted, terms)

    active = index[_active(algorithm, table, weight, terms)[index]]
    if algorithm.coupled and len(active):
        coupled_gradient(measure, table, active, weight, algorithm.references, loss, scale)
    elif len(active):
        with together(update.ranks):
            for block in measure.blocks(table, active, algorithm.references):
                if block.idle:
                    block.pass_nothing()
                    continue
                part = weight[block.numbers][:, block.decisions]
                batch = table.batch(block.numbers, block.decisions, part, block.live, block.probe)
                scale(loss(block.live, batch)).backward()
                update.record.note(block.numbers, block.decisions, block.live)
    return bool(len(active))


def _active(algorithm: Algorithm, table: Table, weight: Tensor, terms: Terms) -> Tensor:
    """[N] bool: rows whose loss can have a gradient. Skipping the others is exact: the weights are fixed already."""
    active = (weight != 0).any(dim=1)
    penalised = algorithm.penalised and terms != "objective"
    if algorithm.skips_zero_advantage and not penalised:
        active &= (table.advantage != 0).any(dim=1)
    return active


def _loss(algorithm: Algorithm, live: Likelihood, batch: Batch, metrics: StepMetrics | None, terms: Terms) -> Tensor:
    """``sum weight * (loss masks * objective + regularizers)`` of a block; also notes its diagnostics."""
    total = torch.zeros((), dtype=torch.float64, device=live.logp.device)
    if terms != "regularizers":
        objective = algorithm.objective(live, batch)
        _check_gradient("objective", objective)
        total = (batch.weight * _masked(algorithm, live, batch, objective)).sum()
    for term in algorithm.regularizers:
        if term.weight > 0 and terms != "objective":
            penalty = term(live, batch)
            _check_gradient(term.name, penalty)
            total = total + term.weight * (batch.weight * penalty).sum()
    if metrics is not None:
        metrics.add_block(algorithm, live, batch, total)
    return total


def _masked(algorithm: Algorithm, live: Likelihood, batch: Batch, objective: Tensor) -> Tensor:
    for part in algorithm.loss_masks:
        with torch.no_grad():
            factor = part(live, batch)
        objective = objective * factor
    return objective


def _check_gradient(name: str, value: Tensor) -> None:
    if torch.is_grad_enabled() and not value.requires_grad:
        raise UserError(f"the loss term {name!r} has no gradient: its estimator measures it without the live policy")


def _check_finite(loss: float, optimizer: torch.optim.Optimizer, scaler: GradScaler) -> None:
    if math.isfinite(loss):
        return
    optimizer.zero_grad(set_to_none=True)
    where = ", or use model.dtype bfloat16, whose range is float32's" if scaler.is_enabled() else ""
    raise UserError(f"the loss is {loss}: lower optimizer.lr or the clip range{where}; no weight was changed")


def _deviation(update: _Update, table: Table) -> float:
    """``max |ratio - 1|`` of a few samples measured twice, together and one by one: an estimator whose answer depends
    on the micro-batch, or draws anew, shows here. Used where the rollout holds no old likelihood to compare with."""
    some = table.mask.any(dim=1).nonzero()[: few_samples(table), 0]
    if not len(some):
        return 0.0
    first, second = (_old(update, table, some, alone).logp[some] for alone in (False, True))
    return float(torch.where(table.mask[some], first - second, 0.0).expm1().abs().max())


def _apply(update: _Update, optimizer: torch.optim.Optimizer, trained: bool) -> float | None:
    """Close the optimiser batch and make its step on the gradient summed over processes; returns the policy's norm
    before clipping, or None if it was skipped because the scaled gradient overflowed. A critic, the optimiser's second
    group, is clipped by itself. Loss and norms are read off the device together: the host waits once. ``trained``:
    whether there were samples with a gradient, so that weights without one are an error."""
    settings, scaler, every = update.settings, update.scaler, update.measure.policy.parameters()
    for parameter, gradient in zip(every, summed([p.grad for p in every], every, update.ranks), strict=True):
        parameter.grad = gradient
    found = any(parameter.grad is not None for parameter in every)
    if trained and all(parameter.grad is None for parameter in optimizer.param_groups[0]["params"]):
        raise UserError(
            "no trained weight has a gradient: what the optimiser holds is not what the network computes with; were "
            "parameters replaced or wrapped after the optimiser was made?"
        )
    if found:
        update.checks.see_gradients(optimizer)
        scaler.unscale_(optimizer)
    clipped = [clip(group["params"], settings.max_grad_norm) for group in optimizer.param_groups]
    loss, norms = update.metrics.close_batch(clipped)
    _check_finite(loss, optimizer, scaler)
    finite = all(map(math.isfinite, norms))
    if finite:
        with update.checks.see_step(optimizer, update.ranks, norms[0]):
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not finite and (not scaler.is_enabled() or scaler.get_scale() <= 1):
        raise UserError("the gradient is not finite: lower optimizer.lr, or use dtype float32; no weight was changed")
    if found:
        scaler.update()
    return norms[0] if finite else None
