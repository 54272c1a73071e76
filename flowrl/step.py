"""One optimisation pass: scored samples in, updated weights and diagnostics out. Knows parts and protocols, no
method by name.

The loss of an optimiser batch is ``sum weight * (objective + regularizers)`` with weights fixed before the first
forward, so its gradient is the same for every micro-batch size and number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from flowrl.errors import UserError
from flowrl.math.random import derive, permutation
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.diagnostics import StepMetrics
from flowrl.types import Batch, IncompatibleError, Likelihood, Rollout, Rows, Scores, TokenTrace, iterate_blocks

CHECK_ROWS = 8
"""Network rows, about, that are measured twice to check the ratio when the old likelihood is otherwise not needed."""

UNSCALED = GradScaler("cpu", enabled=False)
"""Leaves loss and gradient as they are."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How the samples of an iteration are turned into updates."""

    updates: int = 1
    """Optimiser steps per epoch; the samples are split among them."""
    epochs: int = 1
    micro_batch: int = 64
    """Network rows per forward and backward."""
    max_grad_norm: float = 1.0
    seed: int = 0
    sum_over_ranks: Callable[[Tensor], Tensor] = field(default=lambda value: value)


@dataclass(frozen=True)
class _Matrix:
    """Everything known about the iteration's decisions before the first forward: the small space, [N, D]."""

    rows: Rows
    rollout: Rollout
    advantage: Tensor  # [N, D]
    mask: Tensor  # [N, D] bool
    loss_weight: Tensor
    old: Likelihood | None  # None: the live likelihood itself, because nothing has changed yet

    def batch(self, index: Tensor, decisions: slice, weight: Tensor, live: Likelihood) -> Batch:
        """The block of ``index`` rows, on the device of the live likelihood; ``weight`` is already cut to it."""
        device = live.logp.device
        old = replace(live, logp=live.logp.detach()) if self.old is None else _cut(self.old, index, decisions, device)
        advantage = self.advantage[index][:, decisions].to(device)
        rows = self.rows.block(index, decisions)
        return Batch(advantage, old, weight.to(device), self.rollout.group[index], rows)


def improve(
    policy: Any,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    rollout: Rollout,
    scores: Scores,
    advantage: Tensor,
    seeds: Tensor,
    settings: UpdateSettings,
    scaler: GradScaler = UNSCALED,
) -> dict[str, float]:
    """Update the live weights from a scored rollout. Returns the iteration's diagnostics.

    ``advantage`` [N] is the advantage of each sample, ``seeds`` [N] its stream of random numbers (for the probe).
    ``scaler`` multiplies the loss, whose gradient would fall below what float16 can hold, and skips a step whose scaled
    gradient is beyond it (arXiv:1710.03740, section 3.2).
    Raises `UserError` if a loss term has no gradient, or if loss or gradient is not finite (the weights are left as
    they were).
    """
    probed = _probe(policy, algorithm, rollout, scores, advantage, seeds, settings)
    step_metrics = StepMetrics()
    if probed[0].old is None:
        step_metrics.add_deviation(_deviation(policy, algorithm, probed[0], settings))
    steps = skipped = 0
    for epoch in range(settings.epochs):
        matrix = probed[epoch % len(probed)]
        for index in _split(matrix, algorithm, settings, epoch):
            _gradient(policy, algorithm, matrix, index, settings, step_metrics, scaler)
            loss = step_metrics.close_batch()
            if not math.isfinite(loss):
                optimizer.zero_grad(set_to_none=True)
                where = ", or use model.dtype bfloat16, whose range is float32's" if scaler.is_enabled() else ""
                raise UserError(
                    f"the loss is {loss}: lower optimizer.lr or the clip range{where}; no weight was changed"
                )
            norm = _apply(policy, optimizer, settings, scaler)
            if norm is None:
                skipped += 1
            else:
                step_metrics.add_gradient_norm(norm)
                steps += 1
    scaling = {"scaler/scale": scaler.get_scale(), "scaler/skipped_steps": float(skipped)}
    return step_metrics.metrics() | {"optimizer_steps": steps} | (scaling if scaler.is_enabled() else {})


def _probe(
    policy: Any,
    algorithm: Algorithm,
    rollout: Rollout,
    scores: Scores,
    advantage: Tensor,
    seeds: Tensor,
    settings: UpdateSettings,
) -> list[_Matrix]:
    """What is known before the first update: one matrix for all epochs, or one for each where the algorithm draws its
    probes anew."""
    keep = algorithm.selection(scores, advantage)
    if algorithm.mask_truncated_completions:
        keep = keep & _ended(rollout)
    epochs = settings.epochs if algorithm.redraw else 1
    found = []
    for epoch in range(epochs):
        drawn = seeds if epoch == 0 else torch.tensor([derive(int(seed), "epoch", epoch) for seed in seeds])
        found.append(_measure(policy, algorithm, rollout, advantage, keep, drawn, settings))
    return found


def _ended(rollout: Rollout) -> Tensor:
    """[N] bool: completions that said their end token."""
    trace = rollout.trace
    if not isinstance(trace, TokenTrace) or trace.ended is None:
        raise IncompatibleError(
            "mask_truncated_completions needs completions of a language model's sampler, which tells which ones ended"
        )
    return trace.ended


def _measure(
    policy: Any,
    algorithm: Algorithm,
    rollout: Rollout,
    advantage: Tensor,
    keep: Tensor,
    seeds: Tensor,
    settings: UpdateSettings,
) -> _Matrix:
    """Draw the probe, and measure the old likelihood unless the rollout tells or nothing changes before it is used."""
    rows = algorithm.estimator.probe(rollout, policy, seeds)
    old = algorithm.estimator.recorded_logp(rollout, rows)
    mask = keep[:, None].expand(rows.shape)
    if rows.counted is not None:
        mask = mask & rows.counted
    wide = advantage[:, None].expand(rows.shape)
    matrix = _Matrix(rows, rollout, wide, mask, algorithm.loss_weight(rows, rows.shape), old)
    changes = algorithm.objective.needs_old_logp and settings.updates * settings.epochs > 1
    if algorithm.token_advantage or (old is None and changes):
        everything = torch.arange(len(mask))
        matrix = replace(matrix, old=_measure_old(policy, algorithm, matrix, everything, settings))
    for advantage in algorithm.token_advantage:
        assert matrix.old is not None
        spread, known = advantage(matrix.advantage, rows, matrix.old, mask)
        matrix = replace(matrix, advantage=torch.where(mask, spread, torch.zeros_like(spread)), old=known)
    return matrix


def _measure_old(
    policy: Any, algorithm: Algorithm, matrix: _Matrix, index: Tensor, settings: UpdateSettings
) -> Likelihood:
    """The live policy's likelihood of ``index`` rows before any update, without gradient."""
    references = tuple(
        dict.fromkeys(advantage.reference for advantage in algorithm.token_advantage if advantage.reference)
    )
    with torch.no_grad():
        parts = list(_forwards(policy, algorithm, matrix, index, settings, references))
    return _assemble(parts, matrix.mask.shape)


def _split(matrix: _Matrix, algorithm: Algorithm, settings: UpdateSettings, epoch: int) -> Iterator[Tensor]:
    """Row indices of each optimiser batch. Row-coupled objectives keep groups whole."""
    group = matrix.rollout.group
    if settings.updates == 1:
        yield torch.arange(len(group))
        return
    if algorithm.objective.coupled:
        ids = group.unique()
        order = ids[permutation(settings.seed + epoch, len(ids))]
        chunks = [torch.isin(group, part).nonzero()[:, 0] for part in order.tensor_split(settings.updates)]
    else:
        chunks = list(permutation(settings.seed + epoch, len(group)).tensor_split(settings.updates))
    yield from (chunk for chunk in chunks if len(chunk))


def _gradient(
    policy: Any,
    algorithm: Algorithm,
    matrix: _Matrix,
    index: Tensor,
    settings: UpdateSettings,
    step_metrics: StepMetrics,
    scaler: GradScaler,
) -> None:
    """Accumulate the (scaled) gradient of one optimiser batch."""
    weight = algorithm.aggregation(matrix.mask[index], matrix.rows.unit) * matrix.loss_weight[index]
    full = torch.zeros(matrix.mask.shape, dtype=torch.float64)
    full[index] = weight
    active = index[_active(algorithm, matrix, full)[index]]
    if algorithm.objective.coupled and len(active):
        _coupled_gradient(policy, algorithm, matrix, active, full, settings, step_metrics, scaler)
    elif len(active):
        for block, decisions, live in _forwards(policy, algorithm, matrix, active, settings):
            batch = matrix.batch(block, decisions, full[block][:, decisions], live)
            scaler.scale(_loss(algorithm, live, batch, step_metrics)).backward()


def _active(algorithm: Algorithm, matrix: _Matrix, weight: Tensor) -> Tensor:
    """[N] bool: rows whose loss can have a gradient. Skipping the others is exact: the weights are fixed already."""
    active = (weight != 0).any(dim=1)
    penalised = any(term.weight > 0 for term in algorithm.regularizers)
    if algorithm.objective.skips_zero_advantage and not penalised:
        active &= (matrix.advantage != 0).any(dim=1)
    return active


def _forwards(
    policy: Any,
    algorithm: Algorithm,
    matrix: _Matrix,
    index: Tensor,
    settings: UpdateSettings,
    references: tuple[str, ...] | None = None,
) -> Iterator[tuple[Tensor, slice, Likelihood]]:
    """Likelihoods of ``index`` rows, block by block: ``(rows, decisions, likelihood)``."""
    held = algorithm.references if references is None else references
    for rows, decisions in iterate_blocks(len(index), matrix.mask.shape[1], matrix.rows.unit, settings.micro_batch):
        block = index[rows]
        condition = matrix.rollout.condition.take(block)
        yield block, decisions, algorithm.estimator(policy, matrix.rows.block(block, decisions), condition, held)


def _loss(algorithm: Algorithm, live: Likelihood, batch: Batch, step_metrics: StepMetrics) -> Tensor:
    """``sum weight * (objective + regularizers)`` of a block; also notes the diagnostics."""
    objective = algorithm.objective(live, batch)
    total = (batch.weight * objective).sum()
    _check_gradient("objective", objective)
    for term in algorithm.regularizers:
        if term.weight > 0:
            penalty = term(live, batch)
            _check_gradient(term.name, penalty)
            total = total + term.weight * (batch.weight * penalty).sum()
    step_metrics.add_block(algorithm, live, batch, total)
    return total


def _check_gradient(name: str, value: Tensor) -> None:
    if torch.is_grad_enabled() and not value.requires_grad:
        raise UserError(f"the loss term {name!r} has no gradient: its estimator measures it without the live policy")


def _coupled_gradient(
    policy: Any,
    algorithm: Algorithm,
    matrix: _Matrix,
    index: Tensor,
    weight: Tensor,
    settings: UpdateSettings,
    step_metrics: StepMetrics,
    scaler: GradScaler,
) -> None:
    """Exact gradient of a loss that couples rows or decisions, in the memory of one micro-batch.

    First the whole [N, D] likelihood without gradient; then the loss on that matrix, whose derivative with respect to
    every entry is kept; then each micro-batch again with gradient, seeded with its part of the derivative.
    """
    with torch.no_grad():
        parts = list(_forwards(policy, algorithm, matrix, index, settings))
    whole = _assemble(parts, matrix.mask.shape)
    leaves = [whole.logp[index], *(value[index] for value in whole.extra.values())]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    live = Likelihood(leaves[0], dict(zip(whole.extra, leaves[1:], strict=True)))
    loss = _loss(algorithm, live, matrix.batch(index, slice(None), weight[index], live), step_metrics)
    slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    where = torch.zeros(len(matrix.mask), dtype=torch.long)
    where[index] = torch.arange(len(index))
    for block, decisions, again in _forwards(policy, algorithm, matrix, index, settings):
        outputs = [again.logp, *again.extra.values()]
        pairs = [
            (out, scaler.scale(slope[where[block]][:, decisions]).to(out))  # only the network computes in float16
            for out, slope in zip(outputs, slopes, strict=True)
            if slope is not None and out.requires_grad
        ]
        torch.autograd.backward([out for out, _ in pairs], [slope for _, slope in pairs])


def _deviation(policy: Any, algorithm: Algorithm, matrix: _Matrix, settings: UpdateSettings) -> float:
    """``max |ratio - 1|`` of a few samples measured twice, together and one by one: an estimator whose answer
    depends on the
    micro-batch, or draws anew, shows here. Used where the rollout holds no old likelihood to compare with."""
    network_rows = matrix.mask.shape[1] // matrix.rows.unit
    some = matrix.mask.any(dim=1).nonzero()[: max(1, CHECK_ROWS // network_rows), 0]
    if not len(some):
        return 0.0
    apart = replace(settings, micro_batch=1)
    first, second = (_measure_old(policy, algorithm, matrix, some, how).logp[some] for how in (settings, apart))
    return float(torch.where(matrix.mask[some], first - second, 0.0).expm1().abs().max())


def _apply(policy: Any, optimizer: torch.optim.Optimizer, settings: UpdateSettings, scaler: GradScaler) -> float | None:
    """One optimiser step on the summed gradient; returns the policy's norm before clipping, or None if it was skipped
    because the scaled gradient overflowed. A critic, the optimiser's second group, is clipped by itself."""
    parameters = [p for p in policy.parameters() if p.grad is not None]
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad = settings.sum_over_ranks(parameter.grad)
    if parameters:
        scaler.unscale_(optimizer)
    norm, *others = [_clip(group["params"], settings.max_grad_norm) for group in optimizer.param_groups]
    finite = all(map(math.isfinite, (norm, *others)))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not finite and (not scaler.is_enabled() or scaler.get_scale() <= 1):
        raise UserError("the gradient is not finite: lower optimizer.lr, or use dtype float32; no weight was changed")
    if parameters:
        scaler.update()
    return norm if finite else None


def _clip(parameters: list[torch.nn.Parameter], most: float) -> float:
    """Scale the gradients of a group down to a norm of at most ``most``; returns their norm before."""
    found = [p for p in parameters if p.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(found, most)) if found else 0.0


def _assemble(parts: list[tuple[Tensor, slice, Likelihood]], shape: torch.Size) -> Likelihood:
    """Blocks put back into [N, D] matrices on the host; entries that no block covers are 0."""
    names = list(parts[0][2].extra) if parts else []
    logp, extra = torch.zeros(shape, dtype=torch.float64), {n: torch.zeros(shape, dtype=torch.float64) for n in names}
    for block, decisions, live in parts:
        columns = torch.arange(shape[1])[decisions]
        logp[block[:, None], columns] = live.logp.detach().double().cpu()
        for name in names:
            extra[name][block[:, None], columns] = live.extra[name].detach().double().cpu()
    return Likelihood(logp, extra)


def _cut(likelihood: Likelihood, index: Tensor, decisions: slice, device: torch.device) -> Likelihood:
    extra = {name: value[index][:, decisions].to(device) for name, value in likelihood.extra.items()}
    return Likelihood(likelihood.logp[index][:, decisions].to(device), extra)
