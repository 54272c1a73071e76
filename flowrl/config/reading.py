"""YAML in and out, and ``key.path=value`` overrides of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from flowrl.errors import UserError

NAMED = ("algorithm", "rewards")
"""Keys whose values may be a bare name; an override below one turns the name into ``{use: name}``."""


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number (YAML 1.1 reads it as text) and repeated keys as an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {', '.join(sorted(twice))} occurs twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` naming the file, and the line of a syntax error."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"config {path} {what}; name a YAML file, such as one of configs/")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold keys and values, found {type(values).__name__}; see configs/")
    return values


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text. Raises `UserError` with line and column."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"not valid YAML{where}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from None
    finally:
        loader.dispose()


def write_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back as the same data."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``values`` changed by ``key.path=value`` texts; a number in the path is a list index.

    Values are YAML (``null``, ``1e-4``, ``[a, b]``). Raises `UserError` for a text that is not an override.
    """
    changed = deepcopy(dict(values))
    for text in overrides:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise UserError(f"override {text!r} should look like key=value, for example train.iterations=50")
        try:
            _set(changed, path, parse_yaml(value), key)
        except UserError as error:
            raise UserError(f"override {text!r}: {error}") from None
    return changed


def _set(values: dict[str, Any], path: Sequence[str], new: Any, key: str) -> None:
    here: dict[str, Any] | list[Any] = values
    for depth, part in enumerate(path[:-1]):
        slot = _slot(here, part)
        child = here[slot] if isinstance(here, list) else here.get(slot)
        if isinstance(child, str) and path[0] in NAMED:
            child = {"use": child}
        if child is None:
            child = {}
        if not isinstance(child, dict | list):
            raise UserError(f"{'.'.join(path[: depth + 1])} is {child!r}, so it has no {path[depth + 1]!r}")
        here[slot] = child
        here = child
    here[_slot(here, path[-1])] = new


def _slot(here: dict[str, Any] | list[Any], part: str) -> Any:
    if isinstance(here, dict):
        return part
    if not part.isdigit() or int(part) >= len(here):
        raise UserError(f"{part!r} should be an index from 0 to {len(here) - 1}")
    return int(part)
