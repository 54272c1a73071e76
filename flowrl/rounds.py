"""The samples of an iteration: one round of sampling and scoring, or several until enough groups take part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowrl.math.random import derive, seeds
from flowrl.parts.diagnostics import describe_completions
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.chunks import joined as joined_rollouts
from flowrl.samplers.chunks import take
from flowrl.score import Rewards, Scoring, joined
from flowrl.session import Session
from flowrl.types import Draw, Prompt, Rollout, Samples, Scores

GROUPS = "sampling/groups"


@dataclass(frozen=True)
class ScoredRollout:
    """What an iteration learns from, and what was drawn for it."""

    rollout: Rollout
    samples: Samples
    scores: Scores
    drawn: Scores
    """Of all samples of all rounds; ``scores`` where there is one round."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Round:
    """Samples, and the raw answers of all rewards."""

    rollout: Rollout
    samples: Samples
    rewards: Tensor  # [N, R]

    def take(self, rows: Tensor) -> _Round:
        """The samples with these indices [n]."""
        return _Round(take(self.rollout, rows), self.samples.take(rows), self.rewards[rows])


@dataclass
class _AllDrawn:
    """What is remembered of every sample drawn, whether it stays or not: prompts and numbers, no media."""

    prompts: list[Prompt] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)
    feedback: list[Tensor] = field(default_factory=list)
    reports: list[dict[str, float]] = field(default_factory=list)

    def add(self, batch: _Round, scoring: Scoring, rewards: Rewards) -> None:
        """A round, with what its scoring and its completions were like."""
        self.prompts += batch.samples.prompts
        self.rewards.append(batch.rewards)
        self.groups.append(batch.rollout.group)
        self.sources.append(batch.rollout.source)
        if batch.rollout.feedback is not None:
            self.feedback.append(batch.rollout.feedback)
        self.reports.append(scoring.metrics(rewards.names) | describe_completions(batch.rollout))

    def conclude(self, rewards: Rewards, scoring: Scoring) -> Scores:
        """Scores of all samples so far: a round without any is an error only if all rounds before it had none."""
        scores = rewards.conclude(torch.cat(self.rewards), self.prompts, torch.cat(self.groups), scoring.stats)
        feedback = torch.cat(self.feedback) if self.feedback else None
        return replace(scores, source=torch.cat(self.sources), feedback=feedback)

    def metrics(self) -> dict[str, float]:
        """Means over the rounds, which are of one size; times and failures add up."""
        keys = dict.fromkeys(key for report in self.reports for key in report)
        sums = {key: sum(report.get(key, 0.0) for report in self.reports) for key in keys}
        return {k: v / len(self.reports) if k.startswith("completion/") else v for k, v in sums.items()}


def sample_and_score(session: Session, timer: PhaseTimer) -> ScoredRollout:
    """Sample and score an iteration, in as many rounds as the algorithm's selection allows and needs."""
    if session.present_algorithm.selection.rounds > 1:
        return _replace_groups(session, timer)
    drawn = _AllDrawn()
    batch, scoring = _sample_round(session, 0, timer)
    drawn.add(batch, scoring, session.rewards)
    scores = drawn.conclude(session.rewards, scoring)
    return ScoredRollout(batch.rollout, batch.samples, scores, scores, drawn.metrics())


def _replace_groups(session: Session, timer: PhaseTimer) -> ScoredRollout:
    """Sample until enough groups take part, or no further round is allowed.

    At most ``data.prompts`` groups that take part are kept, in the order in which they were drawn, beside the samples
    of the round in work. Scoring overlaps with sampling within a round; between rounds it is waited for. If no group
    takes part at all, the samples of the last round are returned, of which the selection leaves nothing.
    """
    selection, wanted = session.present_algorithm.selection, session.config.data.prompts
    enough = math.ceil(selection.share * wanted)
    drawn, kept, missing = _AllDrawn(), None, wanted
    while True:
        batch, scoring = _sample_round(session, len(drawn.groups), timer)
        drawn.add(batch, scoring, session.rewards)
        scores = drawn.conclude(session.rewards, scoring)
        fresh = _groups_that_take_part(session, scores, batch)[:missing]  # what goes beyond is surplus
        missing -= len(fresh)
        if len(fresh) == wanted and len(drawn.groups) == 1:
            kept = batch  # as it is, without a copy
        elif len(fresh):
            kept = _joined(session, kept, batch.take(torch.isin(batch.rollout.group, fresh).nonzero()[:, 0]), timer)
        if wanted - missing >= enough or len(drawn.groups) == selection.rounds:
            break
        del batch, scoring  # before the next round takes as much memory again
    chosen = kept or batch
    rollout = chosen.rollout
    learned = session.rewards.conclude(chosen.rewards, chosen.samples.prompts, rollout.group, scoring.stats)
    learned = replace(learned, source=rollout.source, feedback=rollout.feedback)
    counts = {
        "sampling/rounds": float(len(drawn.groups)),
        "sampling/samples": float(len(drawn.prompts)),
        GROUPS: float(wanted - missing),
    }
    return ScoredRollout(rollout, chosen.samples, learned, scores, drawn.metrics() | counts)


def _groups_that_take_part(session: Session, scores: Scores, batch: _Round) -> Tensor:
    """Groups of the latest round, in order, by the ``scores`` of all rounds."""
    algorithm = session.present_algorithm
    # A copy, because the state of the advantage should learn from what stays alone.
    advantage = algorithm.advantage(scores, deepcopy(session.memory))
    return batch.rollout.group[algorithm.selection(scores, advantage)[-len(batch.rewards) :]].unique()


def missing_groups(session: Session, metrics: Mapping[str, float]) -> list[str]:
    """What to say of an iteration that learned from fewer groups than it should."""
    share = session.algorithm.selection.share
    wanted = math.ceil(share * session.config.data.prompts)
    found = metrics.get(GROUPS, float("inf"))
    if found >= wanted:
        return []
    return [
        f"iteration {session.progress.iteration} learned from {found:.0f} groups instead of {wanted}: the others of "
        f"{metrics['sampling/rounds']:.0f} rounds ({metrics['sampling/samples']:.0f} samples) were left out; prompts "
        "of another difficulty or a larger data.group give more"
    ]


def _sample_round(session: Session, number: int, timer: PhaseTimer) -> tuple[_Round, Scoring]:
    """Sample and score ``data.prompts`` groups. Prompts and seeds follow from the config, iteration and round."""
    config, algorithm, iteration = session.config, session.present_algorithm, session.progress.iteration
    seed, each, count = config.train.seed, config.data.group, config.data.prompts
    prompts = [p for p in session.prompts.draw(iteration, count, seed, number) for _ in range(each)]
    further = ("round", number) if number else ()
    draw = Draw.of(
        seeds=seeds(seed, "sample", iteration, *further, count=len(prompts)),
        group=torch.arange(number * count, (number + 1) * count).repeat_interleave(each),
        iteration=iteration,
        shared_seed=derive(seed, "shared", iteration),
        prompts=prompts,
    )
    rows = config.train.sample_batch
    with session.rewards.scoring(draw.group) as scoring:
        rollout, samples = session.sample_and_decode(draw, algorithm.sampler, algorithm.behaviour, rows, timer, scoring)
        with timer("reward"):
            rewards = scoring.wait()
    return _Round(rollout, samples, rewards), scoring


def _joined(session: Session, before: _Round | None, fresh: _Round, timer: PhaseTimer) -> _Round:
    """Both, with groups counted from 0 as if they had been drawn in one round."""
    parts = [fresh] if before is None else [before, fresh]
    samples = joined([part.samples for part in parts])
    group = torch.arange(len(samples)) // session.config.data.group
    with timer("sample"):  # encoded anew, so that no more than the prompts that stay are held
        condition = session.policy.condition(samples.prompts)
    return _Round(
        joined_rollouts([part.rollout for part in parts], condition, group),
        samples,
        torch.cat([part.rewards for part in parts]),
    )
