"""Is the completion JSON, and does it fit a schema."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, missing_package

RANGE = "[0, 1]"
NEEDS = ("jsonschema",)
PACKAGES = {"jsonschema": "text"}
MAX_CHARACTERS = 100_000
FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


class NotJsonError(Exception):
    """A completion is no JSON; a `UserError`, which is a ValueError as well, must not be mistaken for that."""


class json_schema:  # noqa: N801 - the name a config uses
    """1 where a completion is JSON that fits the schema, ``valid_credit`` where it is only JSON, else 0.

    The schema is the option ``schema``, or the column ``schema`` (a mapping or its JSON text, per prompt), which wins;
    draft 2020-12 unless it names another in ``$schema``. References to other documents are refused, never fetched.
    ``fenced`` also reads the last fenced code block; text outside of one makes the completion no JSON. NaN,
    Infinity, repeated keys and texts over 100 000 characters are no JSON. NaN where a prompt has no schema.
    Raises `UserError` when jsonschema is not installed or a schema is none.
    """

    def __init__(
        self, *, schema: Mapping[str, Any] | None = None, valid_credit: float = 0.5, fenced: bool = True
    ) -> None:
        if importlib.util.find_spec("jsonschema") is None:
            raise missing_package("json_schema", "jsonschema", "text")
        self.valid_credit, self.fenced = valid_credit, fenced
        self._default = json.dumps(schema) if schema is not None else None
        self._validators: dict[str, Any] = {}

    def __call__(self, completions: Sequence[str], prompts: Sequence[str], **columns: Sequence[Any]) -> Tensor:
        """[N] float64 in [0, 1] or NaN. ``columns`` may hold ``schema``."""
        schemas = columns.get("schema", [None] * len(completions))
        if self._default is None and all(schema is None for schema in schemas):
            raise UserError("json_schema: give the option 'schema', or prompts with a column 'schema'")
        scores = [self._score(text, schema) for text, schema in zip(completions, schemas, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    def _score(self, text: str, schema: Any) -> float:
        chosen = self._default if schema is None else schema if isinstance(schema, str) else json.dumps(schema)
        if chosen is None:
            return float("nan")
        validator = self._validator(chosen)
        try:
            value = parse(text, self.fenced)
            return 1.0 if _fits(validator, value) else self.valid_credit
        except NotJsonError:
            return 0.0

    def _validator(self, text: str) -> Any:
        if text not in self._validators:
            self._validators[text] = _compile(text)
        return self._validators[text]


def parse(text: str, fenced: bool) -> Any:
    """The JSON value of a completion. Raises `NotJsonError` where it is none, or too long or deep for one."""
    if len(text) > MAX_CHARACTERS:
        raise NotJsonError("too long")
    blocks = FENCE.findall(text) if fenced else []
    try:
        return json.loads(blocks[-1] if blocks else text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error)) from error


def _compile(text: str) -> Any:
    """A validator that looks nothing up outside the schema."""
    import jsonschema
    import referencing
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(text)
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        return kind(schema, registry=referencing.Registry())
    except (ValueError, jsonschema.SchemaError) as error:
        raise UserError(f"json_schema: {text[:80]!r} is no JSON schema: {str(error).splitlines()[0]}") from error


def _fits(validator: Any, value: Any) -> bool:
    from referencing.exceptions import Unresolvable

    try:
        return validator.is_valid(value)
    except Unresolvable as error:
        raise UserError(f"json_schema: the schema refers to {error.ref!r}, outside of itself; put it inline") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
