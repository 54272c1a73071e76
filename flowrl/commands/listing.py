"""Algorithms as plain data, for people and programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flowrl.algorithms import build, describe, names, paper, summary
from flowrl.parts.algorithm import Algorithm
from flowrl.records import checkpoint
from flowrl.records.directory import RunDirectory

SCORE = re.compile(r"eval/([^/]+)/mean")
"""Metrics that are scores: the total (``reward``) and every reward by itself."""


def algorithm_rows(name: str | None = None) -> list[dict[str, Any]]:
    """``{name, paper, families, parts, summary}`` of one algorithm or of all."""
    return [_row(each) for each in ([name] if name is not None else names())]


def checkpoint_rows(run: Path) -> list[dict[str, Any]]:
    """``{name, step, time, scores, notes}`` of a run's checkpoints, oldest first. ``scores`` are the means of the
    evaluation that each was saved with, whatever rewards were watched; ``notes`` say which is latest and best, and what
    is wrong (sizes are compared, contents are not read). Raises `UserError` where there is no run."""
    root = RunDirectory.open(run).checkpoints
    newest, best = checkpoint.pointed(root, checkpoint.LATEST), checkpoint.pointed(root, checkpoint.BEST)
    rows = []
    for path in checkpoint.every(root):
        manifest = checkpoint.told(path)
        problem = checkpoint.damage(path, contents=False)
        missing = manifest.get("not_exported") or {}
        notes = [
            *(["latest"] if path.name == newest else []),
            *(["best"] if path.name == best else []),
            *([f"cannot be read: {problem}"] if problem else []),
            *(f"without {name}/" for name in missing),
        ]
        metrics = manifest.get("metrics")
        named = metrics.items() if isinstance(metrics, dict) else ()
        scores = {found[1]: value for key, value in named if (found := SCORE.fullmatch(key))}
        rows.append({"name": path.name, "step": checkpoint.step_of(path), "time": str(manifest.get("time", "")),
                     "scores": scores, "notes": notes})  # fmt: skip
    return rows


def differences(one: str, other: str) -> list[list[str]]:
    """``[slot, value in one, value in other]`` for every part that is not equal, then field by field within a part of
    the same kind."""
    left, right = flat(describe(build(one))), flat(describe(build(other)))
    keys = dict.fromkeys([*left, *right])
    return [[key, _shown(left, key), _shown(right, key)] for key in keys if left.get(key) != right.get(key)]


def part_text(part: Any) -> str:
    """A part on one line: ``Clipped(low=0.0001, high=0.0001)``."""
    if isinstance(part, dict) and "use" in part:
        fields = ", ".join(f"{key}={part_text(value)}" for key, value in part.items() if key != "use")
        return f"{part['use']}({fields})"
    if isinstance(part, list):
        return "[" + ", ".join(part_text(item) for item in part) + "]"
    return str(part)


def parts_of(algorithm: Algorithm) -> dict[str, Any]:
    """Slot -> part as plain data."""
    return {slot: part for slot, part in describe(algorithm).items() if slot not in ("use", "families", "min_group")}


def _row(name: str) -> dict[str, Any]:
    algorithm = build(name)
    return {
        "name": name,
        "paper": paper(name),
        "families": list(algorithm.families),
        "parts": parts_of(algorithm),
        "summary": summary(name),
    }


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Described parts by their dotted keys."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: part_text(value)}


def _shown(values: dict[str, Any], key: str) -> str:
    return str(values.get(key, ""))
