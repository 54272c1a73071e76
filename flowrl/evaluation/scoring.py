"""Second stage of an evaluation: scores of samples, from nothing but the files; run it again at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.evaluation.results import VariantScores
from flowrl.evaluation.suite import Suite, prompt_tag
from flowrl.records.sample_files import COMPLETION, Entry, image_size, read_completion, read_images, write_text
from flowrl.types import Prompt, Samples

BATCH_PIXELS = 2**22  # sixteen images of 512 px, thousands of small ones
BATCH_COMPLETIONS = 1024


@dataclass(frozen=True)
class _Scored:
    """One scored sample."""

    row: int
    """Of its prompt among the entries."""
    column: int
    """Among the samples of its prompt."""
    numbers: Mapping[str, float]
    reasons: Sequence[str]
    line: dict[str, Any]


def score_samples(
    suite: Suite, entries: Sequence[Entry], root: Path, file: Path, advance: Callable[[int], None]
) -> VariantScores:
    """Score the samples of one variant and write ``file``, a line per sample in GenEval's schema. ``advance`` is told
    how many more have been scored.

    ``filename`` is relative to ``root``. Beside GenEval's keys a line has ``measures``, every number of the suite, and
    ``completion`` where the samples are texts, which are also measured in tokens and characters.
    """
    shape = len(entries), max(len(entry.files) for entry in entries)
    present = np.zeros(shape)
    measures: dict[str, np.ndarray] = {}
    scored = list(_score(suite, entries, root, advance))
    for one in scored:
        present[one.row, one.column] = 1
        for name, value in one.numbers.items():
            measures.setdefault(name, np.full(shape, np.nan))[one.row, one.column] = value
    lines = (json.dumps(one.line, ensure_ascii=False, allow_nan=False) + "\n" for one in scored)
    write_text(file, "".join(lines))
    return VariantScores(measures, present, [reason for one in scored for reason in one.reasons])


def _score(suite: Suite, entries: Sequence[Entry], root: Path, advance: Callable[[int], None]) -> Iterator[_Scored]:
    """The samples of all entries, a batch at a time."""
    prompts = {prompt.id: prompt for prompt in suite.prompts}
    jobs = [(row, column) for row, entry in enumerate(entries) for column in range(len(entry.files))]
    size = _batch_size(entries[0].files[0])
    for start in range(0, len(jobs), size):
        part = jobs[start : start + size]
        paths = [entries[row].files[column] for row, column in part]
        samples, lengths = _read([prompts[entries[row].index] for row, _ in part], paths)
        scores = suite.score(samples)
        columns = {**scores.measures, **lengths}
        for index, (row, column) in enumerate(part):
            numbers = {name: float(values[index]) for name, values in columns.items()}
            path = paths[index].relative_to(root) if paths[index].is_relative_to(root) else paths[index]
            line = _line(samples.prompts[index], numbers, scores.reasons[index], scores.details[index])
            text = {} if samples.completions is None else {"completion": samples.completions[index]}
            yield _Scored(row, column, numbers, scores.reasons[index], {"filename": str(path), **line, **text})
        advance(len(part))


def _batch_size(path: Path) -> int:
    if path.suffix == COMPLETION:
        return BATCH_COMPLETIONS
    width, height = image_size(path)
    return max(1, BATCH_PIXELS // (width * height))


def _read(prompts: Sequence[Prompt], paths: Sequence[Path]) -> tuple[Samples, dict[str, list[int]]]:
    """The samples, and the lengths of those that are texts."""
    if paths[0].suffix != COMPLETION:
        return Samples(prompts, read_images(paths)), {}
    texts, tokens = zip(*map(read_completion, paths), strict=True)
    return Samples(prompts, completions=texts), {"tokens": list(tokens), "characters": [len(text) for text in texts]}


def _line(
    prompt: Prompt, numbers: Mapping[str, float], reasons: Sequence[str], details: Mapping[str, Any]
) -> dict[str, Any]:
    """``tag, prompt, correct, reason, metadata, details`` as official GenEval writes them (the last two JSON text)."""
    measures = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    correct = measures.get("correct")
    return {
        "tag": prompt_tag(prompt),
        "prompt": prompt.text,
        "correct": None if correct is None else bool(correct),
        "reason": "\n".join(reasons),
        "metadata": json.dumps({**prompt.columns, "prompt": prompt.text}, ensure_ascii=False),
        "details": json.dumps(details),
        "measures": measures,
    }
