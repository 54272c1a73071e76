"""How much work a run is, from its config alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.parts.algorithm import Algorithm
from flowrl.types import Ranks

MOST_SAMPLES = 10_000_000
"""Per iteration: far more than any memory holds, and few enough to count with."""


@dataclass(frozen=True)
class Workload:
    """Counts of a run; forwards are network evaluations of one sample (guidance by two branches doubles them; with a
    cache, a token is one)."""

    prompts: int
    group: int
    samples: int
    """Per iteration."""
    decisions: int
    """Per sample."""
    optimizer_steps: int
    """Per iteration."""
    sampling_forwards: int
    """Per iteration."""
    training_forwards: int
    """Per iteration, if every sample is trained; each is followed by a backward of about twice its cost."""
    frozen_forwards: int
    """Per iteration: reference and old policy, without gradient; again if every sample is trained."""
    iterations: int
    rounds: int = 1
    """Of sampling per iteration, at most; the counts of samples and forwards are those of one."""
    enough: int = 0
    """Groups that take part after which no further round follows."""

    @property
    def forwards(self) -> int:
        """Of the whole run, without evaluation."""
        return self.iterations * (self.sampling_forwards + self.training_forwards + self.frozen_forwards)

    def lines(self) -> list[tuple[str, str]]:
        """Label and value, to print."""
        batch = f"{self.prompts} prompts x {self.group} = {self.samples} samples"
        samples, forwards = (self.iterations * (self.rounds - 1) * n for n in (self.samples, self.sampling_forwards))
        several = [
            ("rounds of sampling", f"1 to {self.rounds} an iteration, until {self.enough} groups take part"),
            ("", f"counted below as 1; the others make up to {samples:,} samples in {forwards:,} forwards"),
        ]
        return [
            ("batch", f"{batch}, {self.decisions} decisions each"),
            ("iterations", f"{self.iterations}, {self.optimizer_steps} optimiser steps each"),
            *(several if self.rounds > 1 else []),
            ("samples in total", f"{self.iterations * self.samples:,}"),
            ("network forwards per iteration", f"{self.sampling_forwards:,} to sample"),
            ("", f"{self.training_forwards:,} with gradient, {self.frozen_forwards:,} of frozen weights"),
            ("network forwards in total", f"{self.forwards:,} (evaluation not counted)"),
        ]


def workload(config: Config, algorithm: Algorithm) -> Workload:
    """The work of a run. Raises `UserError` where prompts, group and updates do not fit the algorithm."""
    _check_batch(config, algorithm)
    data, train = config.data, config.train
    samples = data.prompts * data.group
    try:
        decisions, network_rows = algorithm.estimator.decisions(algorithm.sampler.recorded)
    except ValueError as error:
        raise UserError(f"algorithm.sampler: {error}") from error
    if config.model.critic_for(algorithm.valued) == "network":
        network_rows *= 2  # each row passes through both networks
    trained = samples * network_rows * train.epochs
    measured = (
        train.updates * train.epochs > 1 and algorithm.needs_old_logp and not algorithm.estimator.has_recorded_logp
    )
    return Workload(
        prompts=data.prompts,
        group=data.group,
        samples=samples,
        decisions=decisions,
        optimizer_steps=train.updates * train.epochs,
        sampling_forwards=samples * algorithm.sampler.forwards,
        training_forwards=trained + _beside(algorithm, samples),
        frozen_forwards=trained * len({*algorithm.references, *algorithm.estimator.references})
        + samples * network_rows * bool(measured or algorithm.token_advantage),
        iterations=train.iterations,
        rounds=algorithm.selection.rounds,
        enough=math.ceil(algorithm.selection.share * data.prompts),
    )


def _beside(algorithm: Algorithm, samples: int) -> int:
    """Network rows by which companions learn from these samples."""
    recorded, rows = algorithm.sampler.recorded, 0
    for each in algorithm.companions:
        try:
            rows += samples * each.estimator.decisions(recorded)[1] * each.epochs
        except ValueError as error:
            raise UserError(f"algorithm.companions, {each.name}: {error}") from error
    return rows


def describe_shares(ranks: Ranks, groups: int, each: int, grouped: bool) -> list[str]:
    """What to say where processes have unequal shares of an iteration's ``groups`` of ``each`` samples; ``grouped``:
    whether a reward compares the samples of a group."""
    size = ranks.size
    if groups >= size:
        least, more = divmod(groups, size)
        if not more:
            return []
        return [
            f"{groups} groups on {size} processes: {more} make {least + 1}, and the others, which make {least}, "
            f"wait for them; data.prompts={(least + 1) * size} takes as long"
        ]
    busy = groups if grouped else min(groups * each, size)
    if busy == size:
        return []
    why = (
        "a reward compares the samples of a group, which therefore stays whole"
        if grouped
        else "there are no more samples"
    )
    return [f"{busy} of {size} processes have something to do, because {why}; raise data.prompts to {size} or more"]


def _check_batch(config: Config, algorithm: Algorithm) -> None:
    data, train = config.data, config.train
    samples = data.prompts * data.group
    if samples > MOST_SAMPLES:
        raise UserError(
            f"data.prompts x data.group = {samples:,} samples per iteration, and at most {MOST_SAMPLES:,} can be held; "
            "lower one of them"
        )
    least = max(algorithm.min_group, 2 if algorithm.selection.rounds > 1 else 1)  # a group of one is always flat
    if data.group < least:
        raise UserError(
            f"data.group={data.group}: this algorithm compares the samples of a prompt, so it needs at least "
            f"{least} of them"
        )
    tree = getattr(algorithm.sampler, "tree", 1)
    if data.group % tree:
        raise UserError(
            f"data.group={data.group}: {tree} samples of a prompt form a tree, so it should be a multiple of {tree}; "
            "change it, or the options of algorithm.sampler that say how it forks"
        )
    if algorithm.objective.coupled and train.updates > data.prompts:
        raise UserError(
            f"train.updates={train.updates} is more than data.prompts={data.prompts}, and this algorithm's loss keeps "
            "the samples of a prompt together; lower train.updates"
        )
