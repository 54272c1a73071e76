"""Which images and completions the page shows: samples over time, and the same prompt and seed before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl.records.sample_files import FILE_KEYS, MOVING, SUFFIXES, TOGETHER
from flowrl.report.numbers import number, spaced
from flowrl.report.pictures import Show, readable
from flowrl.report.record import Snapshot, finite, read_lines, snapshots

PAIRS = 24
"""Of base and tuned samples that are shown, at most."""
OVERVIEWS = {TOGETHER: "all episodes", MOVING: "the first episode, as it goes on"}
"""Pictures beside those of samples, and what they show."""
KINDS = ("samples", "heldout")
"""Folders with samples of a run: those that were trained on, and those of the evaluations while training."""
MOST_TOKENS = 2000
MOVES = Path(MOVING).suffix

Card = dict[str, Any]


def sample_cards(snapshot: Snapshot, show: Show) -> list[Card]:
    """The samples of an iteration, as they were saved; nothing is picked by its score."""
    heldout = snapshot.folder.parent.name == "heldout"
    cards = (_card(snapshot.folder, row, show, advantage=not heldout) for row in snapshot.rows)
    return [card for card in (*(_overview(snapshot, file, show) for file in OVERVIEWS), *cards) if card]


def _overview(snapshot: Snapshot, file: str, show: Show) -> Card | None:
    """A picture of many samples, or one that moves, where there is one."""
    path = snapshot.folder / file
    source = show(path) if path.is_file() else None
    if source is None:
        return None
    known = {"prompt_id": None, "seed": None, "total": None, "advantage": None, "rewards": {}}
    return {"prompt": OVERVIEWS[file], "image": source, **known}


def heldout_pairs(run: Path, show: Show) -> dict[str, Any] | None:
    """``{first, last, pairs}``: held-out samples of the first and the latest evaluation, at equal prompt and seed.
    None before there are two evaluations."""
    found = snapshots(run / "heldout")
    if len(found) < 2:
        return None
    first, last = found[0], found[-1]
    after = {_identity(row): row for row in last.rows}
    rows = [row for row in first.rows if _identity(row) in after]
    pairs: list[dict[str, Any]] = []
    for file, title in OVERVIEWS.items():
        sides = _overview(first, file, show), _overview(last, file, show)
        if all(sides):
            pairs.append({"prompt": title, "tag": "", "before": sides[0], "after": sides[1]})
    for row in (rows[index] for index in spaced(len(rows), PAIRS)):
        before = _card(first.folder, row, show, advantage=False)
        then = _card(last.folder, after[_identity(row)], show, advantage=False)
        if before and then:
            pairs.append({"prompt": before["prompt"], "tag": "", "before": before, "after": then})
    return {"first": first.step, "last": last.step, "pairs": pairs} if pairs else None


def evaluation_pairs(run: Path, evaluation: Mapping[str, Any] | None, show: Show) -> dict[str, Any] | None:
    """``{suite, pairs}``: the first sample of evenly spaced prompts of every tag, of the first suite that ``flowrl
    eval`` made of base and tuned."""
    folder = run / "eval"
    for suite, facts in (evaluation or {}).get("suites", {}).items():
        base, tuned = (_scored_lines(folder / arm, suite) for arm in ("base", "tuned"))
        names = _spread_over_tags([name for name in base if name in tuned], base)
        pairs = _evaluated_overviews(folder, names, show)
        pairs += [pair for name in names if (pair := _pair(folder, name, base[name], tuned[name], show))]
        if pairs:
            return {"suite": str(facts.get("title", suite)), "pairs": pairs}
    return None


def _evaluated_overviews(folder: Path, names: Sequence[str], show: Show) -> list[Card]:
    """Those of base and tuned, in the folder of the samples with these ``names``."""
    pairs = []
    for file, title in OVERVIEWS.items():
        paths = [
            inside(folder / arm, f"{Path(name).parts[0]}/{file}") for name in names[:1] for arm in ("base", "tuned")
        ]
        sides = [show(path) for path in paths if path.is_file()]
        if len(sides) == 2 and all(sides):
            before, after = ({"image": side, "marks": [], "correct": None, "reason": ""} for side in sides)
            pairs.append({"prompt": title, "tag": "", "before": before, "after": after})
    return pairs


def _identity(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return str(row.get("prompt_id")), str(row.get("seed"))


def _card(folder: Path, row: Mapping[str, Any], show: Show, advantage: bool = True) -> Card | None:
    """A sample with what was written beside it; None where its image is missing."""
    seed = row.get("seed")
    card: Card = {
        "prompt": readable(str(row.get("prompt", ""))),
        "prompt_id": row.get("prompt_id") if isinstance(row.get("prompt_id"), int | str) else None,
        "seed": None if seed is None else str(seed),  # it has more digits than a browser's numbers
        "total": _known(row.get("total")),
        "advantage": _known(row.get("advantage")) if advantage else None,
        "rewards": {str(k): _known(v) for k, v in _mapping(row.get("rewards")).items()},
    }
    return card if _add_media(card, folder, row, show) else None


def _add_media(card: Card, folder: Path, row: Mapping[str, Any], show: Show) -> bool:
    """Add the completion of a row, or the image that it names; whether there is one. Of an episode that was drawn, the
    completion is the line below its picture."""
    text = row.get("completion")
    if isinstance(text, str) and "file" in row and (source := show(inside(folder, str(row["file"])))):
        card["image"], card["line"] = source, readable(text)
        return True
    if isinstance(row.get("completion"), str):
        card["text"] = readable(row["completion"])
        tokens = _tokens(row.get("tokens"))
        if tokens:
            card["tokens"] = tokens
        return True
    name = next((str(row[key]) for key in FILE_KEYS if key in row), None)
    if name is None and str(row.get("filename", "")).endswith(SUFFIXES):
        name = str(row["filename"])
    source = show(inside(folder, name)) if name else None
    if source:
        card["image"] = source
    return source is not None


def _tokens(tokens: Any) -> dict[str, list[Any]] | None:
    """The recorded tokens of a completion, where they are whole and not too many to colour one by one."""
    tokens = _mapping(tokens)
    texts = tokens.get("text")
    if not isinstance(texts, list) or not 0 < len(texts) <= MOST_TOKENS:
        return None
    out: dict[str, list[Any]] = {"text": [readable(str(text)) for text in texts]}
    for key in ("logp", "order", "entropy", "advantage"):
        values = tokens.get(key)
        if isinstance(values, list) and len(values) == len(texts):
            out[key] = [_known(value) for value in values]
    return out if len(out) > 1 else None


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


def _pair(folder: Path, name: str, base: Mapping[str, Any], tuned: Mapping[str, Any], show: Show) -> Card | None:
    sides = []
    for arm, row in (("base", base), ("tuned", tuned)):
        measures = {k: v for k, v in _mapping(row.get("measures")).items() if k != "correct"}
        card: Card = {
            "marks": [(str(label), number(finite(value))) for label, value in measures.items()],
            "correct": row["correct"] if isinstance(row.get("correct"), bool) else None,
            "reason": str(row.get("reason") or "").replace("\n", "; "),
        }
        if not _add_media(card, folder / arm, {**row, "filename": name}, show):
            return None
        sides.append(card)
    tag, prompt = str(base.get("tag") or ""), readable(str(base.get("prompt", "")))
    return {"prompt": prompt, "tag": tag, "before": sides[0], "after": sides[1]}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _known(value: Any) -> float | None:
    found = finite(value)
    return None if found != found else found


def inside(folder: Path, name: str) -> Path:
    """A file below ``folder``; anything that leads out of it, or is no image, is treated as missing."""
    missing = folder / "missing.png"
    try:
        path = (folder / name).resolve()
        good = path.is_relative_to(folder.resolve()) and path.suffix.lower() in (*SUFFIXES, MOVES) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # no file can have this name, or links lead in a circle
        return missing
    return path if good else missing
