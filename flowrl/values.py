"""What a value of a config may be taken for: a whole number written as 1e3 is an integer, ``true`` is no number."""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

LARGEST = 1 << 63
"""No whole number of a config reaches it: tensors and random streams take 64 bits."""
STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)
PLAIN = (int, float, bool, str, type(None), list, dict, tuple)
"""Types whose values YAML writes."""
HOLDERS = (list, dict, tuple, collections.abc.Sequence, collections.abc.Mapping, Union, types.UnionType)
"""Types that hold or unite others."""


def coerced(hint: object, value: object) -> object:
    """``value`` in the form that strict validation against ``hint`` takes: YAML has lists where Python has tuples, and
    reads 1e3 as a float. Nothing else is converted, so that ``true`` or ``"5"`` stays wrong where a number is meant.

    Raises `ValueError` for an integer beyond 64 bits.
    """
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError("numbers here are smaller than 2^63")
    kinds = list(_members(hint))
    if isinstance(value, list):
        return _tuple(kinds, value)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    return value


def validated(hint: object, value: object) -> object:
    """``value`` as strict validation against ``hint`` leaves it. Raises `ValueError` that says what it should be."""
    try:
        return TypeAdapter(cast("type[object]", hint), config=STRICT).validate_python(coerced(hint, value))
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise ValueError(f"{first[0].lower()}{first[1:]}") from None
    except PydanticUserError:
        raise ValueError(f"no value can be checked against its type {hint}") from None


def argument_problem(function: Callable[..., Any], key: str, value: object) -> str | None:
    """What is wrong with ``value`` for the parameter ``key`` of a function or class, None where it fits or nothing is
    known. Known are annotations of plain types; without one, a default that is a number or a switch."""
    try:
        parameter = inspect.signature(function, eval_str=True).parameters.get(key)
    except Exception:  # annotations that name what does not exist are a user's, and no business of ours
        parameter = inspect.signature(function).parameters.get(key)
    if parameter is None or isinstance(parameter.annotation, str) or (value is None and parameter.default is None):
        return None
    hint = parameter.annotation
    if hint is parameter.empty:
        hint = {bool: bool, int: float, float: float}.get(type(parameter.default), hint)
        hint = hint if value is not None else parameter.empty  # a default may stand in for None
    if hint is parameter.empty or not is_plain_type(hint):
        return None
    try:
        validated(hint, value)
    except ValueError as error:
        return str(error)
    return None


def is_plain_type(hint: object) -> bool:
    """Whether a type has only values that YAML writes."""
    if hasattr(hint, "__metadata__"):
        return is_plain_type(get_args(hint)[0])
    origin = get_origin(hint)
    if origin is Literal:
        return True
    if origin in HOLDERS:
        return all(is_plain_type(inner) for inner in get_args(hint) if inner is not Ellipsis)
    return hint in PLAIN


def _tuple(kinds: list[object], value: list[object]) -> object:
    for kind in kinds:
        if get_origin(kind) is tuple or kind is tuple:
            inner = get_args(kind)
            each = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else inner
            if len(each) != len(value):
                return tuple(value)
            return tuple(coerced(h, v) for h, v in zip(each, value, strict=True))
    return value


def _members(hint: object) -> Iterator[object]:
    """The types that a hint allows: those of a union, without annotations."""
    arguments = get_args(hint)
    if hasattr(hint, "__metadata__"):
        yield from _members(arguments[0])
    elif arguments and get_origin(hint) is not tuple and get_origin(hint) not in (list, dict):
        for argument in arguments:
            yield from _members(argument)
    else:
        yield hint
