"""GenEval's description of what a prompt asks for, checked where it comes in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flowrl.detection.objects import COLORS
from flowrl.errors import UserError, did_you_mean

Metadata = Mapping[str, Any]
"""``{"tag", "include": [{"class", "count", "color"?, "position"?: [relation, clause]}], "exclude"?, "prompt"}``."""

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COUNTING = "counting"
RELATIONS = ("left of", "right of", "above", "below")


def check(metadata: Metadata, labels: Collection[str] | None = None, colors: Collection[str] = COLORS) -> None:
    """Raise `UserError` unless metadata follows GenEval's schema and asks only for what can be detected.

    ``labels`` are the detector's objects; None skips that test. The reference of a position is an earlier clause.
    """
    where = f"GenEval metadata of {metadata.get('prompt', metadata)!r}"
    include = metadata.get("include")
    if not isinstance(include, list | tuple) or not include:
        raise UserError(
            f"{where}: 'include' should be a list such as [{{'class': 'dog', 'count': 1}}], found {include!r}"
        )
    for number, clause in enumerate(include):
        _clause(clause, where, labels)
        color = clause.get("color")
        if color is not None and color not in colors:
            raise UserError(f"{where}: there is no color {color!r}{did_you_mean(str(color), colors)}")
        if "position" in clause:
            _position(clause["position"], number, where)
    for clause in metadata.get("exclude") or ():
        _clause(clause, where, labels)


def _clause(clause: object, where: str, labels: Collection[str] | None) -> None:
    if not isinstance(clause, Mapping) or not isinstance(clause.get("class"), str):
        raise UserError(f"{where}: a clause should be like {{'class': 'dog', 'count': 1}}, found {clause!r}")
    count = clause.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{where}: the count of {clause['class']!r} should be 1 or more, found {count!r}")
    if labels is not None and clause["class"] not in labels:
        raise UserError(f"{where}: the detector knows no {clause['class']!r}{did_you_mean(clause['class'], labels)}")


def _position(position: object, number: int, where: str) -> None:
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise UserError(f"{where}: a position should be like ['left of', 0], found {position!r}")
    relation, reference = position
    if relation not in RELATIONS:
        raise UserError(f"{where}: there is no relation {relation!r}{did_you_mean(str(relation), RELATIONS)}")
    if not isinstance(reference, int) or not 0 <= reference < number:
        raise UserError(f"{where}: a position refers to an earlier clause by its number, found {reference!r}")
