"""Parts as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from flowrl.composition.slots import part_name


def describe(part: object) -> Any:
    """A part as plain data: ``{"use": name, field: value, ...}``, as a config would have it."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {"use": part_name(type(part)), **values}
    if isinstance(part, tuple):
        return [describe(item) for item in part]
    return part
