"""The training loop: sample, score, compute advantages, update. It names no method, model or reward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.heldout import evaluate_and_save
from flowrl.math.random import derive
from flowrl.monitor import new_alarms, should_stop, watch_training
from flowrl.parts.coefficients import update_coefficients
from flowrl.parts.diagnostics import describe_scores, per_sample
from flowrl.ratio_check import RatioCheck
from flowrl.records import checkpoint
from flowrl.records.directory import RunDirectory
from flowrl.report import write_anyway
from flowrl.rounds import ScoredRollout, missing_groups, sample_and_score
from flowrl.runtime.display import Display
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.runtime.signals import Interrupts
from flowrl.runtime.streams import survive_closed_streams
from flowrl.runtime.timing import PhaseTimer, RunClock
from flowrl.runtime.trackers import Trackers
from flowrl.session import EMA, Session, open_session
from flowrl.startup.inputs import MANIFEST_KEY, fingerprint_inputs
from flowrl.startup.preflight import check_run
from flowrl.startup.resume import start_or_resume
from flowrl.step import UpdateSettings, improve
from flowrl.types import IncompatibleError


def iterate(session: Session, timer: PhaseTimer) -> tuple[dict[str, float], ScoredRollout, Tensor]:
    """One iteration: metrics, and what was learned from with its advantage. Raises `UserError` where parts of the
    algorithm do not fit each other or the model."""
    try:
        return _iterate(session, timer)
    except IncompatibleError as error:
        raise UserError(f"algorithm: {error}") from error


def _iterate(session: Session, timer: PhaseTimer) -> tuple[dict[str, float], ScoredRollout, Tensor]:
    config, algorithm = session.config, session.present_algorithm
    before = session.policy.network_calls
    made = sample_and_score(session, timer)
    with timer("advantage"):
        advantage = algorithm.advantage(made.scores, session.memory)
    with timer("update"):
        for group, rate in zip(session.optimizer.param_groups, session.learning_rates(), strict=True):
            group["lr"] = rate
        settings = UpdateSettings(
            updates=config.train.updates,
            epochs=config.train.epochs,
            micro_batch=config.train.micro_batch,
            max_grad_norm=config.optimizer.max_grad_norm,
            seed=derive(config.train.seed, "split", session.progress.iteration),
        )
        metrics = improve(
            session.policy,
            session.optimizer,
            algorithm,
            made.rollout,
            made.scores,
            advantage,
            settings,
            session.scaler,
        )
    _advance(session, int(metrics.pop("optimizer_steps")), len(made.drawn.group), session.policy.network_calls - before)
    with timer("monitor"):
        watched = watch_training(session, made.rollout, made.samples, metrics)
    told = getattr(session.policy, "metrics", dict)()  # of mixtures of experts
    metrics |= describe_scores(made.drawn, advantage) | made.metrics | told | watched
    metrics |= update_coefficients(session.algorithm, session.memory, metrics, session.progress.iteration)
    return metrics, made, per_sample(advantage)


def _advance(session: Session, steps: int, samples: int, forwards: int) -> None:
    """Count the iteration and let the weight sets follow."""
    progress = session.progress
    progress.iteration += 1
    progress.optimizer_steps += steps
    progress.samples += samples
    progress.forwards += forwards
    for average in session.algorithm.ema_weights:
        decay = average.decay(progress.optimizer_steps, progress.optimizer_steps - steps)
        session.policy.update_ema(average.name, decay)
    ema = session.config.train.ema
    if ema is not None:
        warm = (1 + progress.iteration) / (10 + progress.iteration)  # a young average should not be the base's
        session.policy.update_ema(EMA, min(ema, warm))


def train(
    config: Config, *, resume: str | None = None, allow_changed: bool = False, display: Display | None = None
) -> Path:
    """Run a config; returns the run directory.

    resume: ``None`` starts a new run, ``"auto"`` goes on from the newest intact checkpoint or starts, a path goes on
    from there; allow_changed: also where prompts, rewards, base weights or libraries are others than then.
    Raises `UserError` for anything the user can mend; what was finished before is on disk. Raises `KeyboardInterrupt`
    after Ctrl-C, when the iteration has been finished and saved (SIGTERM ends a run the same way, without an error).
    """
    with display or Display(config.name) as shown:
        asked = _train(config, resume, allow_changed, shown)
    if asked == "SIGINT":
        raise KeyboardInterrupt(f"saved; go on with --resume auto ({config.directory})")
    return config.directory


def _train(config: Config, resume: str | None, allow_changed: bool, shown: Display) -> str | None:
    """The signal that ended the run, if one did."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    plan = check_run(config)
    config = plan.config
    with RunDirectory(config.directory.absolute()) as run:  # a reward may change the working directory
        inputs = fingerprint_inputs(config, plan.train, plan.test)
        start = start_or_resume(config, run, resume, inputs=inputs, allow_changed=allow_changed)
        # Trackers before the model: a login can fail.
        with survive_closed_streams(), Trackers(config, run, start.step if start else None) as trackers:
            with explain_out_of_memory(config, "load"):
                session = open_session(plan, shown.stage)
            if start is not None:
                session.restore(start.tensors, start.values)
            return _run(session, run, trackers, shown, fresh=start is None)


def _run(session: Session, run: RunDirectory, trackers: Trackers, shown: Display, fresh: bool) -> str | None:
    shown.start_iterations(session.config.name, session.config.train.iterations, session.progress.iteration)
    try:
        with Interrupts(shown.stopping) as interrupts:
            for sentence in session.notes:
                shown.note(sentence)
            for name, style in session.rewards.styles.items():
                if style not in ("flowrl", "TRL"):  # whose text rewards look like ours
                    shown.note(f"reward {name}: {style}'s signature, adapted")
            trackers.tell(shown.note)
            _loop(session, run, trackers, shown, interrupts, fresh)
            scores = [line["eval/reward/mean"] for line in run.metrics() if "eval/reward/mean" in line]
            if len(scores) > 1:
                shown.note(f"held-out reward {scores[0]:.3f} -> {scores[-1]:.3f}")
            trackers.close()
            trackers.tell(shown.note)
            for sentence in write_anyway(run.path, shown.stage):
                shown.note(sentence)
            return interrupts.requested
    finally:
        session.rewards.close()


def _loop(
    session: Session, run: RunDirectory, trackers: Trackers, shown: Display, interrupts: Interrupts, fresh: bool
) -> None:
    config, progress = session.config, session.progress
    timer, clock, first = PhaseTimer(shown.phase), RunClock(progress.seconds), RatioCheck()
    latest: dict[str, float] = {}
    if fresh and config.eval.every:
        with explain_out_of_memory(config, timer):
            latest = evaluate_and_save(session, run, timer)
        _publish(session, run, trackers, shown, latest | timer.collect(), clock)

    def rescue() -> None:  # nothing is lost: what was finished is saved before the cause is shown
        if progress.iteration:
            _save(session, run, latest, clock)

    while progress.iteration < config.train.iterations:
        with explain_out_of_memory(config, timer, rescue):
            metrics, made, advantage = iterate(session, timer)
        first.check(session, metrics)
        last = progress.iteration == config.train.iterations
        if config.eval.every and (last or progress.iteration % config.eval.every == 0):
            with explain_out_of_memory(config, timer, rescue):
                latest = evaluate_and_save(session, run, timer)
            metrics |= latest
        if config.log.images and (last or progress.iteration % config.log.every_images == 0):
            count = config.log.images
            run.save_samples(
                progress.iteration, made.samples, made.scores, advantage, seeds=made.rollout.seeds, count=count
            )
        _publish(session, run, trackers, shown, metrics | timer.collect(), clock)
        notes = first.notes(session, metrics) + missing_groups(session, metrics) + new_alarms(session, metrics)
        for sentence in notes:
            shown.note(sentence)
        halted = should_stop(session, run)
        due = config.checkpoint.every and progress.iteration % config.checkpoint.every == 0
        if halted.save if halted else due or last or interrupts.requested:
            _save(session, run, latest, clock)
        if halted:
            shown.note(halted.reason)
            return
        if interrupts.requested:
            shown.note(f"{interrupts.requested}: saved after iteration {progress.iteration}; go on with --resume auto")
            return


def _publish(
    session: Session,
    run: RunDirectory,
    trackers: Trackers,
    shown: Display,
    metrics: dict[str, float],
    clock: RunClock,
) -> None:
    progress = session.progress
    progress.seconds = clock()
    line = {
        "step": progress.iteration,
        "samples": progress.samples,
        "time": progress.seconds,
        "network/forwards": progress.forwards,
        "lr": session.learning_rate(),
        **metrics,
    }
    run.log(line)
    trackers.log(line, progress.iteration)
    shown.update(progress.iteration, line)
    trackers.tell(shown.note)


def _save(session: Session, run: RunDirectory, metrics: dict[str, float], clock: RunClock) -> None:
    session.progress.seconds = clock()
    tensors, values = session.state()
    options = session.config.checkpoint
    checkpoint.save(
        run.checkpoints,
        session.progress.iteration,
        tensors,
        values,
        session.exporters(),
        metrics,
        facts={
            "reference": session.policy.weights.fingerprint("reference"),
            "base": session.config.model.path,
            "rewards": session.rewards.versions,
            MANIFEST_KEY: dict(session.inputs),
        },
        keep=options.keep,
        best=options.best,
    )
