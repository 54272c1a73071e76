"""What a run directory holds, read without trusting that all of it is there yet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowrl.config.yaml_text import read_yaml
from flowrl.errors import UserError
from flowrl.evaluation.results import SCHEMA
from flowrl.records.sample_files import read_json_lines
from flowrl.renamed import translated

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """``metrics.jsonl`` as columns; a key missing from a line is NaN there."""

    columns: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.columns["step"]) if "step" in self.columns else 0

    def __contains__(self, key: str) -> bool:
        return key in self.columns

    def __getitem__(self, key: str) -> Floats:
        """The column, or all NaN where the run never logged it."""
        return self.columns.get(key, np.full(len(self), math.nan))

    def starting(self, prefix: str, suffix: str = "") -> list[str]:
        """Keys between a prefix and a suffix, in the order they were first logged."""
        return [key for key in self.columns if key.startswith(prefix) and key.endswith(suffix)]

    def last(self, key: str) -> float:
        """The latest finite value, else NaN."""
        finite = self[key][np.isfinite(self[key])]
        return float(finite[-1]) if len(finite) else math.nan

    def worst(self, key: str) -> float:
        """The largest finite value, else NaN."""
        finite = self[key][np.isfinite(self[key])]
        return float(finite.max()) if len(finite) else math.nan

    def first(self, key: str) -> float:
        """The earliest finite value, else NaN."""
        finite = self[key][np.isfinite(self[key])]
        return float(finite[0]) if len(finite) else math.nan


@dataclass(frozen=True)
class Snapshot:
    """The samples saved at one iteration, and what was written beside them."""

    step: int
    folder: Path

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A line for each sample."""
        return read_lines(self.folder / "samples.jsonl")


@dataclass(frozen=True)
class Record:
    """What a run directory says of the run."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    metrics: Metrics
    environment: Mapping[str, Any]
    """Versions, commit and the like, where the run wrote them."""
    evaluation: Mapping[str, Any] | None
    """``eval/results.json``."""


def read(run: Path, metrics: Metrics | None = None) -> Record:
    """Read a run directory, its ``metrics`` too where they are not given. Raises UserError when there is no run there
    or a file of it is damaged."""
    config_path = run / "config.yaml"
    if not config_path.is_file():
        what = "has no config.yaml" if run.is_dir() else "does not exist"
        raise UserError(f"{run} is not a run directory: it {what}; name a directory that `flowrl train` wrote")
    config = translated(read_yaml(config_path))
    return Record(
        run,
        config,
        config_path.read_text(encoding="utf-8"),
        read_metrics(run / "metrics.jsonl") if metrics is None else metrics,
        _optional_json(run / "environment.json") or {},
        read_evaluation(run),
    )


def read_metrics(path: Path) -> Metrics:
    """Columns of a metrics file, one row per step, ascending; of a step logged twice (resume) the last."""
    rows: dict[float, Mapping[str, Any]] = {}
    for row in read_lines(path):
        step = finite(row.get("step", len(rows)))
        if math.isfinite(step):  # else not a line of ours
            rows[step] = row
    ordered = [rows[step] for step in sorted(rows)]
    keys = dict.fromkeys(key for row in ordered for key in row)
    columns = {key: np.array([finite(row.get(key)) for row in ordered]) for key in keys}
    if ordered and "step" not in columns:
        columns["step"] = np.array(sorted(rows))
    return Metrics(columns)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; none if it does not exist. A last line still being written is left out."""
    return read_json_lines(path, growing=True) if path.is_file() else []


def finite(value: object) -> float:
    """A number, or NaN for what is none: strict JSON has no NaN, so writers may use null or a string for it."""
    if isinstance(value, bool | int | float):
        try:
            return float(value) if math.isfinite(value) else math.nan
        except OverflowError:  # an integer of hundreds of digits
            return math.nan
    return math.nan


def snapshots(folder: Path) -> list[Snapshot]:
    """Those of ``samples`` or ``heldout``, in order."""
    found = [(path.name.removeprefix("step_"), path) for path in folder.glob("step_*")]
    return sorted(
        (Snapshot(int(digits), path) for digits, path in found if digits.isdigit()), key=lambda each: each.step
    )


def read_evaluation(run: Path) -> Mapping[str, Any] | None:
    """``eval/results.json`` of a run; None without one. Raises UserError for a damaged file or another schema."""
    return read_results(run / "eval" / "results.json")


def read_results(path: Path) -> Mapping[str, Any] | None:
    """As `read_evaluation`, of the file itself."""
    results = _optional_json(path)
    if results is not None and results.get("schema", SCHEMA) != SCHEMA:
        raise UserError(
            f"{path} has the schema {results['schema']}, and this version reads {SCHEMA}; run `flowrl eval` again, "
            "which keeps the samples"
        )
    return results


def _optional_json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and make it again") from error
    return value if isinstance(value, dict) else None
