"""Users' own parts and presets that a config names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flowrl.composition.slots import SLOTS, own_place
from flowrl.importing import Place


def own_code(spec: object) -> dict[str, Place]:
    """Where the user's own presets and parts are that ``algorithm: spec`` names, by key, such as
    ``algorithm.objective``. Nothing is imported. Raises `UserError` for a file without a name in it."""
    return dict(_own("algorithm", "algorithm", spec))


def _own(field: str, path: str, value: object) -> Iterator[tuple[str, Place]]:
    if isinstance(value, str) and (field == "algorithm" or field in SLOTS):
        place = own_place(value, path)
        if place is not None:
            yield path, place
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _own(field, f"{path}.{index}", item)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _own(field, path, inner) if key == "use" else _own(str(key), f"{path}.{key}", inner)
