"""Evaluation while training: the run's own rewards on held-out prompts, always the same ones at the same seeds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.heldout_records import ACCURACY, measure_records
from flowrl.math.random import seeds
from flowrl.models.text.policy import TextPolicy
from flowrl.monitor import check_heldout
from flowrl.parts.diagnostics import describe_scores
from flowrl.records.directory import RunDirectory, spaced
from flowrl.runtime.ranks import together
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import gather_stats, gathered
from flowrl.session import Session
from flowrl.startup.policies import evaluation_weights
from flowrl.startup.records import are_unscored
from flowrl.trajectories import Trajectories, draw_trajectories
from flowrl.types import Draw, Prompt, Samples, Scores, Share

EVAL_SEED = 20_000
"""Seed of held-out samples: the same noise in every run, so that runs and checkpoints are compared in pairs."""


def heldout_prompts(session: Session, each: int) -> list[Prompt]:
    """``eval.prompts`` of the held-out prompts, evenly spaced, ``each`` so often."""
    assert session.heldout is not None
    every, options = session.heldout.prompts, session.config.eval
    count = min(options.prompts or len(every), len(every))
    return [every[i * len(every) // count] for i in range(count) for _ in range(each)]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation."""

    metrics: dict[str, float]
    samples: Samples
    """Of this process."""
    share: Share
    """Which of the samples of ``scores`` they are."""
    prompts: list[Prompt]
    """Of all samples."""
    scores: Scores
    seeds: Tensor  # [N]
    drawn: Trajectories | None = None
    """Of the episodes that will be saved."""


def evaluate_heldout(session: Session, timer: PhaseTimer, saved: int = 0) -> Evaluated:
    """Evaluate, every process its share, by the sampler's held-out form. ``eval/reward/mean`` is the weighted total,
    ``eval/<name>/mean`` each reward. Of recorded samples (`Recorded.test`) also what the objective measures of them;
    where no reward scores those, the total is the share of pairs told apart rightly, or minus the loss. ``saved``
    episodes are drawn."""
    options = session.config.eval
    sampler = session.algorithm.sampler.heldout(options.sampling_steps, options.guidance, options.temperature)
    recorded: int | None = getattr(sampler, "group", None)
    each = recorded or options.samples
    prompts = heldout_prompts(session, each)
    group = torch.arange(len(prompts)) // each
    draw = Draw.of(seeds(EVAL_SEED, "eval", count=len(prompts)), group, 0, EVAL_SEED, prompts)
    part, spare = session.portion(draw)
    rows = options.batch or session.config.train.sample_batch
    policy, prefill = session.policy, options.prefill
    begun = policy.prefilled(prefill) if prefill is not None and isinstance(policy, TextPolicy) else nullcontext()
    with timer("eval"):
        with together(session.ranks), begun:
            weights = evaluation_weights(session.config)
            rollout, samples = session.sample_and_decode(part, sampler, weights, rows, PhaseTimer())
            if spare:
                samples = samples.take(torch.zeros(0, dtype=torch.int64))
            answers, stats = session.rewards.ask(samples, part.group[: len(samples)])
        share = Share.following(session.ranks, len(samples))
        stats = gather_stats(stats, session.ranks)
        scores = session.rewards.conclude(share.gather(answers), prompts, group, stats)
        told = measure_records(session, weights, rollout, scores, spare) if recorded else {}
    described = describe_scores(scores, torch.zeros(len(prompts)))
    metrics = {"eval/reward/mean": described["reward/mean"]}
    metrics |= {f"eval/{n}/mean": described[f"reward/{n}/mean"] for n in scores.names}
    if told and are_unscored(session.config):
        metrics = {"eval/reward/mean": told.get(f"eval/{ACCURACY}", -told["eval/loss"])}
    metrics |= told
    drawn = draw_trajectories(sampler, rollout, share, spaced(len(prompts), saved), prompts, policy)
    return Evaluated(metrics, samples, share, prompts, scores, draw.seeds, drawn)


def evaluate_and_save(session: Session, run: RunDirectory, timer: PhaseTimer) -> dict[str, float]:
    """Evaluate, keep some of the samples in the run directory and let the monitor look: metrics."""
    found = evaluate_heldout(session, timer, session.config.log.samples)
    chosen = spaced(len(found.scores.group), session.config.log.samples)
    shown = gathered(found.samples, found.share, chosen, found.prompts)
    if session.ranks.rank == 0:
        nothing = torch.zeros(len(found.seeds))
        run.save_samples(
            session.progress.iteration,
            shown,
            found.scores,
            nothing,
            seeds=found.seeds,
            rows=chosen,
            folder=run.heldout_path,
            drawn=found.drawn,
        )
    return found.metrics | check_heldout(session, found.samples, found.scores, found.share)
