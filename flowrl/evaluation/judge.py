"""Second stage: verdicts on samples, from nothing but the files; run it again at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.evaluation.results import Judged
from flowrl.evaluation.suites import Suite, tag_of
from flowrl.records.sample_files import COMPLETION, Entry, image_size, read_completion, read_images, write_text
from flowrl.types import Prompt, Samples

BATCH_PIXELS = 2**22  # sixteen images of 512 px, thousands of small ones
BATCH_COMPLETIONS = 1024


def judge(suite: Suite, entries: Sequence[Entry], root: Path, file: Path, advance: Callable[[int], None]) -> Judged:
    """Judge the samples of one arm and write ``file``, a line per sample in GenEval's schema. ``advance`` is told how
    many more have been judged.

    ``filename`` is relative to ``root``. Beside GenEval's keys a line has ``measures``, every number of the suite, and
    ``completion`` where the samples are texts, which are also measured in tokens and characters.
    """
    prompts = {prompt.id: prompt for prompt in suite.prompts}
    width = max(len(entry.files) for entry in entries)
    present = np.zeros((len(entries), width))
    measures: dict[str, np.ndarray] = {}
    lines, reasons = [], []
    jobs = [(row, column) for row, entry in enumerate(entries) for column in range(len(entry.files))]
    size = _batch_size(entries[0].files[0])
    for start in range(0, len(jobs), size):
        part = jobs[start : start + size]
        paths = [entries[row].files[column] for row, column in part]
        samples, sizes = _read([prompts[entries[row].index] for row, _ in part], paths)
        verdicts = suite.judge(samples)
        for index, (row, column) in enumerate(part):
            numbers = {name: float(values[index]) for name, values in verdicts.measures.items()}
            numbers |= {name: float(values[index]) for name, values in sizes.items()}
            for name, value in numbers.items():
                measures.setdefault(name, np.full((len(entries), width), np.nan))[row, column] = value
            present[row, column] = 1
            reasons += verdicts.reasons[index]
            name = paths[index].relative_to(root) if paths[index].is_relative_to(root) else paths[index]
            line = _line(samples.prompts[index], numbers, verdicts.reasons[index], verdicts.details[index])
            said = {} if samples.completions is None else {"completion": samples.completions[index]}
            lines.append({"filename": str(name), **line, **said})
        advance(len(part))
    write_text(file, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))
    return Judged(measures, present, reasons)


def _batch_size(path: Path) -> int:
    if path.suffix == COMPLETION:
        return BATCH_COMPLETIONS
    width, height = image_size(path)
    return max(1, BATCH_PIXELS // (width * height))


def _read(prompts: Sequence[Prompt], paths: Sequence[Path]) -> tuple[Samples, dict[str, list[int]]]:
    """The samples, and the sizes of those that are texts."""
    if paths[0].suffix != COMPLETION:
        return Samples(prompts, read_images(paths)), {}
    texts, tokens = zip(*map(read_completion, paths), strict=True)
    return Samples(prompts, completions=texts), {"tokens": list(tokens), "characters": [len(text) for text in texts]}


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
