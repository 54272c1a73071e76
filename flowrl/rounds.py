"""The samples of an iteration: one round of sampling and scoring, or several until enough groups take part.

Each process makes and scores its share of a draw; what was answered, numbers per sample, is known to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.random import derive, seeds
from flowrl.models.text.policy import TextPolicy
from flowrl.parts.decision_record import DecisionRecord
from flowrl.parts.diagnostics import VERSION, describe_completions, describe_episodes, describe_sharing
from flowrl.records.directory import RunDirectory, spaced
from flowrl.runtime.ranks import together
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.chunks import joined as joined_rollouts
from flowrl.samplers.chunks import take
from flowrl.score import Rewards, Scoring, gathered, joined, score_previews
from flowrl.score.gradients import judge
from flowrl.session import Session
from flowrl.staleness import sampling_version, sampling_weights
from flowrl.trajectories import draw_trajectories
from flowrl.types import Draw, Policy, Prompt, Rollout, Samples, Scores, Share, TokenTrace

GROUPS = "sampling/groups"


@dataclass(frozen=True)
class ScoredRollout:
    """What an iteration learns from, and what was drawn for it."""

    rollout: Rollout
    """Of this process."""
    samples: Samples
    """Of this process."""
    share: Share
    """Which of the samples of ``scores`` they are."""
    prompts: list[Prompt]
    """Of all samples."""
    seeds: Tensor
    """[N] of all samples."""
    scores: Scores
    drawn: Scores
    """Of all samples of all rounds; ``scores`` where there is one round."""
    metrics: dict[str, float]
    record: DecisionRecord | None = None
    """Of the completions that will be saved, in an iteration whose samples are."""


@dataclass(frozen=True)
class _Made:
    """Samples that this process made."""

    rollout: Rollout
    samples: Samples
    here: Tensor
    """[n] their numbers among those of all processes; -1 for a spare one."""


@dataclass(frozen=True)
class _Answers:
    """What is known of the samples of all processes: prompts, and the raw answers of all rewards; no media."""

    prompts: list[Prompt]
    rewards: Tensor  # [N, R]
    group: Tensor  # [N]
    source: Tensor  # [N]
    feedback: Tensor | None  # [N] or [N, E]
    nodes: Tensor | None = None  # [N, E + 1]
    steps: Tensor | None = None  # [N, E, R]

    def take(self, rows: Tensor) -> _Answers:
        """Those of the samples with these numbers [n]."""
        prompts = [self.prompts[row] for row in rows.tolist()]
        rest = [None if value is None else value[rows] for value in (self.feedback, self.nodes, self.steps)]
        return _Answers(prompts, self.rewards[rows], self.group[rows], self.source[rows], *rest)

    def scores(self, rewards: Rewards, scoring: Scoring) -> Scores:
        """By the declared policies. Raises `UserError` as `Rewards.conclude` does."""
        scores = rewards.conclude(self.rewards, self.prompts, self.group, scoring.stats)
        steps = self._steps(rewards, scoring)
        return replace(scores, source=self.source, feedback=self.feedback, nodes=self.nodes, steps=steps)

    def _steps(self, rewards: Rewards, scoring: Scoring) -> Tensor | None:
        """[N, E] totals of the steps, by the same policies; NaN where they leave one out."""
        if self.steps is None:
            return None
        each = [
            rewards.conclude(self.steps[:, e], self.prompts, self.group, scoring.stats)
            for e in range(self.steps.shape[1])
        ]
        return torch.stack([torch.where(found.valid, found.total, torch.nan) for found in each], dim=1)


def _joined_answers(parts: Sequence[_Answers]) -> _Answers:
    rest = [
        [value for value in values if value is not None]
        for values in zip(*[(part.feedback, part.nodes, part.steps) for part in parts], strict=True)
    ]
    return _Answers(
        [prompt for part in parts for prompt in part.prompts],
        torch.cat([part.rewards for part in parts]),
        torch.cat([part.group for part in parts]),
        torch.cat([part.source for part in parts]),
        *[torch.cat(values) if values else None for values in rest],
    )


@dataclass(frozen=True)
class _Kept:
    """What an iteration learns from."""

    answers: _Answers
    made: _Made | None
    """``None`` where all of it is with other processes."""


@dataclass
class _AllDrawn:
    """What is remembered of every sample drawn, whether it stays or not."""

    rounds: list[_Answers] = field(default_factory=list)
    reports: list[dict[str, float]] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Means over the rounds, which are of one size; times and failures add up."""
        keys = dict.fromkeys(key for report in self.reports for key in report)
        sums = {key: sum(report.get(key, 0.0) for report in self.reports) for key in keys}
        return {k: v / len(self.reports) if k.startswith(("completion/", "episode/")) else v for k, v in sums.items()}


def sample_and_score(session: Session, timer: PhaseTimer) -> ScoredRollout:
    """Sample and score an iteration, in as many rounds as the algorithm's selection allows and needs."""
    if session.present_algorithm.selection.rounds > 1:
        return _replace_groups(session, timer)
    drawn = _AllDrawn()
    made, scoring = _sample_round(session, drawn, timer)
    scores = drawn.rounds[0].scores(session.rewards, scoring)
    return _scored(session, _Kept(drawn.rounds[0], made), made, scores, scores, drawn.metrics())


def _scored(
    session: Session, kept: _Kept, made: _Made, scores: Scores, drawn: Scores, metrics: dict[str, float]
) -> ScoredRollout:
    """Where none of what is kept is here, a spare sample of what was ``made`` last stands in its place."""
    held = kept.made or _taken(made, torch.tensor([0]), torch.tensor([-1]))
    metrics = metrics | {VERSION: float(held.rollout.version)}
    share = Share.of(session.ranks, held.here)
    seeds, prompts = share.gather(held.rollout.seeds), kept.answers.prompts
    rollout = held.rollout
    if session.present_algorithm.judged:
        decode = partial(session.policy.decode, graph=True)  # pyright: ignore[reportCallIssue]
        told = judge(session.rewards, scores, held.samples.prompts, held.here, decode)
        rollout = replace(rollout, judge=told)
    return ScoredRollout(rollout, held.samples, share, prompts, seeds, scores, drawn, metrics)


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
        made, scoring = _sample_round(session, drawn, timer)
        latest = drawn.rounds[-1]
        scores = _joined_answers(drawn.rounds).scores(session.rewards, scoring)
        fresh = _groups_that_take_part(session, scores, latest)[:missing]  # what goes beyond is surplus
        missing -= len(fresh)
        if len(fresh) == wanted and len(drawn.rounds) == 1:
            kept = _Kept(latest, made)  # as it is, without a copy
        elif len(fresh):
            kept = _added(session, kept, latest, made, fresh, timer)
        if wanted - missing >= enough or len(drawn.rounds) == selection.rounds:
            break
        del made, scoring  # before the next round takes as much memory again
    kept = kept or _Kept(latest, made)
    learned = kept.answers.scores(session.rewards, scoring)
    counts = {
        "sampling/rounds": float(len(drawn.rounds)),
        "sampling/samples": float(len(scores.group)),
        GROUPS: float(wanted - missing),
    }
    return _scored(session, kept, made, learned, scores, drawn.metrics() | counts)


def _groups_that_take_part(session: Session, scores: Scores, latest: _Answers) -> Tensor:
    """Groups of the latest round, in order, by the ``scores`` of all rounds."""
    algorithm = session.present_algorithm
    # A copy, because the state of the advantage should learn from what stays alone.
    advantage = algorithm.advantage(scores, deepcopy(session.memory))
    return latest.group[algorithm.selection(scores, advantage)[-len(latest.group) :]].unique()


def are_saved(session: Session, done: int) -> bool:
    """Whether samples of iteration ``done`` are saved."""
    options, last = session.config.log, session.config.train.iterations
    return options.samples > 0 and (done == last or done % options.samples_every == 0)


def recording(session: Session, made: ScoredRollout) -> ScoredRollout:
    """With a record of the decisions of the completions of an autoregressive model that will be saved: their decisions
    are their tokens."""
    trace = made.rollout.trace
    if not isinstance(trace, TokenTrace) or trace.order is not None:
        return made
    if not are_saved(session, session.progress.iteration + 1):
        return made
    return replace(made, record=DecisionRecord(spaced(len(made.prompts), session.config.log.samples)))


def save_samples(session: Session, directory: RunDirectory, made: ScoredRollout, advantage: Tensor) -> None:
    """Some of the samples of the iteration that ended, with their advantage [N], on disk; the first process writes."""
    rows = spaced(len(made.prompts), session.config.log.samples)
    samples = gathered(made.samples, made.share, rows, made.prompts)
    facts = token_facts(session.policy, made, rows)
    sampler = session.present_algorithm.sampler
    drawn = draw_trajectories(sampler, made.rollout, made.share, rows, made.prompts, session.policy)
    if session.ranks.rank == 0:
        done = session.progress.iteration
        directory.save_samples(
            done, samples, made.scores, advantage, seeds=made.seeds, rows=rows, facts=facts, drawn=drawn
        )


def token_facts(policy: Policy, made: ScoredRollout, rows: Tensor) -> list[dict[str, Any]] | None:
    """Of the completions with these numbers [n]: ``tokens``, the text of each token that counts, with its
    log-probability as the sampler computed it, or the decoding step at which it was fixed; where they were recorded,
    its entropy, and its advantage if tokens of the sample have others. None of other media."""
    trace = made.rollout.trace
    if not isinstance(trace, TokenTrace) or not isinstance(policy, TextPolicy):
        return None
    part, held = made.share.take(rows)
    recorded = _recorded(made.record, trace)
    found = []
    for place, row in zip(part.here.tolist(), held.tolist(), strict=True):
        kept = trace.mask[row]
        facts: dict[str, Any] = {"text": [policy.codec.token_text(token) for token in trace.tokens[row][kept].tolist()]}
        if trace.logp is not None and not bool(trace.logp[row][kept].isnan().any()):  # of others' samples: not known
            facts["logp"] = _shortened(trace.logp[row][kept])
        if trace.order is not None:
            facts["order"] = trace.order[row][kept].tolist()
        facts |= {name: _shortened(values[place][kept]) for name, values in recorded.items()}
        if len(set(facts.get("advantage", [0]))) == 1:
            facts.pop("advantage", None)
        found.append({"tokens": facts})
    return part.values(found)


def _recorded(record: DecisionRecord | None, trace: TokenTrace) -> dict[str, Tensor]:
    """Values [k, T] of the record's samples by name, where decisions are tokens."""
    known = {} if record is None else {"entropy": record.entropy(), "advantage": record.advantage}
    return {
        name: values
        for name, values in known.items()
        if values is not None and values.dim() == 2 and values.shape[1] == trace.tokens.shape[1]
    }


def _shortened(values: Tensor) -> list[float | None]:
    """Four decimals; None for NaN."""
    return [None if value != value else round(value, 4) for value in values.tolist()]


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


def _sample_round(session: Session, drawn: _AllDrawn, timer: PhaseTimer) -> tuple[_Made, Scoring]:
    """Sample and score ``data.prompts`` groups, this process its share. Prompts and seeds follow from the config,
    iteration and round."""
    config, algorithm = session.config, session.present_algorithm
    draw = _draw(session, session.progress.iteration, len(drawn.rounds))
    part, spare = session.portion(draw)
    rows = config.train.sample_batch
    with together(session.ranks), session.rewards.scoring(part.group, asked=not spare) as scoring:
        weights = sampling_weights(session)
        if session.workers is not None:
            session.workers.send(session.policy, weights, sampling_version(session))
        rollout, samples = session.sample_and_decode(part, algorithm.sampler, weights, rows, timer, scoring)
        rollout = replace(rollout, version=sampling_version(session))
        with timer("reward"):
            rewards = scoring.wait()
            decode = partial(_decoded, session)
            rollout, steps = score_previews(session.rewards, decode, rollout, part.prompts, rows, not spare)
    scoring.gather(session.ranks)
    share = Share.following(session.ranks, len(rollout.group), spare)
    group = share.gather(rollout.group)
    asked = dict(zip(draw.group.tolist(), draw.prompts, strict=True))
    drawn.rounds.append(
        _Answers(
            [asked[key] for key in group.tolist()],
            share.gather(rewards),
            group,
            share.gather(rollout.source),
            *[None if of is None else share.gather(of) for of in (rollout.feedback, rollout.nodes, steps)],
        )
    )
    described = describe_completions(rollout, share) | describe_sharing(rollout, share, algorithm.sampler.forwards)
    described |= describe_episodes(rollout, share)
    drawn.reports.append(scoring.metrics(session.rewards.names) | described)
    return _Made(rollout, samples, share.here), scoring


def _decoded(session: Session, final: Tensor) -> Tensor | list[str]:
    """Images or texts of final samples [n, ...], wherever those are."""
    return session.policy.decode(put(final, session.policy.device))


def _draw(session: Session, iteration: int, number: int) -> Draw:
    """What all processes together make in a round of an iteration, both counted from 0."""
    config = session.config
    seed, each, count = config.train.seed, config.data.group, config.data.prompts
    prompts = [p for p in session.prompts.draw(iteration, count, seed, number) for _ in range(each)]
    further = ("round", number) if number else ()
    return Draw.of(
        seeds=seeds(seed, "sample", iteration, *further, count=len(prompts)),
        group=torch.arange(number * count, (number + 1) * count).repeat_interleave(each),
        iteration=iteration,
        shared_seed=derive(seed, "shared", iteration),
        prompts=prompts,
    )


def sample_ahead(session: Session) -> None:
    """Let the rollout workers begin the next iteration's first round while this one updates: where it samples with
    weights that are there before (``train.staleness``) and no part of the sampler changes from one to the next."""
    following, config = session.progress.iteration + 1, session.config
    if session.workers is None or not config.train.staleness or session.algorithm.coefficients:
        return
    if following == config.train.iterations:
        return
    part, _ = session.portion(_draw(session, following, 0))
    with together(session.ranks):
        session.workers.send(session.policy, sampling_weights(session, following), sampling_version(session, following))
        session.workers.begin(part, config.train.sample_batch, {})


def _taken(made: _Made, rows: Tensor, here: Tensor) -> _Made:
    """Some rows [n] of what this process made, under other numbers [n]."""
    return _Made(take(made.rollout, rows), made.samples.take(rows), here)


def _added(
    session: Session, before: _Kept | None, latest: _Answers, made: _Made, groups: Tensor, timer: PhaseTimer
) -> _Kept:
    """What is kept, with these groups of the latest round; groups are counted from 0 as if they had been drawn in one
    round."""
    rows = torch.isin(latest.group, groups).nonzero()[:, 0]
    parts = [latest.take(rows)] if before is None else [before.answers, latest.take(rows)]
    answers = _joined_answers(parts)
    answers = replace(answers, group=torch.arange(len(answers.prompts)) // session.config.data.group)
    number = torch.full((len(latest.prompts),), -1)
    number[rows] = torch.arange(len(answers.prompts) - len(rows), len(answers.prompts))
    here = torch.where(made.here >= 0, number[made.here], -1)
    mine = (here >= 0).nonzero()[:, 0]
    held = None if before is None else before.made
    with together(session.ranks):
        if len(mine):
            held = _joined(session, held, _taken(made, mine, here[mine]), answers.group, timer)
    return _Kept(answers, held)


def _joined(session: Session, before: _Made | None, fresh: _Made, group: Tensor, timer: PhaseTimer) -> _Made:
    """Both, of the groups [N] that all samples have now."""
    parts = [fresh] if before is None else [before, fresh]
    samples, here = joined([part.samples for part in parts]), torch.cat([part.here for part in parts])
    with timer("sample"):  # encoded anew, so that no more than the prompts that stay are held
        condition = session.policy.condition(samples.prompts)
    return _Made(joined_rollouts([part.rollout for part in parts], condition, group[here]), samples, here)
