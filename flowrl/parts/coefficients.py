"""Numbers of an algorithm that change over iterations: their present values are put into its parts, so that no part
knows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from flowrl.parts.algorithm import Algorithm
from flowrl.types import IncompatibleError, Memory

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance | tuple[Any, ...]")

VALUES = "coefficients"
"""Where in the memory of a run the present values are, by the fields that they are put into."""


def with_coefficients(algorithm: Algorithm, memory: Memory) -> Algorithm:
    """The algorithm with the present values of its coefficients. Raises `IncompatibleError` for a coefficient of a
    field that is none, or no number, and for a value that the part refuses."""
    for coefficient in algorithm.coefficients:
        path = coefficient.sets
        value = memory.get(VALUES, {}).get(path, _number(algorithm, path))
        try:
            algorithm = _with(algorithm, path.split("."), value)
        except ValueError as error:
            raise IncompatibleError(
                f"a coefficient sets {path} to {value:g}, which its part refuses: {error}"
            ) from error
    return algorithm


def update_coefficients(
    algorithm: Algorithm, memory: Memory, metrics: Mapping[str, float], iteration: int
) -> dict[str, float]:
    """Let every coefficient take its next value after an iteration with these metrics; returns the values that the
    iteration had, as further metrics (``coefficient/<field>``)."""
    if not algorithm.coefficients:
        return {}
    values: dict[str, float] = memory.get(VALUES, {})
    used = {c.sets: float(values.get(c.sets, _number(algorithm, c.sets))) for c in algorithm.coefficients}
    memory[VALUES] = {c.sets: float(c(used[c.sets], metrics, iteration)) for c in algorithm.coefficients}
    return {f"coefficient/{name}": value for name, value in used.items()}


def _number(algorithm: Algorithm, path: str) -> float:
    """The value of a field, of which ``path`` leads from the algorithm."""
    here: object = algorithm
    for key in path.split("."):
        if isinstance(here, tuple) and key.isdigit() and int(key) < len(here):
            here = here[int(key)]
        elif dataclasses.is_dataclass(here) and key in {field.name for field in dataclasses.fields(here)}:
            here = getattr(here, key)
        else:
            raise IncompatibleError(f"a coefficient sets {path}, and this algorithm has no {key} there")
    if isinstance(here, bool) or not isinstance(here, int | float):
        raise IncompatibleError(f"a coefficient sets {path}, which is {here!r} and no number")
    return float(here)


def _with(part: Part, path: list[str], value: float) -> Part:
    """The part with another value in a field, rounded where that is a whole number."""
    key, *rest = path
    if isinstance(part, tuple):
        index = int(key)
        item = _with(part[index], rest, value) if rest else value
        return (*part[:index], item, *part[index + 1 :])  # type: ignore[return-value]
    if rest:
        return dataclasses.replace(part, **{key: _with(getattr(part, key), rest, value)})
    whole = get_type_hints(type(part)).get(key) is int
    return dataclasses.replace(part, **{key: round(value) if whole else value})
