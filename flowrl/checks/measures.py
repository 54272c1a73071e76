"""What self-checks measure of an iteration that has ended, beside its update: decoding and scoring a few samples once
more, the size of velocities, how much there is to train, and how saturated the reward is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowrl.checks.registry import DECODE, SATURATION, SCORE, SPREAD, TRAINABLE, VELOCITY
from flowrl.math.flow import interpolate
from flowrl.math.random import each, normal
from flowrl.media import as_floats
from flowrl.models.weights import REFERENCE
from flowrl.rounds import ScoredRollout
from flowrl.runtime.ranks import together
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import RewardError
from flowrl.session import Session
from flowrl.types import Draw, Episodes, FlowPolicy, Scores
from flowrl.update_checks import due, undisturbed

FEW = 4
"""Samples that are decoded, scored or asked for once more."""
TIMES = (0.9, 0.5)
"""Where velocities are measured."""
STREAM = 1009  # of noise, far from the sampler's and the estimators' streams of the same seeds
CHUNKS = 32
"""That a control policy decides on for one observation, to see how far they spread."""
STATE_KEY = "checks"
"""The key in `Session.memory` of the first velocities, for runs without a reference."""


def is_due(session: Session) -> bool:
    """Whether the iteration that ended is checked."""
    return due(session.config.monitor.checks, session.progress.iteration - 1)


def measure(session: Session, batch: ScoredRollout, timer: PhaseTimer) -> dict[str, float]:
    """Metrics of an iteration that ended, where it is checked. All processes call it."""
    if not is_due(session):
        return {}
    trained = {id(parameter) for parameter in session.policy.parameters() if parameter.requires_grad}
    held = session.optimizer.param_groups[0]["params"]
    found = {TRAINABLE: float(sum(p.numel() for p in held if id(p) in trained)), **saturation(batch.scores)}
    with timer("monitor"), undisturbed(session.policy), torch.no_grad():
        if session.progress.iteration == 1:
            found |= repeated(session, batch)
        if session.algorithm.family == "diffusion":
            found |= velocity(session, batch)
        if session.algorithm.family == "control" and session.algorithm.clips_in_units:
            found |= spread(session, batch)
    return found


def saturation(scores: Scores) -> dict[str, float]:
    """The larger of the shares of samples at the least and at the largest total."""
    total = scores.total[scores.own]
    if not len(total):
        return {}
    ends = torch.stack([total == total.min(), total == total.max()])
    return {SATURATION: float(ends.double().mean(dim=1).max())}


def repeated(session: Session, batch: ScoredRollout) -> dict[str, float]:
    """How far a second decoding and a second scoring of the first samples are from the first."""
    group = batch.scores.group
    first = int((group == group[0]).sum()) if session.rewards.grouped else FEW
    part, rows = batch.share.take(torch.arange(min(first, len(group))))
    decoded, scored = torch.zeros(0), torch.zeros(0, len(session.rewards.names), dtype=torch.float64)
    with together(session.ranks):
        if len(rows):
            numbers = batch.share.here[rows]
            decoded = _decoded_apart(session, batch, rows)
            scored = (_scored(session, batch, rows, group[numbers]) - batch.scores.rewards[numbers]).abs()
    found = {DECODE: float(part.gather(decoded).mean())}
    noise = _noise(part.gather(scored), batch.scores.rewards)
    return found | ({} if noise is None else {SCORE: noise})


def _decoded_apart(session: Session, batch: ScoredRollout, rows: Tensor) -> Tensor:
    """[n] float32: mean difference of each sample to its second decoding; of a text 1 where it differs."""
    again, before = session.policy.decode(batch.rollout.final[rows]), batch.samples.take(rows)
    if isinstance(again, Tensor):
        assert before.images is not None
        return (as_floats(again).cpu() - as_floats(before.images).cpu()).abs().flatten(1).mean(dim=1).float()
    assert before.completions is not None
    return torch.tensor([float(a != b) for a, b in zip(again, before.completions, strict=True)])


def _scored(session: Session, batch: ScoredRollout, rows: Tensor, group: Tensor) -> Tensor:
    """[n, R]: asked again; NaN where a reward now fails."""
    samples = batch.samples.take(rows)
    if samples.images is not None:
        samples = type(samples)(samples.prompts, as_floats(samples.images), samples.completions, samples.feedback)
    try:
        return session.rewards.raw(samples, group)
    except RewardError:
        return torch.full((len(rows), len(session.rewards.names)), torch.nan, dtype=torch.float64)


def _noise(apart: Tensor, rewards: Tensor) -> float | None:
    """Of the worst reward, the mean of ``apart`` [n, R] over its standard deviation in ``rewards`` [N, R], or over a
    thousandth of its mean where it hardly has one."""
    worst = []
    for change, values in zip(apart.T, rewards.T, strict=True):
        change, values = change[~change.isnan()], values[~values.isnan()]
        if len(change) and len(values):
            scale = max(float(values.std(correction=0)), 1e-3 * abs(float(values.mean())), 1e-6)
            worst.append(float(change.mean()) / scale)
    return max(worst, default=None)


def velocity(session: Session, batch: ScoredRollout) -> dict[str, float]:
    """The mean norm of the live velocities at noisy versions of the first samples over that of the reference, or, where
    a run keeps none, over what it was at the first check."""
    policy: Any = session.policy
    part, rows = batch.share.take(torch.arange(min(FEW, len(batch.scores.group))))
    count, held = len(rows), rows if len(rows) else torch.tensor([0])  # a split network is run by all alike
    has_reference = REFERENCE in policy.weights.names()
    with together(session.ranks):
        live = _norms(policy, session, batch, held)[:count]
        base = torch.zeros(0, len(TIMES), dtype=torch.float64)
        if has_reference:
            with policy.using(REFERENCE) as reference:
                base = _norms(reference, session, batch, held)[:count]
    now, then = float(part.gather(live).mean()), float(part.gather(base).mean()) if has_reference else None
    if then is None:
        then = session.memory.setdefault(STATE_KEY, {}).setdefault("velocity", now)
    return {VELOCITY: now / then} if then > 0 else {}


def _norms(policy: FlowPolicy, session: Session, batch: ScoredRollout, rows: Tensor) -> Tensor:
    """[n, times] float64: the norm of the velocities over that of what they predict, noise minus clean sample, which
    differs between samples and would hide a change where there is no reference to compare with."""
    rollout, count = batch.rollout, len(TIMES)
    clean = rollout.final[rows].float().cpu()
    noise = normal(rollout.seeds[rows], tuple(clean.shape[1:]), stream=STREAM)
    clean, noise = (value.repeat_interleave(count, dim=0) for value in (clean, noise))  # all in one forward
    t = policy.snap(torch.tensor(TIMES, dtype=torch.float64).repeat(len(rows)))
    x, condition = interpolate(clean, noise, t).to(policy.device), rollout.condition.take(rows.repeat_interleave(count))
    guidance = vars(session.algorithm.sampler).get("guidance")
    v = policy.velocity(x, t, condition, guidance=guidance).double().cpu()
    return (v.flatten(1).norm(dim=1) / (noise - clean).double().flatten(1).norm(dim=1)).view(len(rows), count)


def spread(session: Session, batch: ScoredRollout) -> dict[str, float]:
    """The standard deviation of the chunks that the live policy decides on for one observation, each from noise of its
    own: root mean square over their numbers and over an observation of each of the first samples."""
    part, rows = batch.share.take(torch.arange(min(FEW, len(batch.scores.group))))
    found = torch.zeros(0, dtype=torch.float64)
    with together(session.ranks):
        if len(rows):
            found = _variances(session, batch, rows)
    found = part.gather(found)
    found = found[~found.isnan()]
    return {SPREAD: float(found.mean().sqrt())} if len(found) else {}


def _variances(session: Session, batch: ScoredRollout, rows: Tensor) -> Tensor:
    """[n] float64: mean variance of a chunk's numbers, where an episode is half over; NaN without a decision."""
    policy: Any = session.policy
    decides, trace = getattr(session.algorithm.sampler, "sampler", None), batch.rollout.trace
    if decides is None or not isinstance(trace, Episodes):
        return torch.full((len(rows),), torch.nan, dtype=torch.float64)
    made = trace.alive[rows].sum(dim=1)
    seen = trace.observed[rows, made // 2].repeat_interleave(CHUNKS, dim=0)
    own = torch.cat([each(batch.rollout.seeds[rows], "spread", k)[:, None] for k in range(CHUNKS)], dim=1).flatten()
    condition: Any = batch.rollout.condition
    draw = Draw.of(own, torch.zeros_like(own), 0, 0)
    calls = policy.network_calls  # what a run counts is its own
    chunks = decides(policy, condition.take(rows.repeat_interleave(CHUNKS)).seeing(seen), draw).final
    policy.network_calls = calls
    variance = chunks.double().cpu().unflatten(0, (len(rows), CHUNKS)).var(dim=1).flatten(1).mean(dim=1)
    return torch.where(made > 0, variance, torch.nan)
