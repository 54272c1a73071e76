"""Algorithms as plain data, for people and programs."""

from __future__ import annotations

from typing import Any

from flowrl.composition import build, describe, families, paper, preset_names, summary
from flowrl.parts.algorithm import Algorithm


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
