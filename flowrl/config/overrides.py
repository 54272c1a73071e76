"""``key.path=value`` overrides of a config, and files of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.config.yaml_text import DEPTH, parse_yaml, read_yaml
from flowrl.errors import UserError, short_repr, shorten

NAMED = ("algorithm", "rewards")
"""Keys whose values may be a bare name; an override below one turns the name into ``{use: name}``."""


FILES = (".yaml", ".yml")
"""How the name of a file of overrides ends."""
COMMAND_LINE = "command line"
"""Where an override is written that is not in a file."""


@dataclass(frozen=True)
class Override:
    """A change of one key."""

    path: tuple[str, ...]
    value: Any
    place: str
    """The file it is written in, or `COMMAND_LINE`."""
    text: str
    """What to call it in a message."""

    @property
    def key(self) -> str:
        """The path with dots."""
        return ".".join(self.path)


def read_overrides(texts: Sequence[str]) -> list[Override]:
    """What ``key.path=value`` texts and YAML files of such keys change, in the order in which they are given.

    Mappings in a file are merged into the config's, key by key; everything else, lists too, takes the place of what
    was there. Raises `UserError` for a text that is neither, and for a file that cannot be read.
    """
    found: list[Override] = []
    for text in texts:
        if "=" not in text and text.lower().endswith(FILES):
            values = read_yaml(Path(text))
            found += [Override(path, value, text, f"{text}: {'.'.join(path)}") for path, value in _leaves(values, ())]
        else:
            found.append(_parsed(text))
    return found


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str | Override]) -> dict[str, Any]:
    """A copy of ``values`` changed by ``key.path=value`` texts, or by what `read_overrides` made of them; a number in
    the path is a list index.

    Values are YAML (``null``, ``1e-4``, ``[a, b]``). Raises `UserError` for a text that is not an override.
    """
    changed = deepcopy(dict(values))
    for given in overrides:
        found = _parsed(given) if isinstance(given, str) else given
        try:
            _set(changed, found.path, deepcopy(found.value), found.key)
        except UserError as error:
            raise UserError(f"{found.text}: {error}") from None
    return changed


def _leaves(values: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything in a mapping that is no mapping with something in it."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _parsed(text: str) -> Override:
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path) or len(path) > DEPTH:
        raise UserError(f"override {shorten(text, 80)!r} should look like key=value, for example train.iterations=50")
    try:
        new = parse_yaml(value)
    except UserError as error:
        quoted = f"; if it is a text, put it in quotes: '{shorten(key, 60)}=\"...\"'"
        raise UserError(f"override {shorten(text, 80)!r}: {error}{quoted}") from None
    return Override(tuple(path), new, COMMAND_LINE, f"override {shorten(text, 80)!r}")


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
