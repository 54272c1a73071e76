"""Parts as plain data."""

from __future__ import annotations

import dataclasses

from flowrl.composition.slots import part_name


def describe(part: object) -> dict[str, object]:
    """A part (or an algorithm) as plain data: ``{"use": name, field: value, ...}``, as a config would have it."""
    assert dataclasses.is_dataclass(part) and not isinstance(part, type)
    values = {field.name: _plain(getattr(part, field.name)) for field in dataclasses.fields(part)}
    return {"use": part_name(type(part)), **values}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return describe(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
