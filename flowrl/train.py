"""The training loop: sample, score, advantage, update. It names no method, model or reward."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.heldout import evaluate_and_save
from flowrl.monitor import check_training, new_alarms, should_stop
from flowrl.parts.coefficients import update_coefficients
from flowrl.parts.diagnostics import describe_scores, per_sample
from flowrl.ratio_check import RatioCheck
from flowrl.records import checkpoint
from flowrl.records.directory import RunDirectory
from flowrl.report import try_write
from flowrl.rounds import ScoredRollout, missing_groups, sample_and_score, save_samples
from flowrl.runtime.display import Display
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.runtime.signals import Interrupts
from flowrl.runtime.streams import survive_closed_streams
from flowrl.runtime.timing import PhaseTimer, RunClock
from flowrl.runtime.trackers import Trackers
from flowrl.session import Session, open_session
from flowrl.startup.inputs import MANIFEST_KEY, fingerprint_inputs
from flowrl.startup.preflight import check_run
from flowrl.startup.resume import start_or_resume
from flowrl.step import improve
from flowrl.types import IncompatibleError


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
    batch = sample_and_score(session, timer)
    with timer("advantage"):
        advantage = algorithm.advantage(batch.scores, session.memory)
    with timer("update"):
        session.set_learning_rates()
        updated = improve(
            policy,
            session.optimizer,
            algorithm,
            batch.rollout,
            batch.scores,
            advantage,
            session.update_settings(),
            session.scaler,
            batch.share,
        )
        forwards = int(session.ranks.total(torch.tensor(policy.network_calls - calls)))
        session.advance(int(updated.pop("optimizer_steps")), len(batch.drawn.group), forwards)
    with timer("monitor"):
        watched = check_training(session, batch.rollout, batch.samples, updated, batch.share)
    described = describe_scores(batch.drawn, advantage)
    metrics = updated | described | batch.metrics | dict(session.policy_metrics()) | watched
    metrics |= update_coefficients(algorithm, session.memory, metrics, session.progress.iteration)
    return metrics, batch, per_sample(advantage)


def train(
    config: Config, *, resume: str | None = None, allow_changed: bool = False, display: Display | None = None
) -> Path:
    """Run a config; returns the run directory.

    resume: ``None`` starts a new run, ``"auto"`` goes on from the newest intact checkpoint or starts, a path goes on
    from there; allow_changed: also where prompts, rewards, base weights or libraries are others than then.

    Raises:
        UserError: anything the user can mend; what was finished before is on disk.
        KeyboardInterrupt: after Ctrl-C, when the iteration has been finished and saved (SIGTERM ends a run the same
            way, without an error).
    """
    with display or Display(config.name) as shown:
        signal = _train(config, resume, allow_changed, shown)
    if signal == "SIGINT":
        raise KeyboardInterrupt(f"saved; go on with --resume auto ({config.directory})")
    return config.directory


def _train(config: Config, resume: str | None, allow_changed: bool, display: Display) -> str | None:
    """The signal that ended the run, if one did."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    checked = check_run(config)
    config = checked.config
    with RunDirectory(config.directory.absolute()) as directory:  # a reward may change the working directory
        inputs = fingerprint_inputs(config, checked.train, checked.test)
        start = start_or_resume(config, directory, resume, inputs=inputs, allow_changed=allow_changed)
        # Trackers before the model: a login can fail.
        with survive_closed_streams(), Trackers(config, directory, start.step if start else None) as trackers:
            with explain_out_of_memory(config, "load"):
                session = open_session(checked, display.stage)
            with closing(session.rewards):
                if start is not None:
                    with explain_out_of_memory(config, "load"):
                        session.restore(start.tensors, start.values)
                return _run(_Trainer(session, directory, trackers, display), fresh=start is None)


@dataclass
class _Trainer:
    """A session, and where its results go."""

    session: Session
    directory: RunDirectory
    trackers: Trackers
    display: Display
    timer: PhaseTimer = field(init=False)
    clock: RunClock = field(init=False)
    heldout: dict[str, float] = field(default_factory=dict)
    """Metrics of the latest evaluation."""

    def __post_init__(self) -> None:
        self.timer, self.clock = PhaseTimer(self.display.phase), RunClock(self.session.progress.seconds)

    def iterate(self) -> tuple[dict[str, float], ScoredRollout, Tensor]:
        """`iterate`. Where it fails, what was finished before is saved first."""
        with explain_out_of_memory(self.session.config, "update", self.timer, self.save):
            return iterate(self.session, self.timer)

    def evaluate(self) -> dict[str, float]:
        """Metrics on held-out prompts. Where it fails, what was finished before is saved first."""
        with explain_out_of_memory(self.session.config, "eval", self.timer, self.save):
            self.heldout = evaluate_and_save(self.session, self.directory, self.timer)
        return self.heldout

    def publish(self, metrics: dict[str, float]) -> None:
        """A line of ``metrics.jsonl``, also for the trackers and the display."""
        session, progress = self.session, self.session.progress
        progress.seconds = self.clock()
        line = {
            "step": progress.iteration,
            "samples": progress.samples,
            "time": progress.seconds,
            "network/forwards": progress.forwards,
            "lr": session.learning_rate(),
            **metrics,
            **self.timer.collect(),
        }
        self.directory.log(line)
        self.trackers.log(line, progress.iteration)
        self.display.update(progress.iteration, line)
        self.trackers.tell(self.display.note)

    def save(self) -> None:
        """A checkpoint, once an iteration is finished."""
        session, options = self.session, self.session.config.checkpoint
        if not session.progress.iteration:
            return
        session.progress.seconds = self.clock()
        with explain_out_of_memory(session.config, "save"):
            tensors, values = session.state()
            facts = {
                "reference": session.policy.weights.sha256("reference"),
                "base": session.config.model.path,
                "rewards": session.rewards.versions,
                MANIFEST_KEY: dict(session.inputs),
            }
            checkpoint.save(
                self.directory.checkpoints,
                session.progress.iteration,
                tensors,
                values,
                session.exporters(),
                self.heldout,
                facts=facts,
                keep=options.keep,
                best=options.best,
            )


def _run(trainer: _Trainer, fresh: bool) -> str | None:
    """Train, with what is said before and after it. The signal that ended the run, if one did."""
    session, display = trainer.session, trainer.display
    display.start_iterations(session.config.name, session.config.train.iterations, session.progress.iteration)
    with Interrupts(display.stopping) as interrupts:
        for note in session.notes:
            display.note(note)
        trainer.trackers.tell(display.note)
        _loop(trainer, interrupts, fresh)
        scores = [line["eval/reward/mean"] for line in trainer.directory.metrics() if "eval/reward/mean" in line]
        if len(scores) > 1:
            display.note(f"held-out reward {scores[0]:.3f} -> {scores[-1]:.3f}")
        trainer.trackers.close()
        trainer.trackers.tell(display.note)
        for note in try_write(trainer.directory.path, display.stage):
            display.note(note)
        return interrupts.requested


def _loop(trainer: _Trainer, interrupts: Interrupts, fresh: bool) -> None:
    session, progress, config = trainer.session, trainer.session.progress, trainer.session.config
    ratio = RatioCheck()
    if fresh and config.eval.every:
        trainer.publish(trainer.evaluate())
    while progress.iteration < config.train.iterations:
        metrics, batch, advantage = trainer.iterate()
        ratio.check(session, metrics)
        done = progress.iteration
        last = done == config.train.iterations
        if config.eval.every and (last or done % config.eval.every == 0):
            metrics |= trainer.evaluate()
        if config.log.samples and (last or done % config.log.samples_every == 0):
            save_samples(session, trainer.directory, batch, advantage)
        trainer.publish(metrics)
        for note in ratio.notes(session, metrics) + missing_groups(session, metrics) + new_alarms(session, metrics):
            trainer.display.note(note)
        alarmed = should_stop(session, trainer.directory)
        due = config.checkpoint.every and done % config.checkpoint.every == 0
        if alarmed.save if alarmed else due or last or interrupts.requested:
            trainer.save()
        if alarmed:
            trainer.display.note(alarmed.reason)
            return
        if interrupts.requested:
            trainer.display.note(f"{interrupts.requested}: saved after iteration {done}; go on with --resume auto")
            return
