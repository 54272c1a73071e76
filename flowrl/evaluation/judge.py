"""Second stage: verdicts on images, from nothing but the files; run it again at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.evaluation.layout import Entry, image_size, read_images, write_text
from flowrl.evaluation.results import Judged
from flowrl.evaluation.suites import Suite, tag_of
from flowrl.types import Prompt, Samples

BATCH_PIXELS = 2**22  # sixteen images of 512 px, thousands of small ones


def judge(suite: Suite, entries: Sequence[Entry], root: Path, file: Path) -> Judged:
    """Judge the images of one arm and write ``file``, a line per image in GenEval's schema.

    ``filename`` is relative to ``root``. Beside GenEval's keys a line has ``measures``: every number of the suite.
    """
    prompts = {prompt.id: prompt for prompt in suite.prompts}
    width = max(len(entry.images) for entry in entries)
    present = np.zeros((len(entries), width))
    measures: dict[str, np.ndarray] = {}
    lines, reasons = [], []
    jobs = [(row, column) for row, entry in enumerate(entries) for column in range(len(entry.images))]
    width_px, height_px = image_size(entries[0].images[0])
    size = max(1, BATCH_PIXELS // (width_px * height_px))
    for start in range(0, len(jobs), size):
        part = jobs[start : start + size]
        paths = [entries[row].images[column] for row, column in part]
        samples = Samples([prompts[entries[row].index] for row, _ in part], read_images(paths))
        verdicts = suite.judge(samples)
        for index, (row, column) in enumerate(part):
            numbers = {name: float(values[index]) for name, values in verdicts.measures.items()}
            for name, value in numbers.items():
                measures.setdefault(name, np.full((len(entries), width), np.nan))[row, column] = value
            present[row, column] = 1
            reasons += verdicts.reasons[index]
            name = paths[index].relative_to(root) if paths[index].is_relative_to(root) else paths[index]
            line = _line(prompts[entries[row].index], numbers, verdicts.reasons[index], verdicts.details[index])
            lines.append({"filename": str(name), **line})
    write_text(file, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))
    return Judged(measures, present, reasons)


def _line(
    prompt: Prompt, numbers: Mapping[str, float], reasons: Sequence[str], details: Mapping[str, Any]
) -> dict[str, Any]:
    """``tag, prompt, correct, reason, metadata, details`` as official GenEval writes them (the last two JSON text)."""
    plain = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    correct = plain.get("correct")
    return {
        "tag": tag_of(prompt),
        "prompt": prompt.text,
        "correct": None if correct is None else bool(correct),
        "reason": "\n".join(reasons),
        "metadata": json.dumps({**prompt.columns, "prompt": prompt.text}, ensure_ascii=False),
        "details": json.dumps(details),
        "measures": plain,
    }
