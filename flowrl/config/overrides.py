"""``key.path=value`` overrides of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from flowrl.config.yaml_text import DEPTH, parse_yaml
from flowrl.errors import UserError, short_repr, shorten

NAMED = ("algorithm", "rewards")
"""Keys whose values may be a bare name; an override below one turns the name into ``{use: name}``."""


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``values`` changed by ``key.path=value`` texts; a number in the path is a list index.

    Values are YAML (``null``, ``1e-4``, ``[a, b]``). Raises `UserError` for a text that is not an override.
    """
    changed = deepcopy(dict(values))
    for text in overrides:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path) or len(path) > DEPTH:
            raise UserError(
                f"override {shorten(text, 80)!r} should look like key=value, for example train.iterations=50"
            )
        try:
            new = parse_yaml(value)
        except UserError as error:
            quoted = f"; if it is a text, put it in quotes: '{shorten(key, 60)}=\"...\"'"
            raise UserError(f"override {shorten(text, 80)!r}: {error}{quoted}") from None
        try:
            _set(changed, path, new, key)
        except UserError as error:
            raise UserError(f"override {shorten(text, 80)!r}: {error}") from None
    return changed


def _set(values: dict[str, Any], path: Sequence[str], new: object, key: str) -> None:
    here: dict[str, Any] | list[Any] = values
    for depth, part in enumerate(path[:-1]):
        slot = _slot(here, part)
        child = here[slot] if isinstance(here, list) else here.get(slot)
        if isinstance(child, str) and path[0] in NAMED:
            child = {"use": child}
        if child is None:
            child = {}
        if not isinstance(child, dict | list):
            raise UserError(f"{'.'.join(path[: depth + 1])} is {short_repr(child)}, so it has no {path[depth + 1]!r}")
        here[slot] = child
        here = child
    here[_slot(here, path[-1])] = new


def _slot(here: dict[str, Any] | list[Any], part: str) -> Any:
    if isinstance(here, dict):
        return part
    if not (part.isascii() and part.isdigit() and len(part) < 10) or int(part) >= len(here):
        raise UserError(f"{part!r} should be an index from 0 to {len(here) - 1}" if here else "the list is empty")
    return int(part)
