"""How far two judges of the same images agree: ours, and the official tool's results that the user brings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowrl.detection.self_test import overlap
from flowrl.evaluation.statistics import Floats, wilson

OFFICIAL = "official"
"""Measure with the other judge's verdicts, beside our ``correct``."""
SAME_BOX = 0.5
"""Intersection over union from which two boxes of a label are of the same object (COCO's lenient threshold)."""
Boxes = Mapping[str, Sequence[Sequence[float]]]
"""``{label: [[x0, y0, x1, y1, score], ...]}``, as official GenEval writes them."""


def agreement(ours: Floats, theirs: Floats, tags: Sequence[str]) -> dict[str, Any]:
    """``{"overall", "tags": {tag: ...}}`` of verdicts [P, S] (0, 1, NaN: none); ``tags`` [P].

    Each is ``images`` (judged by both), ``both`` (right for both), ``ours`` and ``theirs`` (right for one alone),
    ``neither``, ``agree`` (share, with its ``wilson`` interval) and ``kappa``.
    """
    rows = np.array(tags)
    found = {tag: _counts(ours[rows == tag], theirs[rows == tag]) for tag in dict.fromkeys(tags)}
    return {"overall": _counts(ours, theirs), "tags": found}


def kappa(both: int, ours: int, theirs: int, neither: int) -> float:
    """Cohen's kappa (1960): ``(p - e) / (1 - e)``, where p is the share of equal verdicts and e that of two judges who
    call as many images right, each for itself. NaN where both always give one verdict, the same."""
    total = both + ours + theirs + neither
    if not total:
        return math.nan
    first, second = (both + ours) / total, (both + theirs) / total
    chance = first * second + (1 - first) * (1 - second)
    return ((both + neither) / total - chance) / (1 - chance) if chance < 1 else math.nan


def shared_boxes(ours: Boxes, theirs: Boxes) -> tuple[float, float]:
    """Share of their boxes that ours have, and of ours that theirs have; NaN where there are none.

    Boxes of one label are matched one to one, the best overlaps first.
    """
    matched = sum(_matched(boxes, theirs.get(label, ())) for label, boxes in ours.items())
    mine, others = sum(map(len, ours.values())), sum(map(len, theirs.values()))
    return matched / others if others else math.nan, matched / mine if mine else math.nan


def _counts(ours: Floats, theirs: Floats) -> dict[str, Any]:
    known = ~(np.isnan(ours) | np.isnan(theirs))
    a, b = ours[known] == 1, theirs[known] == 1
    cells = [int(np.sum(part)) for part in (a & b, a & ~b, ~a & b, ~a & ~b)]
    total, agreed, value = sum(cells), cells[0] + cells[3], kappa(*cells)
    return {
        "images": total,
        **dict(zip(("both", "ours", "theirs", "neither"), cells, strict=True)),
        "agree": agreed / total if total else None,
        "wilson": list(wilson(agreed, total)) if total else None,
        "kappa": None if math.isnan(value) else value,
    }


def _matched(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> int:
    pairs = [(overlap(a, b), i, j) for i, a in enumerate(ours) for j, b in enumerate(theirs)]
    left, right = set[int](), set[int]()
    for same, i, j in sorted(pairs, reverse=True):
        if same >= SAME_BOX and i not in left and j not in right:
            left.add(i)
            right.add(j)
    return len(left)
