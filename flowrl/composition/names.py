"""The parts and keys that ``algorithm`` of a config names: a user's own, and those that are called otherwise today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flowrl import renamed
from flowrl.composition.slots import SLOTS, own_place
from flowrl.importing import Place

ROOT = "algorithm"
"""The key, and the slot of presets."""


def own_code(spec: object) -> dict[str, Place]:
    """Where the user's own presets and parts are that ``algorithm: spec`` names, by key, such as
    ``algorithm.objective``. Nothing is imported. Raises `UserError` for a file without a name in it."""
    places = {path: own_place(name, path) for path, _, name in _named(ROOT, ROOT, spec)}
    return {path: place for path, place in places.items() if place is not None}


def outdated(spec: object) -> list[str]:
    """A sentence for every key and name of ``algorithm: spec`` that is called otherwise today."""
    keys = [sentence for path in _keys(ROOT, spec) if (sentence := renamed.sentence(path))]
    new_names = [(path, name, renamed.new_name(slot, name)) for path, slot, name in _named(ROOT, ROOT, spec)]
    return keys + [f"{path}: {name} was renamed: write {new}" for path, name, new in new_names if new]


def _named(slot: str, path: str, value: object) -> Iterator[tuple[str, str, str]]:
    """``(key, slot, name)`` of every preset and part."""
    if isinstance(value, str) and (slot == ROOT or slot in SLOTS):
        yield path, slot, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _named(slot, f"{path}.{index}", item)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(slot, path, inner) if key == "use" else _named(str(key), f"{path}.{key}", inner)


def _keys(path: str, value: object) -> Iterator[str]:
    """Every key in full."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _keys(f"{path}.{index}", item)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{path}.{key}"
            yield from _keys(f"{path}.{key}", inner)
