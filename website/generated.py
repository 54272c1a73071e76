"""Pages made from the code itself: commands, config keys, rewards (`catalogue` makes those of algorithms)."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic_core import PydanticUndefined
from typer.models import ArgumentInfo, OptionInfo

from flowrl.cli import COMMANDS
from flowrl.config import Config
from flowrl.config.reward import RewardConfig
from flowrl.config.section import Section
from flowrl.score import list_rewards
from website.marks import code, plain, table

BOUNDS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def pages() -> dict[str, str]:
    """Every generated page by its place in the site."""
    return {"cli.md": commands(), "config.md": config_keys(), "rewards.md": rewards()}


# ---- commands


def commands() -> str:
    """The command line."""
    head = (
        "# Commands\n\nAs `flowrl COMMAND --help` tells them. `flowrl --install-completion` completes them in your"
        " shell.\n"
    )
    return head + "".join(_command(name, function) for name, function in COMMANDS.items())


def _command(name: str, function: Any) -> str:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = [(p, *_declared(hints[p.name])) for p in inspect.signature(function).parameters.values()]
    words = [_word(p.name, info) for p, _, info in parameters if isinstance(info, ArgumentInfo)]
    required = [
        f"{_flag(p.name, kind, info, p.default)} {_word(p.name, info)}"
        for p, kind, info in parameters
        if isinstance(info, OptionInfo) and p.default is p.empty
    ]
    optional = any(isinstance(info, OptionInfo) and p.default is not p.empty for p, _, info in parameters)
    usage = " ".join(["flowrl", name, *words, *required, *(["[OPTIONS]"] if optional else [])])
    rows = [
        [
            code(_word(p.name, info) if isinstance(info, ArgumentInfo) else _flag(p.name, kind, info, p.default)),
            code(_kind(kind)),
            code(_default(p.default)),
            plain(info.help or ""),
        ]
        for p, kind, info in parameters
    ]
    text = inspect.cleandoc(function.__doc__ or "")
    return f"\n## {name}\n\n{text}\n\n```text\n{usage}\n```\n\n" + table(["option", "type", "default", "meaning"], rows)


def _declared(hint: Any) -> tuple[Any, ArgumentInfo | OptionInfo]:
    """The type of a parameter, and what typer is told of it."""
    kind, *notes = typing.get_args(hint)
    return kind, next(note for note in notes if isinstance(note, ArgumentInfo | OptionInfo))


def _word(name: str, info: ArgumentInfo | OptionInfo) -> str:
    return info.metavar or name.upper()


def _flag(name: str, kind: Any, info: ArgumentInfo | OptionInfo, default: Any) -> str:
    named = [info.default, *(info.param_decls or ())]  # the first of an Annotated option stands where a default would
    flag = next((n for n in named if isinstance(n, str) and n.startswith("--")), f"--{name.replace('_', '-')}")
    return f"{flag} / --no-{flag.removeprefix('--')}" if kind is bool and default is True else flag


def _kind(kind: Any) -> str:
    """``int``, ``path``, ``text``, ``flag`` or the choices of an enumeration."""
    several = typing.get_origin(kind) is list
    inner = [each for each in typing.get_args(kind) if each is not type(None)]
    if inner:
        return _kind(inner[0]) + (", several" if several else "")
    if issubclass(kind, Enum):
        return ", ".join(str(each.value) for each in kind)
    return {bool: "flag", str: "text", Path: "path", int: "integer", float: "number"}[kind]


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or isinstance(value, bool):
        return ""
    return str(value)


# ---- config keys


def config_keys() -> str:
    """Every key of a config file."""
    head = """# Config keys

Every key of a config file with its type, default and meaning. `flowrl config CONFIG` prints them with a config's own
values, and the options of its algorithm; a key is changed on the command line by `section.key=value`. `required` has no
default. Keys of `model` whose meaning begins with a family (diffusion, language, masked, causal) are for its models
alone.
"""
    return head + "".join(_sections(Config, ""))


def _sections(section: type[Section], name: str) -> Iterator[str]:
    """The table of a section, then those inside it."""
    inner: list[tuple[str, type[Section]]] = []
    rows = []
    for key, field in section.model_fields.items():
        below = _section_of(field.annotation)
        if below is not None:
            inner.append((f"{name}.{key}".strip("."), below))
        kind = "mapping" if below is not None and below is not RewardConfig else _type(field.annotation, field.metadata)
        link = f"[`{key}`](#{_anchor(inner[-1][0])})" if below is not None else code(key)
        rows.append([link, plain(kind), code(_value(field.default)), plain(field.description or _said(below))])
    about = f"{plain(inspect.cleandoc(section.__doc__ or ''))}\n\n" if name else ""
    yield f"\n## {name or 'A run'}\n\n{about}"
    yield table(["key", "type", "default", "meaning"], rows)
    for path, below in inner:
        yield from _sections(below, path)


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that values of this type are, or hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_of(each) for each in typing.get_args(annotation))
    return next((each for each in found if each is not None), None)


def _said(section: type[Section] | None) -> str:
    text = "" if section is None else (section.__doc__ or "").partition(".")[0]
    return text[:1].lower() + text[1:]


def _anchor(name: str) -> str:
    """What mkdocs makes of a heading."""
    return re.sub(r"[^\w\s-]", "", name).lower()


def _type(annotation: Any, metadata: Any = ()) -> str:
    """``integer > 0 or null``."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    bounds = _bounds(metadata)
    if origin is Annotated:
        notes = [each for note in inner[1:] for each in (getattr(note, "metadata", None) or [note])]
        return _type(inner[0], notes)
    if origin is Literal:
        return ", ".join(code(str(each)) for each in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(each) for each in inner)) + bounds
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: " + ", ".join(_type(each) for each in inner)
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping"
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "null"}
    return names[annotation] + bounds


def _bounds(metadata: Any) -> str:
    """`` > 0``; a text that may not be empty says nothing of it."""
    found = [f" {sign} {getattr(note, name):g}" for note in metadata for kind, (sign, name) in BOUNDS.items()
             if isinstance(note, kind) and not isinstance(note, MinLen)]  # fmt: skip
    return ",".join(found)


def _value(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    written = json.dumps(default, default=lambda part: part.model_dump(exclude_defaults=True))
    return "" if isinstance(default, Section) else written


# ---- rewards


def rewards() -> str:
    """The rewards that ship."""
    found = list_rewards()
    rows = [
        [f"[`{r.name}`](#{_anchor(r.name)})", r.kind, plain(r.range), plain(", ".join(r.needs)), plain(r.summary)]
        for r in found
    ]
    head = """# Rewards

Those that ship; one of your own is a function in a file: [Extending flowrl](extending.md). On the command line:
`flowrl rewards`, and `flowrl test-reward NAME` checks that one keeps its promises. Keys of an entry of `rewards`:
[Config keys](config.md#rewards).

"""
    return head + table(["name", "of", "range", "needs", "what"], rows) + "".join(map(_reward, found))


def _reward(entry: Any) -> str:
    spec = importlib.util.find_spec(entry.module)
    assert spec is not None and spec.origin is not None
    file = f"{entry.module.replace('.', '/')}.py"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, Definition) and n.name == entry.name)
    options = "".join(f"- `{name}`: {code(default)}\n" for name, default in _options(node))
    listed = f"\nOptions, with their defaults:\n\n{options}" if options else ""
    return f"\n## {entry.name}\n\n{_text(ast.get_docstring(node) or '')}\n{listed}\nCode: [{file}](files/{file}.md)\n"


def _options(node: Definition) -> list[tuple[str, str]]:
    """Keyword arguments of a reward that a config may set, with their defaults."""
    made = node
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if not isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    plain_ones, named = made.args.args, made.args.kwonlyargs
    defaults = [None] * (len(plain_ones) - len(made.args.defaults)) + list(made.args.defaults)
    pairs = [*zip(plain_ones, defaults, strict=True), *zip(named, made.args.kw_defaults, strict=True)]
    return [(argument.arg, ast.unparse(default)) for argument, default in pairs if default is not None]


def _text(text: str) -> str:
    return "\n".join(plain(line) if not line.startswith("    ") else line for line in text.split("\n"))
