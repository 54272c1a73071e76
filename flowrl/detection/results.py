"""GenEval results made elsewhere, such as with the official mmdet tool: read, checked and summed up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.detection.metadata import Metadata, check
from flowrl.detection.objects import Detection
from flowrl.errors import UserError

KEYS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")


@dataclass(frozen=True)
class Result:
    """One image's line of an official ``results.jsonl``."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: Metadata
    detections: tuple[Detection, ...]
    """Those above the threshold it was judged with; without masks and colours, which the format does not hold."""


def read_results(path: str | Path) -> list[Result]:
    """The lines of a results file. Raises `UserError` for one that is missing or of another schema."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"GenEval results {path} do not exist")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"GenEval results {path} are not UTF-8 text ({error}); give the tool's results.jsonl"
        ) from error
    results = [_result(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not results:
        raise UserError(f"GenEval results {path} are empty; write them with the official evaluate_images.py")
    return results


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """What the official ``summary_scores.py`` prints; ``overall`` is the unweighted mean of the tags' accuracies.

    ``{"images", "prompts", "image_accuracy", "prompt_accuracy" (any image of a prompt), "tags": {tag: accuracy},
    "overall"}``; prompts are told apart by their metadata.
    """
    prompts: dict[str, list[bool]] = {}
    tags: dict[str, list[bool]] = {}
    for result in results:
        prompts.setdefault(json.dumps(result.metadata, sort_keys=True), []).append(result.correct)
        tags.setdefault(result.tag, []).append(result.correct)
    accuracies = {tag: sum(found) / len(found) for tag, found in tags.items()}
    return {
        "images": len(results),
        "prompts": len(prompts),
        "image_accuracy": sum(result.correct for result in results) / len(results),
        "prompt_accuracy": sum(map(any, prompts.values())) / len(prompts),
        "tags": accuracies,
        "overall": sum(accuracies.values()) / len(accuracies),
    }


def _result(text: str, where: str) -> Result:
    row = _json(text, where)
    missing = [key for key in KEYS if not isinstance(row, dict) or key not in row]
    if missing:
        raise UserError(f"{where}: not a GenEval result, {missing[0]!r} is missing (expected {', '.join(KEYS)})")
    if not isinstance(row["correct"], bool):
        raise UserError(f"{where}: 'correct' should be true or false, found {row['correct']!r}")
    metadata = _json(row["metadata"], f"{where}, metadata")
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: 'metadata' should be a JSON object as text, found {row['metadata']!r}")
    check(metadata)
    named = {key: str(row[key]) for key in ("filename", "tag", "prompt", "reason")}
    detections = _detections(_json(row["details"], f"{where}, details"), where)
    return Result(**named, correct=row["correct"], metadata=metadata, detections=detections)


def _detections(details: object, where: str) -> tuple[Detection, ...]:
    if not isinstance(details, dict):
        raise UserError(f"{where}: 'details' should map labels to boxes, found {details!r}")
    found = []
    for label, rows in details.items():
        for row in rows if isinstance(rows, list) else [rows]:
            if not isinstance(row, list) or len(row) != 5 or not all(isinstance(n, int | float) for n in row):
                raise UserError(f"{where}: a box should be [x0, y0, x1, y1, score], found {row!r}")
            x0, y0, x1, y1, score = map(float, row)
            found.append(Detection(label, score, (x0, y0, x1, y1)))
    return tuple(found)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); repair it") from error
