"""The options of a run's algorithm as a person reads them: every field of every part, its value and its meaning."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from flowrl.commands.algorithms import flat, part_text
from flowrl.composition import build, describe, find_preset, part_name, summary
from flowrl.config.listing import ConfigLine
from flowrl.parts.algorithm import Algorithm

HIDDEN = ("families", "min_group")
"""Fields of an algorithm that nobody sets."""

GENERAL = {
    "regularizers": "terms added to the loss",
    "ema_weights": "weight sets that follow the live one",
    "weight": "factor of this term in the loss",
    "to": "weight set that it compares with",
    "draws": "random draws per sample",
    "low": "how far the ratio may fall below 1 before it is clipped",
    "high": "how far the ratio may rise above 1 before it is clipped",
    "lam": "lambda of the sum over later decisions: 0 looks one ahead, 1 to the end",
    "cfg_grad": "guidance branches that gradient passes through: both, or cond alone",
    "guidance": "guidance scale; null = the model's own",
    "power": "exponent",
    "clip": "bound of the value before it is used",
}
"""Fields that mean the same in every part, where the part says nothing itself."""


def algorithm_lines(spec: str | Mapping[str, Any]) -> list[ConfigLine]:
    """``algorithm``, the preset's own arguments, and ``algorithm.<part>.<field>`` for every part of what ``spec``
    builds. A value is ``set`` where ``spec`` names it. Raises `UserError` as `build` does."""
    given: Mapping[str, Any] = {"use": spec} if isinstance(spec, str) else spec
    preset, algorithm = find_preset(given["use"]), build(spec)
    lines = [ConfigLine("algorithm", given["use"], "set", _first(summary(given["use"])))]
    for name, argument in inspect.signature(preset).parameters.items():
        value = given.get(name, argument.default)
        origin = "set" if name in given else "default"
        meaning = _note(preset.__doc__ or "", name) or _reaches(preset, name, value) or GENERAL.get(name, "")
        lines.append(ConfigLine(f"algorithm.{name}", part_text(value), origin, meaning))
    for field in dataclasses.fields(algorithm):
        if field.name not in HIDDEN:
            meaning = notes(type(algorithm)).get(field.name) or GENERAL.get(field.name, "")
            lines += _lines(f"algorithm.{field.name}", getattr(algorithm, field.name), given.get(field.name), meaning)
    return lines


def _lines(key: str, value: Any, given: Any, meaning: str) -> Iterator[ConfigLine]:
    """A part's line, then those of its fields."""
    origin = "default" if given is None else "set"
    if isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
        for index, item in enumerate(value):
            mine = given[index] if isinstance(given, list) and index < len(given) else given
            yield from _lines(f"{key}.{index}", item, mine, meaning)
        return
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        yield ConfigLine(key, part_text(list(value) if isinstance(value, tuple) else value), origin, meaning)
        return
    kind = type(value)
    text = inspect.getdoc(kind) or ""
    meaning = "" if text.startswith(f"{kind.__name__}(") else _first(text)  # what dataclass writes where nobody did
    yield ConfigLine(key, part_name(kind), origin, meaning)
    fields, named = notes(kind), given if isinstance(given, Mapping) else {}
    for field in dataclasses.fields(value):
        meaning = fields.get(field.name) or GENERAL.get(field.name, "")
        yield from _lines(f"{key}.{field.name}", getattr(value, field.name), named.get(field.name), meaning)


def _reaches(preset: Callable[..., Algorithm], name: str, value: Any) -> str:
    """``sets objective.low, objective.high``: found by building the preset with another number there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    try:
        plain, other = (flat(describe(preset(**given))) for given in ({}, {name: value * 2 if value else 1}))
    except (ValueError, TypeError):  # a number that this preset does not take
        return ""
    changed = [key for key in plain if plain[key] != other.get(key)]
    return f"sets {', '.join(changed)}" if changed else ""


@lru_cache(maxsize=256)
def notes(kind: type) -> Mapping[str, str]:
    """The meaning of a dataclass's fields: the text under a field, else what the class's own text says of it."""
    found: dict[str, str] = {}
    for above in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(above):
            continue
        text = inspect.getdoc(above) or ""
        tree = ast.parse(textwrap.dedent(inspect.getsource(above))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                name = node.target.id
                found[name] = _first(own) if isinstance(own, str) and own else _note(text, name)
    return found


def _note(text: str, name: str) -> str:
    """What a docstring says of a name: its paragraph ``name: ...``, else the first sentence that has the word."""
    text = inspect.cleandoc(text)
    paragraph = re.search(rf"^`*{name}`*: (.+?)(?=^\S+: |\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if paragraph:
        return _first(paragraph.group(1))
    sentences = re.split(r"(?<=[.:;]) (?=\S)", " ".join(text.split()))
    return next((_first(s) for s in sentences if re.search(rf"``{name}\b|\b{name}\b\s*``|``[^`]*\b{name}\b", s)), "")


def _first(text: str) -> str:
    """The first sentence of a text, on one line."""
    line = " ".join(text.split())
    end = re.search(r"\. (?=[A-Z`])|\.$", line)
    return (line[: end.start()] if end else line).rstrip(":;")
