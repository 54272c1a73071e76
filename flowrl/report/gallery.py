"""Which images or completions the page shows: samples over time, and base beside tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowrl.records.sample_files import FILE_KEYS, SUFFIXES
from flowrl.report.charts import number
from flowrl.report.pictures import Picture, embed, readable, widest
from flowrl.report.record import Record, Snapshot, read_lines

ITERATIONS = 8  # iterations shown, first and last included
PER_MOMENT = 8
PAIRS = 24
PICKED = 3  # of the best and of the worst held-out completions


@dataclass(frozen=True)
class IterationSamples:
    """Samples of one iteration."""

    step: int
    pictures: Sequence[Picture]

    @property
    def column(self) -> str:
        """The column width it needs."""
        return widest(self.pictures)


@dataclass(frozen=True)
class PromptHistory:
    """One held-out prompt and seed through training."""

    prompt: str
    pictures: Sequence[tuple[int, Picture]]
    """``(iteration, picture)``."""

    @property
    def column(self) -> str:
        """The column width it needs."""
        return widest(picture for _, picture in self.pictures)


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed before and after training."""

    prompt: str
    tag: str
    before: Picture
    after: Picture

    @property
    def column(self) -> str:
        """The column width it needs."""
        return widest((self.before, self.after))


@dataclass(frozen=True)
class BestAndWorst:
    """Held-out completions of the last evaluation picked by their reward, beside those of the first."""

    first: int
    last: int
    """Iterations."""
    best: Sequence[Pair]
    worst: Sequence[Pair]


def iterations(record: Record) -> list[IterationSamples]:
    """Evenly spaced iterations, the same places of each: nothing is picked by its score."""
    out = []
    for index in spaced(len(record.snapshots), ITERATIONS):
        snapshot = record.snapshots[index]
        rows = [snapshot.rows[row] for row in spaced(len(snapshot.rows), PER_MOMENT)]
        pictures = [picture for row in rows if (picture := _sample(snapshot, row))]
        if pictures:
            out.append(IterationSamples(snapshot.step, pictures))
    return out


def heldout_histories(record: Record) -> list[PromptHistory]:
    """Held-out samples of evenly spaced evaluations side by side; rows are evenly spaced prompts."""
    if len(record.heldout) < 2:
        return []
    shown = [record.heldout[index] for index in spaced(len(record.heldout), ITERATIONS)]
    first = shown[0].rows
    out = []
    for row in (first[index] for index in spaced(len(first), PER_MOMENT)):
        same = [(s, r) for s in shown for r in s.rows if _identity(r) == _identity(row)]
        found = [(snapshot.step, picture) for snapshot, r in same if (picture := _sample(snapshot, r, advantage=False))]
        if found:
            out.append(PromptHistory(str(row.get("prompt", "")), found))
    return out


def best_and_worst(record: Record) -> BestAndWorst | None:
    """The best and the worst held-out completions saved last, and what their prompts and seeds gave at first.

    Of texts only: a page of pictures is taken in at a glance, of texts the telling ones would be missed.
    """
    if len(record.heldout) < 2:
        return None
    first, last = record.heldout[0], record.heldout[-1]
    before = {_identity(row): row for row in first.rows}
    rows = [row for row in last.rows if "completion" in row and _identity(row) in before and _total(row) is not None]
    rows.sort(key=lambda row: -(_total(row) or 0.0))
    count = min(PICKED, len(rows) // 2)
    if not count:
        return None

    def pair(row: Mapping[str, Any]) -> Pair | None:
        then = _sample(first, before[_identity(row)], advantage=False)
        now = _sample(last, row, advantage=False)
        if then is None or now is None:
            return None
        return Pair(str(row.get("prompt", "")), "", replace(then, caption=""), replace(now, caption=""))

    best, worst = ([p for row in part if (p := pair(row))] for part in (rows[:count], rows[::-1][:count]))
    return BestAndWorst(first.step, last.step, best, worst)


def base_and_tuned(record: Record) -> list[Pair]:
    """First sample of evenly spaced prompts of every tag of the first suite that has base and tuned."""
    folder = record.path / "eval"
    for suite in (record.evaluation or {}).get("suites", {}):
        base = _scored_lines(folder / "base", suite)
        tuned = _scored_lines(folder / "tuned", suite)
        names = _spread_over_tags([name for name in base if name in tuned], base)
        found = [pair for name in names if (pair := _pair(folder, name, base[name], tuned[name]))]
        if found:
            return found
    return []


def spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` indices, evenly, with both ends."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _identity(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("prompt_id"), row.get("seed")


def _sample(snapshot: Snapshot, row: Mapping[str, Any], advantage: bool = True) -> Picture | None:
    name = next((str(row[key]) for key in FILE_KEYS if key in row), None)
    scores = [pair for pair in _scores(row) if advantage or pair[0] != "advantage"]
    marks = tuple((label, number(value)) for label, value in scores)
    return _picture(snapshot.folder, name, row, str(row.get("prompt", "")), marks)


def _picture(
    folder: Path,
    name: str | None,
    row: Mapping[str, Any],
    caption: str,
    marks: tuple[tuple[str, str], ...],
    correct: bool | None = None,
) -> Picture | None:
    """The completion of a row, or the image that it names; None where that is missing."""
    if isinstance(row.get("completion"), str):
        return Picture("", False, caption, marks, correct, readable(row["completion"]))
    image = embed(_inside(folder, name)) if name else None
    return Picture(image.source, image.pixelated, caption, marks, correct) if image else None


def _total(row: Mapping[str, Any]) -> float | None:
    total = row.get("total")
    return float(total) if isinstance(total, int | float) else None


def _scores(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    scores = row["rewards"] if isinstance(row.get("rewards"), Mapping) else {}
    pairs = [*scores.items()]
    if row.get("total") not in scores.values():  # with one weighted reward the total only repeats it
        pairs.insert(0, ("total", row.get("total")))
    pairs.append(("advantage", row.get("advantage")))
    return [(str(label), float(value)) for label, value in pairs if isinstance(value, int | float)]


def _scored_lines(folder: Path, suite: str) -> dict[str, Mapping[str, Any]]:
    """File name (equal for base and tuned) to its line of results.jsonl."""
    return {str(row.get("filename")): row for row in read_lines(folder / suite / "results.jsonl")}


def _spread_over_tags(names: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    firsts = [name for name in names if Path(name).stem == "0000"]
    tags = dict.fromkeys(str(rows[name].get("tag")) for name in firsts)
    per_tag = max(1, PAIRS // max(1, len(tags)))
    out = []
    for tag in tags:
        members = [name for name in firsts if str(rows[name].get("tag")) == tag]
        out += [members[index] for index in spaced(len(members), max(2, per_tag))]
    return out


def _pair(folder: Path, name: str, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Pair | None:
    before, after = (
        _picture(
            folder / variant, name, row, str(row.get("reason") or "").replace("\n", "; "), _details(row), _correct(row)
        )
        for variant, row in (("base", base), ("tuned", tuned))
    )
    if before is None or after is None:
        return None
    return Pair(str(base.get("prompt", "")), str(base.get("tag", "")), before, after)


def _correct(row: Mapping[str, Any]) -> bool | None:
    return row["correct"] if isinstance(row.get("correct"), bool) else None


def _details(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    measures = row.get("measures")
    if not isinstance(measures, Mapping):
        return ()
    return tuple(
        (name, number(float(value)))
        for name, value in measures.items()
        if isinstance(value, int | float) and name != "correct"
    )


def _inside(folder: Path, name: str) -> Path:
    """A file below ``folder``; anything that leads out of it, or is no image, is treated as missing."""
    path = (folder / name).resolve()
    good = path.is_relative_to(folder.resolve()) and path.suffix.lower() in SUFFIXES
    return path if good else folder / "missing.png"
