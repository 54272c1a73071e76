"""YAML in and out, and ``key.path=value`` overrides of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flowrl import renamed
from flowrl.errors import UserError, first_line, short_repr

PLAIN = ("str", "int", "float", "bool", "null", "seq", "map", "merge")
"""YAML's own types of plain data."""


SIZE, NODES, DEPTH = 1 << 20, 20_000, 40
"""Most bytes of a config, values in it (those of aliases counted each time), and levels of nesting."""


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number (YAML 1.1 reads it as text), dates as text, and repeated keys as an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {short_repr(twice[0])} occurs twice", node.start_mark
            )
        made = super().construct_mapping(node, deep)
        odd = [key for key in made if not isinstance(key, str)]
        if odd:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {short_repr(odd[0])} should be a text; put it in quotes", node.start_mark
            )
        return made


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


RUN_FILES = ("environment.json", "metrics.jsonl", "checkpoints")
"""What a run writes beside its ``config.yaml``."""


def read_config(path: Path) -> dict[str, Any]:
    """As `read_yaml`; of a file that a run wrote, which may be one of an older release, with today's keys."""
    values = read_yaml(path)
    by_a_run = path.name == "config.yaml" and any((path.parent / name).exists() for name in RUN_FILES)
    return renamed.translated(values) if by_a_run else values


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` naming the file, and the line of a syntax error."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"config {path} {what}; name a YAML file, such as one of configs/")
    try:
        if path.stat().st_size > SIZE:
            raise UserError(f"has {path.stat().st_size:,} bytes, and a config has at most {SIZE:,}")
        values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} should hold keys and values, found {type(values).__name__}; see configs/")
    return values


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text: texts, numbers, booleans, null, lists, and mappings with texts as keys.

    Raises `UserError` with line and column where there are others, and for more values or levels than a config has
    (`NODES`, `DEPTH`), however few bytes of aliases they take.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _measure(root, {})
        return loader.construct_document(root)
    except RecursionError:
        raise UserError(f"not a config: more than {DEPTH} levels of nesting") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not valid YAML: {first_line(error)}") from None  # such as a number of 5,000 digits
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"not valid YAML{where}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {first_line(error)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """``(values, levels)`` of a node. Raises `UserError` for more than a config has, and for tags that are no data."""
    if id(node) in known:
        size, depth = known[id(node)]
        if not size:
            raise UserError(f"not a config: the alias at line {node.start_mark.line + 1} contains itself")
        return size, depth
    known[id(node)] = (0, 0)
    children = node.value if isinstance(node.value, list) else []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in children for part in pair]
    if node.tag.rpartition(":")[2] not in PLAIN:
        raise UserError(
            f"not a config: line {node.start_mark.line + 1} has the tag {short_repr(node.tag)}; leave it out"
        )
    measured = [_measure(child, known) for child in children]
    size, depth = 1 + sum(size for size, _ in measured), 1 + max((depth for _, depth in measured), default=0)
    if size > NODES or depth > DEPTH:
        what = f"{NODES:,} values" if size > NODES else f"{DEPTH} levels of nesting"
        raise UserError(f"not a config: more than {what} at line {node.start_mark.line + 1}")
    known[id(node)] = (size, depth)
    return size, depth


def write_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back as the same data."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
