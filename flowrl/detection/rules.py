"""GenEval's rules on detections (arXiv:2310.11513, djghosh13/geneval at af4902f): pure functions, no networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flowrl.detection.metadata import COUNTING, RELATIONS, Metadata
from flowrl.detection.objects import COLORS, Detection

Box = tuple[float, float, float, float]
Kept = dict[str, list[Detection]]
"""Detections that count, by label, most confident first."""


@dataclass(frozen=True)
class Rules:
    """The protocol's numbers; the defaults are the official ones."""

    threshold: float = 0.3
    """Detections count from above this confidence."""
    counting_threshold: float = 0.9
    """The same for prompts tagged ``counting``."""
    max_objects: int = 16
    """Detections per label, the most confident ones."""
    max_overlap: float = 1.0
    """Intersection over union from which the less confident of two boxes is dropped; 1 drops none."""
    margin: float = 0.1
    """Share of the two boxes' sizes by which an offset must exceed zero to be a relation."""

    def above(self, metadata: Metadata) -> float:
        """The confidence that a prompt's objects must exceed."""
        return self.counting_threshold if metadata.get("tag") == COUNTING else self.threshold


OFFICIAL = Rules()


@dataclass(frozen=True)
class Verdict:
    """What the rules say about one image."""

    correct: bool
    """GenEval's verdict: at least the objects asked for; more are wrong only where ``exclude`` says so."""
    strict: bool
    """Correct, and exactly the objects asked for, all in the colours and places asked for: then ``score`` is 1."""
    score: float
    """Mean of the clauses' terms, each in [0, 1]; see `graded`."""
    released: float
    """Mean of the terms of flow_grpo's reward server, which can be negative; see `released_terms`."""
    reasons: tuple[str, ...]
    """Why it is not correct, clause by clause in the official wording."""


def verify(detections: Iterable[Detection], metadata: Metadata, rules: Rules = OFFICIAL) -> Verdict:
    """Verify one image by all clauses of its metadata (see `metadata.check`).

    The detections that `to_color` names need a colour; ValueError where one has none.
    """
    kept = keep(detections, metadata, rules)
    reasons = _official(kept, metadata, rules)
    terms = graded(kept, metadata, rules)
    released = float(np.mean(released_terms(kept, metadata, rules) or [0.0]))
    return Verdict(not reasons, not reasons and min(terms) == 1.0, float(np.mean(terms)), released, tuple(reasons))


def keep(detections: Iterable[Detection], metadata: Metadata, rules: Rules = OFFICIAL) -> Kept:
    """The detections that count for a prompt: confident enough, at most ``max_objects`` per label, sorted."""
    least = rules.above(metadata)
    kept: Kept = {}
    for found in sorted(detections, key=lambda detection: -detection.score):
        if found.score > least:
            kept.setdefault(found.label, []).append(found)
    return {label: _apart(group[: rules.max_objects], rules.max_overlap) for label, group in kept.items()}


def to_color(kept: Kept, metadata: Metadata) -> list[Detection]:
    """The detections whose colour decides: the most confident ones of every clause with a colour and enough objects."""
    needed: list[Detection] = []
    for clause in metadata.get("include") or ():
        group = kept.get(clause["class"], [])
        if clause.get("color") and len(group) >= clause["count"]:
            needed += [found for found in group[: clause["count"]] if not any(found is other for other in needed)]
    return needed


def relations(subject: Box, reference: Box, margin: float = OFFICIAL.margin) -> list[str]:
    """How ``subject`` lies to ``reference``: none, one or two of `RELATIONS`.

    The offset of the centres is shrunk towards 0 by ``margin`` times the sum of both sizes, per axis, and divided by
    the length of the offset before shrinking; a component beyond 1/2 is a relation. On a diagonal both hold.
    """
    a, b = (np.asarray(box, float).reshape(2, 2) for box in (subject, reference))
    offset = a.mean(0) - b.mean(0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - margin * sizes, 0)
    if np.all(np.abs(shrunk) < 1e-3):
        return []
    x, y = shrunk / np.linalg.norm(offset)
    holds = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return [name for name, true in zip(RELATIONS, holds, strict=True) if true]


def graded(kept: Kept, metadata: Metadata, rules: Rules = OFFICIAL) -> list[float]:
    """Terms in [0, 1] whose mean is the continuous score: 1 - |found - wanted| / wanted of every clause, and one more
    for its colour (likewise) and its position (0 or 1).

    As in flow_grpo's reward server, colour and position give 0 unless the number of objects is exact; unlike there, no
    term falls below 0 and a wrong position gives one term. A clause of ``exclude`` about another object gives 0 or 1.
    """
    terms, exact = [], []
    for clause in metadata.get("include") or ():
        wanted, group = clause["count"], kept.get(clause["class"], [])
        mine = [max(0.0, 1 - abs(len(group) - wanted) / wanted)]
        right = len(group) == wanted
        if clause.get("color"):
            mine.append(_colors(group).count(clause["color"]) / wanted if right else 0.0)
        if clause.get("position"):
            relation, reference = clause["position"]
            targets = exact[reference]
            placed = right and targets is not None and _misplaced(relation, group, targets, rules) is None
            mine.append(float(placed))
        exact.append(group if min(mine) == 1 else None)
        terms += mine
    included = {clause["class"] for clause in metadata.get("include") or ()}
    for clause in metadata.get("exclude") or ():
        if clause["class"] not in included:
            terms.append(float(len(kept.get(clause["class"], [])) < clause["count"]))
    return terms


def released_terms(kept: Kept, metadata: Metadata, rules: Rules = OFFICIAL) -> list[float]:
    """The terms of flow_grpo's GenEval reward (reward_server/gen_eval.py and NVlabs/DiffusionNFT 24af555), as released.

    1 - |found - wanted| / wanted of every clause, which is negative beyond twice the wanted number. Where the number is
    not exact, one 0 for colour or position. Else the same for the colour; and for the position, if the colours were
    right, a 0 for every subject that does not lie so, until the first, and then a 1 in any case: a wrong position gives
    (1 + 1 + 0 + 1) / 4. ``exclude`` is not read.
    """
    terms: list[float] = []
    exact: list[list[Detection] | None] = []
    for clause in metadata.get("include") or ():
        wanted, group = clause["count"], kept.get(clause["class"], [])
        terms.append(1 - abs(wanted - len(group)) / wanted)
        right = len(group) == wanted
        if not right and ("color" in clause or "position" in clause):
            terms.append(0.0)
        if right and "color" in clause:
            colored = _colors(group).count(clause["color"])
            terms.append(1 - abs(wanted - colored) / wanted)
            right = colored == wanted
        if right and "position" in clause:
            relation, reference = clause["position"]
            targets = exact[reference]
            right = targets is not None and _misplaced(relation, group, targets, rules) is None
            terms += [] if right else [0.0]
            terms += [] if targets is None else [1.0]
        exact.append(group if right else None)
    return terms


def _official(kept: Kept, metadata: Metadata, rules: Rules) -> list[str]:
    """The official verdict's reasons, none if correct: clauses are verified on their most confident objects only."""
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for clause in metadata.get("include") or ():
        name, wanted = clause["class"], clause["count"]
        found = kept.get(name, [])[:wanted]
        problem = None
        if len(found) < wanted:
            problem = f"expected {name}>={wanted}, found {len(found)}"
        elif clause.get("color"):
            problem = _miscolored(clause, found)
        if problem is None and clause.get("position"):
            relation, reference = clause["position"]
            targets = groups[reference]
            if targets is None:
                problem = f"no target for {name} to be {relation}"
            elif (actual := _misplaced(relation, found, targets, rules)) is not None:
                problem = f"expected {name} {relation} target, found {' and '.join(actual)} target"
        groups.append(found if problem is None else None)
        reasons += [problem] if problem else []
    for clause in metadata.get("exclude") or ():
        name, number = clause["class"], len(kept.get(clause["class"], []))
        if number >= clause["count"]:
            reasons.append(f"expected {name}<{clause['count']}, found {number}")
    return reasons


def _miscolored(clause: Metadata, found: Sequence[Detection]) -> str | None:
    name, color, colors = clause["class"], clause["color"], _colors(found)
    if colors.count(color) >= clause["count"]:
        return None
    order = [*COLORS, *sorted({*colors} - {*COLORS})]
    seen = ", ".join(f"{colors.count(other)} {other}" for other in order if other in colors)
    return f"expected {color} {name}>={clause['count']}, found {colors.count(color)} {color}; and {seen}"


def _misplaced(
    relation: str, found: Sequence[Detection], targets: Sequence[Detection], rules: Rules
) -> list[str] | None:
    """The relations of the first pair that does not hold; None if every pair does."""
    for subject in found:
        for target in targets:
            actual = relations(subject.box, target.box, rules.margin)
            if relation not in actual:
                return actual
    return None


def _colors(found: Sequence[Detection]) -> list[str]:
    colors = [detection.color for detection in found if detection.color is not None]
    if len(colors) != len(found):
        raise ValueError(f"the colour of {found[0].label!r} decides, but it was not classified")
    return colors


def _apart(group: list[Detection], max_overlap: float) -> list[Detection]:
    """Without those that overlap a more confident one."""
    if max_overlap >= 1:
        return group
    apart: list[Detection] = []
    for found in group:
        if all(_overlap(found.box, other.box) < max_overlap for other in apart):
            apart.append(found)
    return apart


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union, with the official extra pixel on every side length."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    either = area(*a) + area(*b) - both
    return both / either if either else 0.0
