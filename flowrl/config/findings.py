"""Pydantic's findings as one sentence per key."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flowrl import renamed
from flowrl.errors import UserError, short_repr, shorten


def explain_errors(
    error: ValidationError, root: type[BaseModel], source: str, overridden: Mapping[str, str] | None = None
) -> UserError:
    """One `UserError` that names every bad key, the value found and the remedy, and where it was written: in
    ``source``, or where the override stands that set it (``overridden``: the places by key)."""
    found: dict[str, dict[str, None]] = {}
    for finding in error.errors():
        sentence = _sentence(finding, root)
        found.setdefault(_source(finding, sentence, source, overridden or {}), {})[sentence] = None
    return UserError("\n".join(f"{where}: {_listed(list(sentences))}" for where, sentences in found.items()))


def _listed(sentences: list[str]) -> str:
    return sentences[0] if len(sentences) == 1 else "".join(f"\n  - {sentence}" for sentence in sentences)


def _source(finding: ErrorDetails, sentence: str, source: str, overridden: Mapping[str, str]) -> str:
    """Where the key of a finding was written; of keys that do not fit together, where one of them was."""
    location = ".".join(str(part) for part in _location(finding))
    for key, place in overridden.items():
        within = f"{location}.".startswith(f"{key}.") or f"{key}.".startswith(f"{location}.")
        if within if location else re.search(rf"(?<![\w.]){re.escape(key)}\b", sentence):
            return place
    return source


def _location(finding: ErrorDetails) -> list[str | int]:
    """The key of a finding in parts. A union's members appear in pydantic's location as "str" and "dict[str,any]";
    only real keys stay. An unknown key is the last part, whatever it looks like."""
    unknown = finding["type"] == "extra_forbidden"
    path = list(finding["loc"][:-1] if unknown else finding["loc"])
    location = [part for part in path if isinstance(part, int) or part.isidentifier() or "-" in part]
    return [*location, *finding["loc"][-1:]] if unknown else location


def _sentence(finding: ErrorDetails, root: type[BaseModel]) -> str:
    location = _location(finding)
    key = shorten(".".join(str(part) for part in location), 120)
    if finding["type"] == "extra_forbidden":
        return _unknown(key, finding["input"], location, root)
    if finding["type"] == "missing":
        return f"{key} is missing; every config needs it"
    message = finding["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if finding["type"] == "string_type" and isinstance(finding["input"], dict | list):
        return _unquoted(key, finding["input"])
    return f"{key}={short_repr(finding['input'])}: {message[0].lower()}{message[1:]}"


def _unquoted(key: str, value: dict[str, Any] | list[Any]) -> str:
    """Of braces, brackets or a colon that YAML reads as its own where a text was meant, such as ``{question}``."""
    lone = next(iter(value)) if isinstance(value, dict) and list(value.values()) == [None] else None
    meant = f"{{{lone}}}" if isinstance(lone, str) else "..."
    kind = "mapping" if isinstance(value, dict) else "list"
    return (
        f'{key}={short_repr(value)}: should be a text, but YAML reads a {kind}; put it in quotes, {key}: "{meant}" in a'
        f" file and '{key}=\"{meant}\"' on the command line"
    )


def _unknown(key: str, value: object, location: Sequence[str | int], root: type[BaseModel]) -> str:
    word, known = str(location[-1]), _section(root, location[:-1]).model_fields
    became = renamed.sentence(key)
    if became is not None:
        return became
    head, dot, rest = word.partition(".")
    if dot and head in known:  # a dotted key is for the command line
        section = f"{head}: {{{shorten(rest, 60)}: {short_repr(value)}}}"
        return f"unknown key {short_repr(word)}; write it as a section, {section}"
    places = {".".join(map(str, [*location[:-1], name])): name for name in known}
    if not isinstance(value, dict):  # perhaps a key without its section, or in another one
        sections = {name: part for name in root.model_fields if (part := _section(root, [name])) is not root}
        elsewhere = {f"{name}.{inner}": inner for name, part in sections.items() for inner in part.model_fields}
        places |= elsewhere if len(location) == 1 else {key: name for key, name in elsewhere.items() if name == word}
    close = [word] if word in places.values() else difflib.get_close_matches(word[:100], places.values(), 1, 0.5)
    likely = [repr(place) for place, name in places.items() if name in close]
    while isinstance(value, dict) and len(value) == 1:  # a misspelt section: name the key that was meant to be set
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    hint = f"did you mean {' or '.join(likely)}?" if likely else f"known: {', '.join(sorted(known))}"
    return f"unknown key {shorten(key, 120)}={short_repr(value)}; {hint}"


def _section(root: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The model class that holds the key at ``location``."""
    current = root
    for part in location:
        if isinstance(part, str) and part in current.model_fields:  # not a name of the user's own, such as a teacher's
            current = next(models_in(current.model_fields[part].annotation), current)
    return current


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections that a value of this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None or isinstance(annotation, UnionType):
        for argument in typing.get_args(annotation):
            yield from models_in(argument)
