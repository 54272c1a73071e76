"""The directory of a run: config, metrics, samples and checkpoints, written by one process at a time."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.files import check_writable, raise_if_full, write_atomically
from flowrl.records import machine
from flowrl.records.sample_files import read_json_lines, write_image, write_overviews
from flowrl.types import Samples, Scores

CONFIG = "config.yaml"


class Drawn(Protocol):
    """Pictures of samples that are none themselves."""

    @property
    def each(self) -> Tensor | None:
        """[k, 3, H, W], one of each sample, if there are any."""
        ...

    @property
    def together(self) -> Tensor | None:
        """[3, H, W] of many samples, if there is one."""
        ...

    @property
    def moving(self) -> Sequence[np.ndarray]:
        """[H, W, 3] uint8 each: the first sample as it goes on; may be empty."""
        ...


class RunDirectory:
    """Paths of a run and the lock on it. Use as a context manager while writing; reading needs no lock.

    ``config.yaml  environment.json  metrics.jsonl  memory.jsonl  histograms.jsonl  checks.jsonl  log.jsonl
    samples/step_000123/  heldout/step_000123/  checkpoints/  eval/  rewards/  judgements.jsonl  report.html``
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / CONFIG
        self.metrics_path = path / "metrics.jsonl"
        self.memory_path = path / "memory.jsonl"
        self.checks_path = path / "checks.jsonl"
        self.histograms_path = path / "histograms.jsonl"
        self.log_path = path / "log.jsonl"
        """What the run said, with the time."""
        self.samples_path = path / "samples"
        self.heldout_path = path / "heldout"
        """Held-out samples of the evaluations during training, laid out like ``samples``."""
        self.checkpoints = path / "checkpoints"
        self.eval_path = path / "eval"
        self.rewards_path = path / "rewards"
        """Source of rewards that were given as Python functions."""
        self._lock: IO[str] | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run. Raises `UserError` if there is none."""
        run = cls(path)
        if not run.exists():
            what = f"has no {CONFIG}" if os.path.isdir(path) else "does not exist"
            raise UserError(f"{path} is not a run: it {what}; name a directory that `flowrl train` wrote")
        return run

    def exists(self) -> bool:
        """Whether a run was started here."""
        return os.path.isfile(self.config_path)  # False also for a name that no file can have

    def has_results(self) -> bool:
        """Whether there is anything to lose: a run whose rewards or model did not load has only a config."""
        return self.exists() and (self.metrics_path.is_file() or any(self.checkpoints.glob("step_*")))

    def __enter__(self) -> Self:
        """Claim the run for this process. Raises `UserError` if another process has it, or nothing can be written."""
        check_writable(self.path, "out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+", encoding="utf-8", errors="replace")
            self._lock = lock if self._claim(lock) else None
        except OSError as error:
            raise UserError(f"out: {self.path} cannot be written to: {error.strerror}; name another place") from error
        if self._lock is None:
            with lock:
                owner = lock.read().strip() or "another process"
            raise UserError(f"{self.path} is being written by {owner}; wait for it, or set another out=...")
        return self

    def _claim(self, lock: IO[str]) -> bool:
        """Write this process into the lock file, unless another one holds it. A former owner that never let go of it is
        reported."""
        lock.seek(0)
        try:
            # The system drops the lock when its process ends, however it ends: there are no stale locks.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        left = lock.read().strip()
        if left:
            warnings.warn(
                f"{self.path}: the last run here ({left}) ended without a word: it was killed, or code of a reward or "
                "model ended or crashed its process (a reward with process: true cannot)",
                stacklevel=3,
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def start(self, config_yaml: str) -> None:
        """Write the resolved config and the environment."""
        self.path.mkdir(parents=True, exist_ok=True)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {"started": started, **machine.describe_machine()}
        write_atomically(self.path / "environment.json", json.dumps(facts, indent=1) + "\n")
        write_atomically(self.config_path, config_yaml)

    def keep_rewards(self, sources: Mapping[str, str]) -> None:
        """Write the sources of rewards, by file name."""
        if sources:
            self.rewards_path.mkdir(exist_ok=True)
        for name, text in sources.items():
            write_atomically(self.rewards_path / name, text)

    def log(
        self,
        metrics: Mapping[str, float],
        memory: Sequence[Mapping[str, Any]] = (),
        histograms: Mapping[str, Any] | None = None,
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Append one line, at once visible to readers, those of ``memory``, bytes that were held at most in the phases
        of the iteration, to ``memory.jsonl``, ``histograms`` by name to ``histograms.jsonl``, and those of self-checks
        to ``checks.jsonl``. Values that are not finite become null."""
        line = json.dumps({name: _plain(value) for name, value in metrics.items()}, allow_nan=False)
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            found = [{"step": metrics.get("step"), **histograms}] if histograms else []
            for path, rows in (
                (self.memory_path, memory),
                (self.histograms_path, found),
                (self.checks_path, checks),
            ):
                if rows:
                    with path.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise_if_full(error, self.path)
            raise

    def say(self, text: str) -> None:
        """Append what the run said to ``log.jsonl``. A disk that is full does not end a run here, where nothing of the
        run would be lost."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with suppress(OSError), self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "text": text}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line logged so far; a last line cut short by a kill is left out. Raises `UserError` for a damaged
        file."""
        return read_json_lines(self.metrics_path, growing=True) if self.metrics_path.is_file() else []

    def rewind(self, step: int) -> None:
        """Forget metrics and samples after ``step``, so that a resumed run does not tell its story twice."""
        if self.metrics_path.is_file():
            kept = [line for line in self.metrics() if _step_of(line) <= step]
            write_atomically(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))
        for path in (self.memory_path, self.histograms_path, self.checks_path):
            if path.is_file():
                rows = read_json_lines(path, growing=True)
                write_atomically(path, "".join(json.dumps(r) + "\n" for r in rows if _step_of(r) <= step))
        for folder in [*self.samples_path.glob("step_*"), *self.heldout_path.glob("step_*")]:
            digits = folder.name.removeprefix("step_")
            if digits.isdigit() and int(digits) > step:
                shutil.rmtree(folder)

    def saved(self, step: int) -> dict[str, Path]:
        """Folders with samples of this step, by kind: ``samples`` that were trained on, ``heldout`` of evaluations."""
        folders = (place / _step(step) for place in (self.samples_path, self.heldout_path))
        return {folder.parent.name: folder for folder in folders if folder.is_dir()}

    def save_samples(
        self,
        step: int,
        samples: Samples,
        scores: Scores,
        advantage: Tensor,
        *,
        seeds: Tensor,
        folder: Path | None = None,
        rows: Tensor | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
        drawn: Drawn | None = None,
    ) -> Path | None:
        """Save ``samples``: images as ``samples/step_000123/0000.png``, completions and all else in ``samples.jsonl``
        beside them: prompt, every reward, total, advantage, seed. Returns the folder, None without samples.

        ``scores``, ``advantage`` [N] and ``seeds`` [N] belong to them row by row, or to the N of which ``rows`` [n]
        were chosen. ``facts`` are further keys of each of these samples, ``drawn`` pictures of them and of all.
        """
        if not len(samples):
            return None
        numbers = range(len(samples)) if rows is None else rows.tolist()
        if drawn is not None and drawn.each is not None:
            samples = replace(samples, images=drawn.each)
        folder = (folder or self.samples_path) / _step(step)
        partial = folder.with_name(f".tmp-{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            lines = [
                _save_sample(partial, row, samples)
                | _numbers(number, scores, advantage, seeds)
                | (dict(facts[row]) if facts else {})
                for row, number in enumerate(numbers)
            ]
            if drawn is not None:
                write_overviews(partial, drawn.together, drawn.moving)
            (partial / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise_if_full(error, self.path)
            raise
        return folder


def spaced(total: int, count: int) -> Tensor:
    """[count] numbers of evenly spaced samples of ``total``, all of them where there are no more."""
    return torch.arange(0, total, max(1, total // count))[:count] if count else torch.zeros(0, dtype=torch.int64)


def _step(step: int) -> str:
    return f"step_{step:06d}"


def _step_of(line: Mapping[str, Any]) -> float:
    step = line.get("step", 0)
    return step if isinstance(step, int | float) else math.inf  # not a line of ours


def _save_sample(folder: Path, row: int, samples: Samples) -> dict[str, Any]:
    prompt = samples.prompts[row]
    facts: dict[str, Any] = {"prompt": prompt.text, "prompt_id": prompt.id}
    if isinstance(prompt.columns.get("tag"), str):
        facts["tag"] = prompt.columns["tag"]
    if samples.images is not None:
        image = samples.images[row]
        name = f"{row:04d}.png"
        write_image(folder / name, image if image.ndim == 3 else image[len(image) // 2])  # a video's middle frame
        facts = {"file": name, **facts}
    if samples.completions is not None:
        facts["completion"] = samples.completions[row]
    return facts


def _numbers(row: int, scores: Scores, advantage: Tensor, seeds: Tensor) -> dict[str, Any]:
    named = zip(scores.names, scores.rewards[row].tolist(), strict=True)
    return {
        "rewards": {name: _plain(value) for name, value in named},
        "total": _plain(float(scores.total[row])),
        "advantage": _plain(float(advantage[row])),
        "seed": int(seeds[row]),
    }


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
