"""What a value of a config may be taken for: a whole number written as 1e3 is an integer, ``true`` is no number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

LARGEST = 1 << 63
"""No whole number of a config reaches it: tensors and random streams take 64 bits."""


def fitted(hint: Any, value: Any) -> Any:
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


def _tuple(kinds: list[Any], value: list[Any]) -> Any:
    for kind in kinds:
        if get_origin(kind) is tuple or kind is tuple:
            inner = get_args(kind)
            each = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else inner
            if len(each) != len(value):
                return tuple(value)
            return tuple(fitted(h, v) for h, v in zip(each, value, strict=True))
    return value


def _members(hint: Any) -> Iterator[Any]:
    """The types that a hint allows: those of a union, without annotations."""
    arguments = get_args(hint)
    if hasattr(hint, "__metadata__"):
        yield from _members(arguments[0])
    elif arguments and get_origin(hint) is not tuple and get_origin(hint) not in (list, dict):
        for argument in arguments:
            yield from _members(argument)
    else:
        yield hint
