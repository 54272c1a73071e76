"""What training leaves behind: metrics, evaluations, samples, checkpoints. Of several processes rank 0 writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from flowrl.heldout import evaluate_and_save
from flowrl.parts.diagnostics import histogram
from flowrl.records import checkpoint
from flowrl.records.directory import RunDirectory
from flowrl.records.shards import split_off
from flowrl.runtime.callbacks import Callbacks, Stop
from flowrl.runtime.display import Display
from flowrl.runtime.launch import Job
from flowrl.runtime.memory_log import MemoryLog
from flowrl.runtime.out_of_memory import explain_out_of_memory
from flowrl.runtime.ranks import together
from flowrl.runtime.timing import PhaseTimer, RunClock
from flowrl.runtime.trackers import Trackers
from flowrl.runtime.watch import LostRankError, present
from flowrl.session import Session
from flowrl.startup.inputs import MANIFEST_KEY
from flowrl.startup.memory import estimated_peaks
from flowrl.types import exchange


@dataclass
class Trainer:
    """A session, and where its results go."""

    session: Session
    directory: RunDirectory
    trackers: Trackers
    display: Display
    job: Job
    callbacks: Callbacks = field(default_factory=Callbacks)
    timer: PhaseTimer = field(init=False)
    clock: RunClock = field(init=False)
    peaks: MemoryLog = field(init=False)
    heldout: dict[str, float] = field(default_factory=dict)
    """Metrics of the latest evaluation."""
    _steps: int = 0
    """Optimiser steps of this process."""

    def __post_init__(self) -> None:
        writes = self.job.rank == 0
        self.peaks = MemoryLog(estimated_peaks(self.session.config, self.session.algorithm) if writes else {})
        self.timer, self.clock = PhaseTimer(self._begin), RunClock(self.session.progress.seconds)
        self.session.optimizer.register_step_post_hook(self._count)

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Inside is an iteration. Where it fails before it has changed the weights, what was finished before is saved,
        also where it fails because a rank is lost; after that nobody could go on from there as if nothing had been."""
        session = self.session
        memory, scale = deepcopy(session.memory), session.scaler.state_dict()
        done, steps = session.progress.iteration, self._steps

        def save(write: Callable[[], object]) -> None:
            if (session.progress.iteration, self._steps, session.scaler.state_dict()) == (done, steps, scale):
                session.memory = memory
                write()

        try:
            with explain_out_of_memory(session.config, "update", self.timer, partial(save, self.save)):
                yield
        except LostRankError:
            save(self._save_alone)
            raise

    def evaluate(self) -> dict[str, float]:
        """Metrics on held-out prompts. Where it fails, what was finished before is saved first."""
        with explain_out_of_memory(self.session.config, "eval", self.timer, self.save):
            self.heldout = evaluate_and_save(self.session, self.directory, self.timer)
        return self.heldout

    def publish(
        self,
        metrics: dict[str, float],
        spread: Mapping[str, Tensor] | None = None,
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """A line of ``metrics.jsonl``, also for trackers, display and callbacks, histograms of ``spread``, and lines of
        ``checks.jsonl``."""
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
        histograms = {name: histogram(values) for name, values in (spread or {}).items()}
        self.job.write(partial(self.directory.log, line, self.peaks.collect(progress.iteration), histograms, checks))
        self.trackers.log(line, progress.iteration)
        self.display.update(progress.iteration, line)
        self.trackers.tell(self.display.note)
        self.callbacks.publish(line, list(self.directory.saved(progress.iteration).values()))

    def save(self) -> None:
        """A checkpoint, once an iteration is finished."""
        session = self.session
        if not session.progress.iteration:
            return
        session.progress.seconds = self.clock()
        self.peaks.begin("save")
        with explain_out_of_memory(session.config, "save"):
            tensors, values = session.state()
            tensors, parts = split_off(tensors)
            reference = session.policy.weights.sha256("reference")  # all ranks are asked for their parts of it
            root, step = self.directory.checkpoints, session.progress.iteration
            with together(session.ranks):
                shards = checkpoint.write_shards(root, step, parts, session.ranks)
            self.job.write(partial(self._write, tensors, values, reference, shards))

    def _save_alone(self) -> None:
        """A checkpoint without exchanges, of weights that rank 0 has whole."""
        watch = present()
        if self.job.rank == 0 and self.session.progress.iteration and watch is not None and not watch.sharded:
            with suppress(Exception):  # what ended the run has been said
                self._write(*self.session.state(), self.session.policy.weights.sha256("reference"))

    def _write(
        self, tensors: dict[str, Any], values: dict[str, Any], reference: str, shards: Path | None = None
    ) -> None:
        session, options = self.session, self.session.config.checkpoint
        facts = {
            "reference": reference,
            "base": session.config.model.path,
            "rewards": session.rewards.versions,
            "ranks": session.ranks.size,
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
            shards=shards,
        )

    def agree(self, signal: str | None, stop: Stop | None = None) -> tuple[str | None, Stop | None]:
        """What all ranks do about a ``signal`` that any of them got and a ``stop`` that rank 0 sees."""
        said = exchange(self.session.ranks, [signal, None if stop is None else [stop.reason, stop.save]])
        found = next((theirs for theirs, _ in said if theirs), None)
        return found, None if said[0][1] is None else Stop(*said[0][1])

    def _begin(self, phase: str) -> None:
        self.job.begin(phase)
        self.display.phase(phase)
        self.peaks.begin(phase)

    def _count(self, *_: Any) -> None:
        self._steps += 1
