"""From a row of a prompt file to a prompt: renamed columns, templates, and names that are taken."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowrl.data.conversations import OPTIONS, TOOLS, conversation, parsed_column
from flowrl.errors import UserError, did_you_mean
from flowrl.types import Prompt

CHATS = ("messages", "conversations")
TEXT_KEYS = ("prompt", *CHATS, "text", "Prompt", "Prompts", "caption", "question", "problem")
"""Columns that may hold the prompt, in this order (``Prompt`` of PartiPrompts, ``Prompts`` of DrawBench, ``question``
of GSM8K, ``problem`` of MATH)."""
RESERVED = {
    "prompts": "the prompts",
    "completions": "the completions",
    "images": "the images",
    "group": "the number of each sample's group",
    "others": "the other samples of a group",
    "solution_str": "the completion (verl)",
    "solution_image": "the image",
}
"""Arguments of rewards that flowrl fills itself; a column of that name would never arrive."""
MISSING = object()
FIELD = re.compile(r"[^{}!:\[\]]+")


@dataclass(frozen=True)
class PromptFormat:
    """How rows become prompts: ``data.columns`` and ``data.template``."""

    columns: Mapping[str, str | None] = field(default_factory=dict)
    """New name -> column, or a place inside one (``reward_model.ground_truth``, ``choices.0``); None leaves a column
    out. Other columns keep their names."""
    template: str | None = None
    """The prompt's text with ``{column}`` in it; ``{{`` and ``}}`` are braces. Columns may be named as in the file or
    as renamed."""

    def __post_init__(self) -> None:
        """Raise `UserError` for a template that cannot be read."""
        self.fields()

    def fields(self) -> list[tuple[str, str | None, str]]:
        """``(text, column or None, format)`` pieces of the template, in order."""
        try:
            pieces = list(string.Formatter().parse(self.template or ""))
        except ValueError as error:
            raise UserError(f"data.template: {error}; a brace that is meant is written twice, {{{{ or }}}}") from None
        for _, name, _, conversion in pieces:
            if name is not None and (not FIELD.fullmatch(name) or conversion):
                raise UserError(
                    f"data.template: {{{name}}} names no column; write {{column}}, or double the braces that are meant"
                    r" (\boxed{{}})"
                )
        return [(text, name, form or "") for text, name, form, _ in pieces]

    def prompt(self, row: object, index: int, where: str) -> Prompt:
        """The prompt of a row. Raises `UserError` that names ``where`` and the column."""
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: should be an object with a 'prompt', found {row!r}")
        named = self._renamed(row, where)
        if self.template is not None:
            said, key = self._filled({**row, **named}, where), "prompt"
        else:
            key = next((key for key in TEXT_KEYS if key in named), None)
            if key is None:
                have = ", ".join(map(repr, row)) or "nothing"
                raise UserError(f"{where}: has no 'prompt' (it has {have}); name its column in data.columns")
            said = named[key]
        taken = next((name for name in named if name in RESERVED), None)
        if taken is not None:
            raise UserError(
                f"{where}: the column {taken!r} has the name under which rewards get {RESERVED[taken]}; rename it by"
                f" data.columns: {{my_{taken}: {taken}}}, or leave it out by {{{taken}: null}}"
            )
        rest = {name: value for name, value in named.items() if name != key}
        if key in CHATS:
            said = parsed_column(said, where, key)
        if isinstance(said, str) and said.strip() and any(rest.get(name) for name in (TOOLS, OPTIONS)):
            said = [{"role": "user", "content": said}]
        if isinstance(said, list):
            text, chat = conversation(said, rest, where)
            return Prompt(text, index, rest, chat)
        if not isinstance(said, str) or not said.strip():
            raise UserError(f"{where}: {key} should be a text or a list of messages, found {said!r}")
        return Prompt(said, index, rest)

    def _renamed(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = dict(row)
        for source in self.columns.values():
            found.pop(source or "", None)  # renamed; a place inside a column leaves it where it is
        for name, source in self.columns.items():
            if source is None:
                found.pop(name, None)
                continue
            found[name] = value_at(row, source)
            if found[name] is MISSING:
                raise UserError(
                    f"{where}: data.columns takes {name!r} from {source!r}, which the row does not have (it has"
                    f" {', '.join(map(repr, row))}){did_you_mean(source, row)}"
                )
        return found

    def _filled(self, row: Mapping[str, Any], where: str) -> str:
        parts = []
        for text, name, form in self.fields():
            parts.append(text)
            if name is None:
                continue
            value = value_at(row, name)
            if value is MISSING or value is None:
                what = "is empty in" if value is None else "is not a column of"
                raise UserError(
                    f"{where}: {{{name}}} of data.template {what} the row (it has {', '.join(map(repr, row))})"
                    f"{did_you_mean(name, row)}"
                )
            try:
                parts.append(format(value, form) if form else str(value))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{where}: {{{name}:{form}}} of data.template cannot show {value!r} ({error})"
                ) from None
        return "".join(parts)


def value_at(row: object, path: str) -> Any:
    """The value at ``path`` in nested mappings and lists, the whole of it being a name first; `MISSING` if none."""
    if isinstance(row, Mapping):
        if path in row:
            return row[path]
        heads = [path[:i] for i, mark in enumerate(path) if mark == "."]
        head = next((head for head in heads if head in row), None)
        return MISSING if head is None else value_at(row[head], path[len(head) + 1 :])
    if isinstance(row, str) and row.lstrip().startswith(("{", "[")):
        return value_at(parsed_column(row, "data.columns", path), path)  # JSON text, as tables hold nested columns
    if isinstance(row, list | tuple):
        number, _, rest = path.partition(".")
        if number.isdigit() and int(number) < len(row):
            return value_at(row[int(number)], rest) if rest else row[int(number)]
    return MISSING
