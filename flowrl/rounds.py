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
class _Made:
    """Samples, and the raw answers of all rewards."""

    rollout: Rollout
    samples: Samples
    rewards: Tensor  # [N, R]

    def take(self, rows: Tensor) -> _Made:
        return _Made(take(self.rollout, rows), self.samples.take(rows), self.rewards[rows])


@dataclass
class _Account:
    """What is remembered of every sample drawn, whether it stays or not: prompts and numbers, no media."""

    prompts: list[Prompt] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)
    feedback: list[Tensor] = field(default_factory=list)
    reports: list[dict[str, float]] = field(default_factory=list)

    def add(self, made: _Made, report: dict[str, float]) -> None:
        self.prompts += made.samples.prompts
        self.rewards.append(made.rewards)
        self.groups.append(made.rollout.group)
        self.sources.append(made.rollout.source)
        if made.rollout.feedback is not None:
            self.feedback.append(made.rollout.feedback)
        self.reports.append(report)

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
    """Sample and score an iteration, in as many rounds as the algorithm's selection allows and needs.

    At most ``data.prompts`` groups that take part are kept, in the order in which they were drawn, beside the samples
    of the round in work. Scoring overlaps with sampling within a round; between rounds it is waited for. If no group
    takes part at all, the samples of the last round are returned, of which the selection leaves nothing.
    """
    config, algorithm = session.config, session.present_algorithm
    most, wanted = algorithm.selection.rounds, config.data.prompts
    enough = math.ceil(algorithm.selection.share * wanted)
    account, kept, missing = _Account(), None, wanted
    while True:
        made, scoring = _round(session, len(account.groups), timer)
        account.add(made, scoring.metrics(session.rewards.names) | describe_completions(made.rollout))
        drawn = account.conclude(session.rewards, scoring)
        if most == 1:
            return ScoredRollout(made.rollout, made.samples, drawn, drawn, account.metrics())
        # A copy, because the state of the advantage should learn from what stays alone.
        advantage = algorithm.advantage(drawn, deepcopy(session.memory))
        part = algorithm.selection(drawn, advantage)[-len(made.rewards) :]
        fresh = made.rollout.group[part].unique()[:missing]  # sorted; what goes beyond is surplus
        missing -= len(fresh)
        if len(fresh) == wanted and len(account.groups) == 1:
            kept = made  # as it is, without a copy
        elif len(fresh):
            kept = _joined(session, kept, made.take(torch.isin(made.rollout.group, fresh).nonzero()[:, 0]), timer)
        if wanted - missing >= enough or len(account.groups) == most:
            break
        del made, scoring  # before the next round takes as much memory again
    chosen = kept or made
    rollout = chosen.rollout
    scores = session.rewards.conclude(chosen.rewards, chosen.samples.prompts, rollout.group, scoring.stats)
    scores = replace(scores, source=rollout.source, feedback=rollout.feedback)
    counts = {
        "sampling/rounds": float(len(account.groups)),
        "sampling/samples": float(len(account.prompts)),
        GROUPS: float(wanted - missing),
    }
    return ScoredRollout(rollout, chosen.samples, scores, drawn, account.metrics() | counts)


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


def _round(session: Session, number: int, timer: PhaseTimer) -> tuple[_Made, Scoring]:
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
    return _Made(rollout, samples, rewards), scoring


def _joined(session: Session, before: _Made | None, fresh: _Made, timer: PhaseTimer) -> _Made:
    """Both, with groups counted from 0 as if they had been drawn in one round."""
    parts = [fresh] if before is None else [before, fresh]
    samples = joined([part.samples for part in parts])
    group = torch.arange(len(samples)) // session.config.data.group
    with timer("sample"):  # encoded anew, so that no more than the prompts that stay are held
        condition = session.policy.condition(samples.prompts)
    return _Made(
        joined_rollouts([part.rollout for part in parts], condition, group),
        samples,
        torch.cat([part.rewards for part in parts]),
    )
