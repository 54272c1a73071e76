"""A config as text that a person reads: every key, its value, whether it was set, and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from flowrl.config.schema import Config


@dataclass(frozen=True)
class ConfigLine:
    """One key."""

    key: str
    value: str
    origin: str
    """``set`` in the file or by an override, or ``default``."""
    meaning: str


def config_lines(config: Config, algorithm: Sequence[ConfigLine] = ()) -> list[ConfigLine]:
    """Every key in the schema's order; ``algorithm``, if there are any, in the place of that key."""
    found: list[ConfigLine] = []
    for line in _lines(config, "", ""):
        found += algorithm if algorithm and line.key == "algorithm" else [line]
    return found


def config_table(config: Config, algorithm: Sequence[ConfigLine] = ()) -> str:
    """`config_lines` in aligned columns: key, value, ``set`` or ``default``, meaning."""
    rows = config_lines(config, algorithm)
    wide = min(34, max(len(row.key) for row in rows))
    broad = min(34, max(len(row.value) for row in rows))
    return "\n".join(f"{r.key:<{wide}}  {r.value:<{broad}}  {r.origin:<7}  {r.meaning}" for r in rows)


def _lines(section: BaseModel, prefix: str, inherited: str) -> Iterator[ConfigLine]:
    for name, field in type(section).model_fields.items():
        value: object = section.__dict__[name]
        origin = inherited or ("set" if name in section.model_fields_set else "default")
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _lines(value, f"{key}.", "default" if origin == "default" else "")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                yield from _lines(item, f"{key}.{index}.", "")
        elif isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
            for label, item in value.items():
                yield from _lines(item, f"{key}.{label}.", "")
        else:
            yield ConfigLine(key, _text(value), origin, field.description or "")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
