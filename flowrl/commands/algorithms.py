"""Algorithms as plain data, for people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from flowrl.composition import SLOTS, build, describe, families, paper, preset_names, shipped_parts, summary
from flowrl.errors import UserError, did_you_mean
from flowrl.parts.algorithm import Algorithm, Family
from flowrl.renamed import plain


def algorithm_rows(name: str | None = None) -> list[dict[str, Any]]:
    """``{name, paper, families, parts, summary}`` of one algorithm, or of all. Raises `UserError` for an unknown
    name."""
    return [_row(each) for each in ([name] if name is not None else preset_names())]


def _row(name: str) -> dict[str, Any]:
    algorithm = build(name)
    return {
        "name": name,
        "paper": paper(name),
        "families": list(families(name)),
        "parts": parts_of(algorithm),
        "summary": summary(name),
    }


def chosen(
    rows: Sequence[dict[str, Any]], family: str | None = None, slot: str | None = None, source: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a family; that fill a slot of their own choice (``loss_masks``) or with a part
    (``objective=Clipped``, at any depth); whose paper has the text ``source``. Raises `UserError` for an unknown
    family, slot or part."""
    found = list(rows)
    if family is not None:
        if family not in get_args(Family):
            raise UserError(f"--family: there is no {family!r}{did_you_mean(family, get_args(Family))}")
        found = [row for row in found if family in row["families"]]
    if slot is not None:
        key, _, part = slot.partition("=")
        if key not in SLOTS:
            raise UserError(f"--slot: there is no slot {key!r}{did_you_mean(key, SLOTS)}")
        known = shipped_parts(key)
        if part and plain(part) not in map(plain, known):
            raise UserError(f"--slot: {key} has no part {part!r}{did_you_mean(part, known)}")
        found = [row for row in found if _fills(row["parts"], key, part)]
    return found if source is None else [row for row in found if source.lower() in row["paper"].lower()]


def _fills(parts: object, slot: str, part: str) -> bool:
    """Whether anything in described parts stands in a slot, and is the part, if one is named."""
    if isinstance(parts, list):
        return any(_fills(item, slot, part) for item in parts)
    if not isinstance(parts, dict):
        return False
    here = parts.get(slot)
    names = [item["use"] for item in (here if isinstance(here, list) else [here]) if isinstance(item, dict)]
    return any(not part or plain(name) == plain(part) for name in names) or any(
        _fills(value, slot, part) for value in parts.values()
    )


def parts_of(algorithm: Algorithm) -> dict[str, Any]:
    """Slot -> part as plain data."""
    return {slot: part for slot, part in describe(algorithm).items() if slot not in ("use", "families", "min_group")}


def differences(one: str, other: str) -> list[list[str]]:
    """``[slot, value in one, value in other]`` for every part that is not equal, then field by field within a part of
    the same kind. Raises `UserError` for an unknown name."""
    left, right = flat(describe(build(one))), flat(describe(build(other)))
    keys = dict.fromkeys([*left, *right])
    return [[key, left.get(key, ""), right.get(key, "")] for key in keys if left.get(key) != right.get(key)]


def part_text(part: object) -> str:
    """A part on one line: ``Clipped(low=0.0001, high=0.0001)``."""
    if isinstance(part, dict) and "use" in part:
        fields = ", ".join(f"{key}={part_text(value)}" for key, value in part.items() if key != "use")
        return f"{part['use']}({fields})"
    if isinstance(part, list):
        return "[" + ", ".join(part_text(item) for item in part) + "]"
    return str(part)


def flat(value: object, prefix: str = "") -> dict[str, str]:
    """Described parts by their dotted keys, values as text."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: part_text(value)}


def without_paper(line: str, source: str) -> str:
    """A summary without the paper that a table names beside it: ``GRPO (R1, arXiv:1.2).`` -> ``GRPO (R1).``"""
    return line.replace(f" ({source})", "").replace(f", {source}", "").replace(f"{source}, ", "")
