"""A run's checkpoints as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.records import checkpoint_folder
from flowrl.records.directory import RunDirectory
from flowrl.records.manifest import find_damage, read_manifest

SCORE = re.compile(r"eval/([^/]+)/mean")
"""Metrics that are scores: the total (``reward``) and every reward by itself."""


def checkpoint_rows(run: Path) -> list[dict[str, Any]]:
    """``{name, step, time, scores, notes}`` of a run's checkpoints, oldest first.

    ``scores`` are the means of the evaluation that each was saved with, of weight 0 or not; ``notes`` say which is
    latest and best, and what is wrong (sizes are compared, contents are not read). Raises `UserError` where there is no
    run.
    """
    root = RunDirectory.open(run).checkpoints
    pointers = {
        name: checkpoint_folder.read_pointer(root, name) for name in (checkpoint_folder.LATEST, checkpoint_folder.BEST)
    }
    return [_row(path, pointers) for path in checkpoint_folder.step_directories(root)]


def _row(path: Path, pointers: Mapping[str, str | None]) -> dict[str, Any]:
    manifest = read_manifest(path)
    metrics = manifest.get("metrics")
    items = metrics.items() if isinstance(metrics, dict) else ()
    notes = [pointer for pointer, name in pointers.items() if name == path.name]
    if problem := find_damage(path, contents=False):
        notes.append(f"cannot be read: {problem}")
    return {
        "name": path.name,
        "step": checkpoint_folder.step_of(path),
        "time": str(manifest.get("time", "")),
        "scores": {match[1]: value for key, value in items if (match := SCORE.fullmatch(key))},
        "notes": [*notes, *(f"without {name}/" for name in manifest.get("not_exported") or {})],
    }
