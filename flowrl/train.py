"""The training loop: sample, score, advantage, update. It names no method, model or reward."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flowrl.checks import Spoken, judge, measure
from flowrl.clients.rollouts import rollout_workers
from flowrl.companions import train_companions
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models.sharding import check_shard
from flowrl.monitor import check_training, new_alarms, should_stop
from flowrl.parts.coefficients import update_coefficients
from flowrl.parts.diagnostics import describe_scores, per_sample
from flowrl.ratio_check import RatioCheck
from flowrl.records.replays import Ring
from flowrl.replay import keep_samples, with_old_samples
from flowrl.report import try_write
from flowrl.rounds import (
    ScoredRollout,
    are_saved,
    missing_groups,
    recording,
    sample_ahead,
    sample_and_score,
    save_samples,
)
from flowrl.runtime.callbacks import Callbacks, Started
from flowrl.runtime.display import Display
from flowrl.runtime.launch import Job, joined
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.runtime.ranks import together
from flowrl.runtime.signals import Interrupts
from flowrl.runtime.streams import survive_closed_streams
from flowrl.runtime.timing import PhaseTimer
from flowrl.runtime.watch import present
from flowrl.score.given import Given
from flowrl.session import Session, open_session
from flowrl.staleness import drop_version, keep_version
from flowrl.startup.opening import open_run
from flowrl.startup.preflight import CheckedRun, check_run
from flowrl.step import improve
from flowrl.trainer import Trainer
from flowrl.types import IncompatibleError, Ranks
from flowrl.update_checks import UpdateChecks, due


def iterate(session: Session, timer: PhaseTimer) -> tuple[dict[str, float], ScoredRollout, Tensor]:
    """One iteration: metrics, and what was learned from with its advantage [N].

    Raises `UserError` where parts of the algorithm do not fit each other or the model.
    """
    try:
        return _iterate(session, timer)
    except IncompatibleError as error:
        raise UserError(f"algorithm: {error}") from error


def _iterate(session: Session, timer: PhaseTimer) -> tuple[dict[str, float], ScoredRollout, Tensor]:
    policy, algorithm = session.policy, session.present_algorithm
    calls = policy.network_calls
    batch = recording(session, sample_and_score(session, timer))
    with timer("sample"):
        learned = with_old_samples(session, batch)
    with timer("advantage"):
        advantage = learned.advantage(algorithm, session.memory)
        learned = learned.weighed(algorithm, session.memory)
    with timer("update"):
        session.set_learning_rates()
        keep_version(session)
        sample_ahead(session)
        iteration = session.progress.iteration
        checks = UpdateChecks(due(session.config.monitor.checks, iteration), first=iteration == 0)
        how = (session.update_settings(), session.scaler)
        fresh = (batch.rollout, batch.scores, session.memory, *how, batch.share)
        beside = train_companions(policy, session.companions, algorithm, *fresh, iteration)
        what = (learned.rollout, learned.scores, advantage, *how, learned.share)
        updated = improve(policy, session.optimizer, algorithm, *what, checks, batch.record)
        forwards = int(session.ranks.total(torch.tensor(policy.network_calls - calls - checks.forwards)))
        steps = int(updated.pop("optimizer_steps"))
        session.advance(steps, len(batch.drawn.group), forwards)
        drop_version(session)
        keep_samples(session, batch, iteration)
    with timer("monitor"):
        watched = check_training(session, batch.rollout, batch.samples, updated, batch.share)
    own = advantage[: len(batch.scores.group)]
    described = describe_scores(batch.drawn, own) | dict(learned.metrics)
    metrics = updated | beside | described | batch.metrics | dict(session.policy_metrics()) | watched
    metrics |= update_coefficients(algorithm, session.memory, metrics, session.progress.iteration)
    with timer("update"):
        session.follow(steps)
    return metrics, batch, per_sample(own)


def train(
    config: Config,
    *,
    resume: str | None = None,
    allow_changed: bool = False,
    display: Display | None = None,
    until: int | None = None,
    given: Given | None = None,
    callbacks: Callbacks | None = None,
) -> Path:
    """Run a config; returns the run directory.

    resume: ``None`` starts a new run, ``"auto"`` goes on from the newest intact checkpoint or starts, a path goes on
    from there; allow_changed: also where prompts, rewards, base weights or libraries are others than then. until: stop
    after this iteration, with the schedules of the whole run. given: rewards that are functions of this process, by
    their names in the config.

    Raises:
        UserError: anything the user can mend; what was finished before is on disk.
        KeyboardInterrupt: after Ctrl-C, when the iteration has been finished and saved (SIGTERM ends a run the same
            way, without an error).
    """
    with joined() as job, display or Display(config.name, silent=job.rank > 0) as shown:
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        with together(job):
            checked = check_run(config, given)
        with job.connect(config.train.rank_timeout) as ranks:
            told = callbacks or Callbacks()
            signal = _train(job, ranks, checked, resume, allow_changed, shown, until, told)
        if signal == "SIGINT":
            raise KeyboardInterrupt(f"saved; go on with --resume auto ({config.directory})")
    return config.directory


def _train(
    job: Job,
    ranks: Ranks,
    run: CheckedRun,
    resume: str | None,
    allow_changed: bool,
    display: Display,
    until: int | None,
    callbacks: Callbacks,
) -> str | None:
    """The signal that ended the run, if one did."""
    check_shard(run.config.model.shard)
    watch = present()
    if watch is not None:
        watch.sharded = run.config.model.shard != "none"
    # Files and trackers before the model: a login can fail.
    with (
        survive_closed_streams(),
        open_run(job, ranks, run, resume, allow_changed=allow_changed) as (directory, trackers, start),
        display.heard_by(directory.say if job.rank == 0 else None),
    ):
        with together(ranks), explain_out_of_memory(run.config, "load"):
            session = open_session(run, display.stage)
            session.ring = Ring(directory.path)
        with closing(session.rewards), rollout_workers(run.config) as session.workers:
            if start is not None:
                with together(ranks), explain_out_of_memory(run.config, "load"):
                    session.restore(start.tensors, start.values)
            end = min(run.config.train.iterations, until or run.config.train.iterations)
            return _run(Trainer(session, directory, trackers, display, job, callbacks), end, fresh=start is None)


def _run(trainer: Trainer, end: int, fresh: bool) -> str | None:
    """Train, with what is said before and after it. The signal that ended the run, if one did."""
    session, display = trainer.session, trainer.display
    display.start_iterations(session.config.name, end, session.progress.iteration)
    with Interrupts(display.stopping) as interrupts:
        for note in session.notes:
            display.note(note)
        trainer.trackers.tell(display.note)
        done = session.progress.iteration
        with trainer.callbacks.told(Started(trainer.directory.path, session.config, done, end)):
            _loop(trainer, interrupts, end, fresh)
            trainer.job.write(partial(_conclude, trainer))
            signal = trainer.agree(interrupts.requested)[0]
        trainer.callbacks.conclude(signal or "finished", session.progress.iteration)
        return signal


def _conclude(trainer: Trainer) -> None:
    """What is said and written of a whole run."""
    display, directory = trainer.display, trainer.directory
    scores = [line["eval/reward/mean"] for line in directory.metrics() if "eval/reward/mean" in line]
    if len(scores) > 1:
        display.note(f"held-out reward {scores[0]:.3f} -> {scores[-1]:.3f}")
    trainer.trackers.close()
    trainer.trackers.tell(display.note)
    for note in try_write(directory.path, display.stage):
        display.note(note)


def _loop(trainer: Trainer, interrupts: Interrupts, end: int, fresh: bool) -> None:
    session, progress, config = trainer.session, trainer.session.progress, trainer.session.config
    ratio, spoken = RatioCheck(), Spoken()
    if fresh and config.eval.every and not trainer.callbacks.stop:
        trainer.publish(trainer.evaluate())
    if trainer.callbacks.stop:
        trainer.display.note(trainer.callbacks.stop.reason)
        return
    while progress.iteration < end:
        with trainer.iteration():
            metrics, batch, advantage = iterate(session, trainer.timer)
            metrics |= measure(session, batch, trainer.timer)
        ratio.check(session, metrics)
        done = progress.iteration
        last = done == end
        if config.eval.every and (last or done % config.eval.every == 0):
            metrics |= trainer.evaluate()
        if are_saved(session, done) or (last and config.log.samples):
            save_samples(session, trainer.directory, batch, advantage)
        verdicts = judge(session, metrics)
        rows = [verdict.row(done) for verdict in verdicts]
        trainer.publish(metrics, {"reward": batch.drawn.total, "advantage": advantage}, rows)
        checked = ratio.notes(session, metrics) + spoken.notes(verdicts)
        for note in checked + missing_groups(session, metrics) + new_alarms(session, metrics):
            trainer.display.note(note)
        asked = should_stop(session, trainer.directory) or trainer.callbacks.stop
        signal, stop = trainer.agree(interrupts.requested, asked)
        due = config.checkpoint.every and done % config.checkpoint.every == 0
        if stop.save if stop else due or last or signal:
            trainer.save()
        if stop:
            trainer.display.note(stop.reason)
            return
        if signal:
            trainer.display.note(f"{signal}: saved after iteration {done}; go on with --resume auto")
            return
