"""Where rewards live: modules of the ``rewards`` package, any importable module, any Python file.

Listing reads source text and imports nothing, so that a reward's heavy libraries load only when it is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import rewards as shipped
from flowrl.errors import UserError, did_you_mean, missing, reason, told
from flowrl.hosting import check_remote, find_remote, is_remote
from flowrl.paths import expanded
from flowrl.score.leaving import contained

SUBJECTS = {"images": "image", "completions": "text"}
"""What a reward looks at, by the name of its parameter."""


@dataclass(frozen=True)
class RewardEntry:
    """One reward that comes with flowrl."""

    name: str
    kind: str
    """``image`` or ``text``."""
    range: str
    needs: tuple[str, ...]
    """Prompt columns, packages or weights it needs."""
    summary: str
    module: str
    packages: Mapping[str, str]
    """Optional packages that it cannot do without, each with the extra that installs it."""


def list_rewards() -> list[RewardEntry]:
    """Every reward of the ``rewards`` package, sorted by name.

    A module states ``RANGE`` and ``NEEDS`` as constants: one value, or a mapping from function to value; and in
    ``PACKAGES`` what has to be installed, with the extra that does so.
    """
    entries = [entry for name in _module_names() for entry in _entries(name)]
    return sorted(entries, key=lambda entry: entry.name)


def find_reward(use: str) -> Callable[..., Any]:
    """The function or class of ``name``, ``path.py:function``, ``module:function``, ``http://host:port/NAME`` or
    ``ray:`` and one of these. Raises `UserError`."""
    if is_remote(use):
        return find_remote(use)
    place, colon, attribute = use.rpartition(":")
    if colon and place.endswith(".py"):
        return _attribute(_import_file(expanded(place)), attribute, use)
    if colon:
        return _attribute(_import_module(place, use), attribute, use)
    if use.endswith(".py"):
        raise UserError(f"reward {use!r}: name the function as well, as in {use}:brightness")
    entries = list_rewards()
    entry = next((entry for entry in entries if entry.name == use), None)
    if entry is None:
        known = [entry.name for entry in entries]
        raise UserError(f"there is no reward {use!r}{did_you_mean(use, known)} (or give path.py:function)")
    return getattr(_import_module(entry.module, use), use)


def anchored(use: str) -> str:
    """``path.py:function`` with an absolute path, so that it holds after a reward has changed the working directory;
    other names as they are."""
    place, colon, attribute = use.rpartition(":")
    if is_remote(use) or not colon or not place.endswith(".py"):
        return use
    return f"{expanded(place, 'reward').absolute()}:{attribute}"


def check_reward(use: str) -> None:
    """Raise `UserError` if a reward cannot exist; cheap, because a file is parsed and not run."""
    if is_remote(use):
        inner = check_remote(use)
        return check_reward(inner) if inner else None
    place, colon, attribute = use.rpartition(":")
    if colon and place.endswith(".py"):
        path = expanded(place)
        bound = names_of(_parse(path))
        if bound is not None and attribute not in bound:
            defined = [name for name in bound if not name.startswith("_")]
            raise UserError(f"reward {use!r}: {path} does not define {attribute!r}{did_you_mean(attribute, defined)}")
    elif not colon:
        entry = next((entry for entry in list_rewards() if entry.name == use), None)
        if entry is None:
            find_reward(use)  # raises with a suggestion
            return
        for package, extra in entry.packages.items():
            if importlib.util.find_spec(package) is None:
                raise missing(use, package, extra)


def _module_names() -> list[str]:
    return [info.name for info in pkgutil.iter_modules(shipped.__path__) if not info.name.startswith("_")]


def _entries(module: str) -> Iterator[RewardEntry]:
    spec = importlib.util.find_spec(f"{shipped.__name__}.{module}")
    assert spec is not None and spec.origin is not None
    tree = _parse(Path(spec.origin))
    ranges, needs = _constant(tree, "RANGE", "unknown"), _constant(tree, "NEEDS", ())
    packages = _constant(tree, "PACKAGES", {})
    for name, node in _definitions(tree):
        kind = _kind(node)
        if kind is None or name.startswith("_"):
            continue
        mine = needs.get(name, ()) if isinstance(needs, dict) else needs
        reach = ranges.get(name, "unknown") if isinstance(ranges, dict) else ranges
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
        yield RewardEntry(name, kind, str(reach), tuple(mine), summary, f"{shipped.__name__}.{module}", packages)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def names_of(tree: ast.Module) -> list[str] | None:
    """Names that a module binds when it is run: definitions, assignments and imports, also inside ``if``, ``try``,
    ``with`` and loops. None where reading cannot tell (``from x import *``, ``__getattr__``, ``globals()``)."""
    names: dict[str, None] = {}
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.ClassDef):
            names[node.name] = None
            continue  # what is inside is not the module's, decorators and defaults apart, which bind nothing
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.alias):
            names[node.asname or node.name.partition(".")[0]] = None
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id == "globals"):
            names[node.id] = None
        waiting += ast.iter_child_nodes(node)
    return None if names.keys() & {"*", "__getattr__", "globals"} else list(names)


def _definitions(tree: ast.Module) -> list[tuple[str, Function | ast.ClassDef]]:
    return [(node.name, node) for node in tree.body if isinstance(node, Function | ast.ClassDef)]


def _kind(node: Function | ast.ClassDef) -> str | None:
    """What a definition scores, or None if it is not a reward."""
    if isinstance(node, ast.ClassDef):
        calls = [item for item in node.body if isinstance(item, Function) and item.name == "__call__"]
        return _kind(calls[0]) if calls else None
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    if "prompts" not in names and not node.args.kwarg:
        return None
    return next((kind for name, kind in SUBJECTS.items() if name in names), None)


def _constant(tree: ast.Module, name: str, default: Any) -> Any:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    return default


def _parse(path: Path) -> ast.Module:
    if not path.is_file():
        raise UserError(f"reward file {path} does not exist (looked in {Path.cwd()})")
    try:
        return ast.parse(path.read_bytes(), str(path))  # which knows Python's rules of encodings
    except SyntaxError as error:
        raise UserError(f"reward file {path} line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError, OSError) as error:  # NUL bytes, thousands of brackets
        raise UserError(f"reward file {path} is no Python: {reason(error)}") from None


def _import_file(path: Path) -> ModuleType:
    """A file as a module of its own name, so that two files called ``reward.py`` do not clash."""
    _parse(path)
    path = path.resolve()
    name = f"flowrl_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles inside look their module up
    try:
        with contained():
            spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        raise UserError(f"reward file {path} cannot be imported: {error}; install what it needs") from error
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises is reported as theirs, chained
        del sys.modules[name]
        raise UserError(f"reward file {path} cannot be imported: {told(error)}") from error
    return module


def _import_module(place: str, use: str) -> ModuleType:
    try:
        with contained():
            return importlib.import_module(place)
    except ImportError as error:
        raise UserError(f"reward {use!r}: module {place!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # as of a file
        raise UserError(f"reward {use!r}: module {place!r} cannot be imported: {told(error)}") from error


def _attribute(module: ModuleType, name: str, use: str) -> Callable[..., Any]:
    found = getattr(module, name, None)  # which asks a module's own __getattr__ as well
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        where = use.rpartition(":")[0]  # a file's module has a name of our making
        raise UserError(f"reward {use!r}: {where} has no function {name!r}{did_you_mean(name, known)}")
    return found
