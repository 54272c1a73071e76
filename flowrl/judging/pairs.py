"""Samples of two models at equal prompt and noise, from what evaluations left on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import UserError
from flowrl.records.directory import RunDirectory
from flowrl.records.sample_files import FILE_KEYS
from flowrl.report.gallery import inside
from flowrl.report.record import Snapshot, finite, read_lines, read_results, snapshots

BASE = "base"
REWARDS = "rewards"
"""The suite of a run's own rewards."""
PNG = b"\x89PNG\r\n\x1a\n"
WORDS = (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME")
HOW = (
    "judge needs samples of both at equal prompt and seed: `flowrl eval RUN --suite NAME` makes them, and a run with"
    " eval.every keeps log.samples of each of its evaluations"
)


@dataclass(frozen=True)
class Sample:
    """What one model made, and what the reward says of it."""

    picture: Path | None
    text: str | None
    reward: float | None

    @property
    def content(self) -> bytes:
        """What is shown."""
        return (self.text or "").encode() if self.picture is None else _without_words(self.picture.read_bytes())


@dataclass(frozen=True)
class Pair:
    """Two samples of one prompt and noise."""

    key: str
    """Of the prompt and what is shown: a vote belongs to exactly these samples, whatever is evaluated later."""
    prompt: str
    tag: str
    this: Sample
    other: Sample


@dataclass(frozen=True)
class Pairs:
    """What is judged."""

    this: str
    """The model that wins or loses, in words."""
    other: str
    """The one it is compared with; votes are told apart by it."""
    measure: str
    """The reward that people's preferences are compared with."""
    pairs: Sequence[Pair]
    equal: int
    """Pairs of samples that are the same, which are left out: there is nothing to prefer."""


@dataclass(frozen=True)
class _Made:
    """Samples of one model, by what is equal in another's: place or prompt and seed."""

    rows: Mapping[tuple[str, ...], Mapping[str, Any]]
    folder: Mapping[tuple[str, ...], Path]
    measure: str


def find_pairs(run: Path, other: str = BASE) -> Pairs:
    """Pairs of a run, or of the folder that ``flowrl eval --out`` wrote, against its own ``base`` or against another of
    both. Evaluations with ``flowrl eval`` go before the held-out samples that a run keeps while it trains.

    Raises `UserError` where there are no samples of both, or they were made with other noise.
    """
    run = _known(run)
    if other == BASE:
        made, against = _eval_arm(run, "tuned", False), _eval_arm(run, BASE, False)
        this, label = _tuned(run), BASE
        if made is None or against is None:
            kept = snapshots(run / "heldout")
            if len(kept) < 2:
                raise UserError(f"{run} has no samples of base and tuned; {HOW}")
            made, against = _heldout(kept[-1]), _heldout(kept[0])
            this, label = f"iteration {kept[-1].step}", BASE if kept[0].step == 0 else f"iteration {kept[0].step}"
    else:
        rival = _known(Path(other))
        this, label = str(run.resolve()), str(rival.resolve())
        if rival.resolve() == run.resolve():
            raise UserError(f"--other: {other} is the run itself; name another one, or base")
        made, against = _eval_arm(run, "tuned", True), _eval_arm(rival, "tuned", True)
        if made is not None and against is not None:
            _check_seeds(run, rival)
        else:
            kept = [snapshots(place / "heldout") for place in (run, rival)]
            if not all(kept):
                lacking = run if not kept[0] and made is None else rival
                raise UserError(f"{lacking} has no samples to compare; {HOW}")
            made, against = (_heldout(each[-1]) for each in kept)
    return _paired(made, against, this, label)


def _known(path: Path) -> Path:
    """A run, or the folder of an evaluation."""
    if (path / "results.json").is_file():
        return path
    return RunDirectory.open(path).path


def _evaluation(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """``(folder, content of results.json)`` of an evaluation."""
    folder = path if (path / "results.json").is_file() else path / "eval"
    found = read_results(folder / "results.json")
    return None if found is None else (folder, found)


def _tuned(path: Path) -> str:
    """What an evaluation's tuned model is called: with its checkpoint, because a later one is another model."""
    arms = (_evaluation(path) or (path, {}))[1].get("manifest", {}).get("arms", {})
    checkpoint = arms.get("tuned", {}).get("checkpoint")
    return f"tuned ({checkpoint})" if checkpoint else "tuned"


def _eval_arm(path: Path, arm: str, any_arm: bool) -> _Made | None:
    """Samples of an arm of an evaluation; with ``any_arm`` of its only one, where it has no such arm."""
    found = _evaluation(path)
    if found is None:
        return None
    folder, results = found
    rows: dict[tuple[str, ...], Mapping[str, Any]] = {}
    folders: dict[tuple[str, ...], Path] = {}
    measure = ""
    suites = results.get("suites", {})
    for suite, facts in sorted(suites.items(), key=lambda item: item[0].partition("@")[0] != REWARDS):
        arms = list(facts.get("arms", {}))
        chosen = arms[0] if any_arm and arm not in arms and len(arms) == 1 else arm
        for row in read_lines(folder / chosen / suite / "results.jsonl"):
            key = (str(row.get("filename")), str(row.get("prompt")))
            if key not in rows:  # suites of the same prompts share their samples; the run's own rewards go first
                primary = str(facts.get("primary", ""))
                measures = row.get("measures")
                rows[key] = {**row, "total": measures.get(primary) if isinstance(measures, dict) else None}
                folders[key], measure = folder / chosen, measure or f"{suite}/{primary}"
    return _Made(rows, folders, measure) if rows else None


def _heldout(kept: Snapshot) -> _Made:
    keys = {(str(row.get("prompt_id")), str(row.get("seed")), str(row.get("prompt"))): row for row in kept.rows}
    return _Made(keys, dict.fromkeys(keys, kept.folder), "total reward")


def _check_seeds(run: Path, rival: Path) -> None:
    seeds = [(_evaluation(path) or (path, {}))[1].get("manifest", {}).get("seed") for path in (run, rival)]
    if seeds[0] != seeds[1]:
        raise UserError(
            f"{run} was evaluated with --seed {seeds[0]} and {rival} with --seed {seeds[1]}, so noise and not only the"
            " model is another; evaluate both with one seed"
        )


def _paired(made: _Made, against: _Made, this: str, other: str) -> Pairs:
    found = list(_pairs(made, against))
    if not found:
        raise UserError(f"{this} and {other} have no prompt and seed in common; {HOW}")
    different = [pair for pair in found if pair.this.content != pair.other.content]
    if not different:
        raise UserError(f"all {len(found)} samples of {this} and {other} are equal: there is nothing to prefer")
    return Pairs(this, other, made.measure, different, len(found) - len(different))


def _pairs(made: _Made, against: _Made) -> Iterator[Pair]:
    for key, row in made.rows.items():
        if key not in against.rows:
            continue
        this, other = (_sample(each.folder[key], each.rows[key]) for each in (made, against))
        if this is not None and other is not None:
            prompt, tag = str(row.get("prompt", "")), str(row.get("tag") or "")
            shown = (prompt.encode(), this.content, other.content)
            digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in shown)).hexdigest()
            yield Pair(digest[:20], prompt, tag, this, other)


def _without_words(picture: bytes) -> bytes:
    """A PNG without its texts and times, in which evaluations write what made it: it would tell which model that was,
    and make equal pictures differ. Chunks are length, kind, content and checksum (PNG, third edition, section 5.3)."""
    if not picture.startswith(PNG):
        return picture
    kept, place = [PNG], len(PNG)
    while place < len(picture):
        end = place + 12 + int.from_bytes(picture[place : place + 4], "big")
        if picture[place + 4 : place + 8] not in WORDS:
            kept.append(picture[place:end])
        place = end
    return b"".join(kept)


def _sample(folder: Path, row: Mapping[str, Any]) -> Sample | None:
    """What a row tells of; None where its picture is missing."""
    score = finite(row.get("total"))
    reward = None if score != score else score
    if isinstance(row.get("completion"), str):
        return Sample(None, row["completion"], reward)
    name = next((str(row[key]) for key in FILE_KEYS if key in row), "")
    path = inside(folder, name)
    return Sample(path, None, reward) if path.is_file() else None
