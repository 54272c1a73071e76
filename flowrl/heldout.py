"""Evaluation while training: the run's own rewards on held-out prompts, always the same ones at the same seeds."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from flowrl.math.random import seeds
from flowrl.models.text.policy import TextPolicy
from flowrl.monitor import check_heldout
from flowrl.parts.diagnostics import describe_scores
from flowrl.records.directory import RunDirectory
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session
from flowrl.startup.policies import evaluation_weights
from flowrl.types import Draw, Prompt, Samples, Scores

EVAL_SEED = 20_000
"""Seed of held-out samples: the same noise in every run, so that runs and checkpoints are compared in pairs."""


def heldout_prompts(session: Session) -> list[Prompt]:
    """``eval.prompts`` of the held-out prompts, evenly spaced, each ``eval.samples`` times."""
    assert session.heldout is not None
    every, options = session.heldout.prompts, session.config.eval
    count = min(options.prompts or len(every), len(every))
    return [every[i * len(every) // count] for i in range(count) for _ in range(options.samples)]


def evaluate_heldout(session: Session, timer: PhaseTimer) -> tuple[dict[str, float], Samples, Scores, Tensor]:
    """``(metrics, samples, scores, seeds [N])``, made by the sampler's held-out form. ``eval/reward/mean`` is the
    weighted total, ``eval/<name>/mean`` each reward."""
    options = session.config.eval
    sampler = session.algorithm.sampler.heldout(options.sampling_steps, options.guidance, options.temperature)
    prompts = heldout_prompts(session)
    group = torch.arange(len(prompts)) // options.samples
    keys = seeds(EVAL_SEED, "eval", count=len(prompts))
    rows = options.batch or session.config.train.sample_batch
    policy, prefill = session.policy, options.prefill
    begun = policy.prefilled(prefill) if prefill is not None and isinstance(policy, TextPolicy) else nullcontext()
    with timer("eval"), begun:
        draw = Draw.of(keys, group, 0, EVAL_SEED, prompts)
        _, samples = session.sample_and_decode(draw, sampler, evaluation_weights(session.config), rows, PhaseTimer())
        scores = session.rewards(samples, group)
    described = describe_scores(scores, torch.zeros(len(prompts)))
    metrics = {"eval/reward/mean": described["reward/mean"]}
    return metrics | {f"eval/{n}/mean": described[f"reward/{n}/mean"] for n in scores.names}, samples, scores, keys


def evaluate_and_save(session: Session, run: RunDirectory, timer: PhaseTimer) -> dict[str, float]:
    """Evaluate, keep some of the samples in the run directory and let the monitor look: metrics."""
    metrics, samples, scores, keys = evaluate_heldout(session, timer)
    run.save_samples(
        session.progress.iteration,
        samples,
        scores,
        torch.zeros(len(samples)),
        seeds=keys,
        count=session.config.log.samples,
        folder=run.heldout_path,
    )
    return metrics | check_heldout(session, samples, scores)
