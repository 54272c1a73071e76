"""A run as the page asks for it: one answer for each address, the same for a page that follows and for a saved one."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.errors import UserError, printable
from flowrl.records.directory import RunDirectory
from flowrl.records.owner import owner
from flowrl.report import alarms, curves, gallery, self_checks, summary
from flowrl.report.columns import Columns, Lines, Numbers, memory_row
from flowrl.report.pictures import Show
from flowrl.report.record import Record, Snapshot, read, read_evaluation, snapshots

MOST_SAID = 2000
"""Lines of the log that are sent at once, the latest."""


class Feed:
    """What the page knows of a run. Files are read as they grow; answers are plain values. Safe between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        run = RunDirectory(path)
        self._metrics = Columns(run.metrics_path)
        self._memory = Columns(run.memory_path, memory_row)
        self._histograms, self._said = Lines(run.histograms_path), Lines(run.log_path)
        self._checks = Lines(run.checks_path)
        self._watched = (run.metrics_path, run.memory_path, run.log_path, run.samples_path, run.heldout_path,
                         run.eval_path / "results.json", run.config_path)  # fmt: skip
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """What shows that something is new, without reading it: sizes and times of files, and who writes."""
        marks = []
        for path in self._watched:
            try:
                status = path.stat()
                marks.append(f"{status.st_size:x}.{status.st_mtime_ns:x}")
            except OSError:
                marks.append("")
        writer = owner(self.path)
        return {
            "mark": "-".join(marks),
            "running": writer is not None,
            "writer": None if writer is None else f"process {writer.process} on {writer.machine}",
            "stoppable": writer is not None and writer.here,
        }

    def overview(self) -> dict[str, Any]:
        """All that is told in words and tables, and which charts there are. Raises `UserError` as `record.read`."""
        with self._lock:
            self._metrics.update()
            self._memory.update()
            metrics, peaks = self._metrics.metrics(), self._memory.metrics()
            checked = self_checks.rows(self._checks.all())
        record = read(self.path, metrics)
        evaluation = record.evaluation or {}
        charts = [*curves.figures(metrics), *curves.memory_figures(peaks), *alarms.figures(metrics, record.config)]
        return {
            **described(record),
            "iterations": len(metrics),
            "tiles": summary.tiles(metrics, evaluation),
            "alarms": alarms.watched(metrics, record.config),
            "checks": checked,
            "figures": charts,
            "time": curves.time_shares(metrics),
            "tables": [summary.table(suite) for suite in evaluation.get("suites", {}).values()],
            "manifest": list(summary.flat(evaluation.get("manifest", {}))),
        }

    def metrics(self, cursor: str = "") -> dict[str, Any]:
        """Columns of what is new in ``metrics.jsonl``."""
        with self._lock:
            self._metrics.update()
            return self._metrics.since(cursor)

    def memory(self, cursor: str = "") -> dict[str, Any]:
        """Columns of what is new in ``memory.jsonl``."""
        with self._lock:
            self._memory.update()
            return self._memory.since(cursor)

    def histograms(self, cursor: str = "") -> dict[str, Any]:
        """What is new in ``histograms.jsonl``."""
        with self._lock:
            return self._histograms.since(cursor)

    def said(self, cursor: str = "") -> dict[str, Any]:
        """What is new in ``log.jsonl``."""
        with self._lock:
            return self._said.since(cursor, MOST_SAID, latest=True)

    def steps(self) -> dict[str, list[int]]:
        """Iterations of which samples were saved, by kind."""
        return {kind: [each.step for each in snapshots(self.path / kind)] for kind in gallery.KINDS}

    def samples(self, kind: str, step: int, show: Show) -> list[dict[str, Any]]:
        """Samples of an iteration; none where there are none."""
        folder = self.path / kind / f"step_{step:06d}"
        return gallery.sample_cards(Snapshot(step, folder), show) if kind in gallery.KINDS else []

    def pairs(self, show: Show) -> dict[str, Any]:
        """Base and tuned, at equal prompt and seed: of the evaluations while training, and of ``flowrl eval``."""
        return {
            "heldout": gallery.heldout_pairs(self.path, show),
            "evaluation": gallery.evaluation_pairs(self.path, read_evaluation(self.path), show),
        }


def described(record: Record) -> dict[str, Any]:
    """What a run is, from before its first iteration on."""
    return {
        "name": name_of(record),
        "path": str(record.path),
        "method": summary.method(record.config.get("algorithm")),
        "facts": [*summary.settings(record.config), *summary.flat(record.environment)],
        "config": list(summary.flat(record.config)),
        "config_text": record.config_text,
    }


def name_of(record: Record) -> str:
    """The run's name, or its folder's."""
    return str(record.config.get("name") or record.path.resolve().name)


def waiting(path: Path, reason: UserError) -> dict[str, Any]:
    """The overview of a run that cannot be read, or has not begun."""
    begun = (path / "config.yaml").is_file()
    return {
        "name": path.resolve().name,
        "path": str(path),
        "problem": str(reason) if begun else "The run has not begun yet.",
    }


def as_json(value: Any) -> str:
    """Strict JSON that is also safe inside a page: no NaN, no control characters that HTML forbids or that turn a text
    around, and no ``<``."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, Numbers):
        return value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {printable(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
