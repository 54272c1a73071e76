"""Which images the page shows: samples over time, and base beside tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.evaluation.layout import FILE_KEYS, SUFFIXES
from flowrl.report.charts import number
from flowrl.report.pictures import Picture, embed
from flowrl.report.record import Record, Snapshot, read_lines

MOMENTS = 8  # iterations shown, first and last included
PER_MOMENT = 8
PAIRS = 24


@dataclass(frozen=True)
class Moment:
    """Samples of one iteration."""

    step: int
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Strip:
    """One held-out prompt and seed through training."""

    prompt: str
    pictures: Sequence[tuple[int, Picture]]
    """``(iteration, picture)``."""


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed before and after training."""

    prompt: str
    tag: str
    base: Picture
    tuned: Picture


def moments(record: Record) -> list[Moment]:
    """Evenly spaced iterations, the same places of each: nothing is picked by its score."""
    out = []
    for index in spaced(len(record.snapshots), MOMENTS):
        snapshot = record.snapshots[index]
        rows = [snapshot.rows[row] for row in spaced(len(snapshot.rows), PER_MOMENT)]
        pictures = [picture for row in rows if (picture := _sample(snapshot, row))]
        if pictures:
            out.append(Moment(snapshot.step, pictures))
    return out


def strips(record: Record) -> list[Strip]:
    """Held-out samples of evenly spaced evaluations side by side; rows are evenly spaced prompts."""
    if len(record.heldout) < 2:
        return []
    shown = [record.heldout[index] for index in spaced(len(record.heldout), MOMENTS)]
    first = shown[0].rows
    out = []
    for row in (first[index] for index in spaced(len(first), PER_MOMENT)):
        same = [(s, r) for s in shown for r in s.rows if _identity(r) == _identity(row)]
        found = [(snapshot.step, picture) for snapshot, r in same if (picture := _sample(snapshot, r, credit=False))]
        if found:
            out.append(Strip(str(row.get("prompt", "")), found))
    return out


def pairs(record: Record) -> list[Pair]:
    """First sample of evenly spaced prompts of every tag of the first suite that has both arms."""
    folder = record.path / "eval"
    for suite in (record.evaluation or {}).get("suites", {}):
        base = _verdicts(folder / "base", suite)
        tuned = _verdicts(folder / "tuned", suite)
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


def _sample(snapshot: Snapshot, row: Mapping[str, Any], credit: bool = True) -> Picture | None:
    name = next((str(row[key]) for key in FILE_KEYS if key in row), None)
    image = embed(_inside(snapshot.folder, name)) if name else None
    if image is None:
        return None
    scores = [pair for pair in _scores(row) if credit or pair[0] != "advantage"]
    marks = [(label, number(value)) for label, value in scores]
    return Picture(image.source, image.pixelated, str(row.get("prompt", "")), tuple(marks))


def _scores(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    scores = row["rewards"] if isinstance(row.get("rewards"), Mapping) else {}
    pairs = [*scores.items()]
    if row.get("total") not in scores.values():  # with one weighted reward the total only repeats it
        pairs.insert(0, ("total", row.get("total")))
    pairs.append(("advantage", row.get("advantage")))
    return [(str(label), float(value)) for label, value in pairs if isinstance(value, int | float)]


def _verdicts(folder: Path, suite: str) -> dict[str, Mapping[str, Any]]:
    """File name (equal in both arms) to its line of results.jsonl."""
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
    before, after = (embed(_inside(folder / arm, name)) for arm in ("base", "tuned"))
    if before is None or after is None:
        return None
    pictures = [
        Picture(
            image.source,
            image.pixelated,
            str(row.get("reason") or "").replace("\n", "; "),
            _details(row),
            _correct(row),
        )
        for image, row in ((before, base), (after, tuned))
    ]
    return Pair(str(base.get("prompt", "")), str(base.get("tag", "")), *pictures)


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
