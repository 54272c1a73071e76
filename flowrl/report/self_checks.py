"""The page's section about self-checks: what each said last, and when it was outside its healthy range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowrl.checks.registry import CHECKS, span
from flowrl.report.numbers import number
from flowrl.report.record import finite


@dataclass(frozen=True)
class Row:
    """A self-check of a run."""

    name: str
    what: str
    value: str
    healthy: str
    """Its healthy range."""
    when: str
    outside: int
    """How often it was outside."""
    state: str
    """``bad``: outside now, ``unclear``: it was before, ``good`` otherwise."""
    meaning: str
    """What that means and what to change, where it was outside."""


def rows(lines: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The checks of a run from the lines of ``checks.jsonl``, those outside first; checks that this version does not
    know keep their names."""
    known = {check.name: check for check in CHECKS}
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        seen.setdefault(str(line.get("check")), []).append(line)
    found = []
    for name, each in seen.items():
        last, outside = each[-1], [line for line in each if line.get("healthy") is False]
        state = "bad" if last.get("healthy") is False else "unclear" if outside else "good"
        check = known.get(name)
        low, high = finite(last.get("low")), last.get("high")
        healthy = span(low, math.inf if high is None else finite(high)) if low == low else ""
        when = f"iteration {number(finite(last.get('step')))}"
        meaning = f"{check.outside}; {check.fix}" if check and outside else ""
        what = check.what if check else ""
        found.append(Row(name, what, number(finite(last.get("value"))), healthy, when, len(outside), state, meaning))
    return sorted(found, key=lambda row: ("bad", "unclear", "good").index(row.state))
