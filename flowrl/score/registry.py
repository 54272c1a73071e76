"""Where rewards live: modules of the ``rewards`` package, and users' own files and modules (`flowrl.importing`).

Listing reads source text and imports nothing, so that a reward's heavy libraries load only when it is used.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import rewards as shipped
from flowrl.clients import check_remote_reward, find_remote_reward, is_remote_reward
from flowrl.errors import UserError, did_you_mean, missing_package
from flowrl.importing import Place, parse
from flowrl.score.given import Given, is_given, not_given

KIND = "reward"
"""What messages call it."""
MEDIA = {"images": "image", "completions": "text", "feedback": "records"}
"""What a reward looks at, by the name of its parameter."""


@dataclass(frozen=True)
class RewardEntry:
    """One reward that comes with flowrl."""

    name: str
    kind: str
    """``image``, ``text`` or ``records``."""
    range: str
    needs: tuple[str, ...]
    """Prompt columns, packages or weights it needs."""
    summary: str
    module: str
    packages: Mapping[str, str]
    """Optional packages that it cannot do without, each with the extra that installs it."""
    differentiable: bool = False
    """Whether it also has a ``gradient`` (`flowrl.score.gradients`)."""


def list_rewards() -> list[RewardEntry]:
    """Every reward of the ``rewards`` package, sorted by name.

    A module states ``RANGE`` and ``NEEDS`` as constants: one value, or a mapping from function to value; and in
    ``PACKAGES`` what has to be installed, with the extra that does so.
    """
    entries = [entry for name in _module_names() for entry in _entries(name)]
    return sorted(entries, key=lambda entry: entry.name)


def find_reward(use: str, given: Given | None = None) -> Callable[..., Any]:
    """The function or class of ``name``, ``path.py:function``, ``module:function``, ``http://host:port/NAME`` or
    ``ray:`` and one of these, or a ``given`` one. Raises `UserError`."""
    if given and use in given:
        return given[use].function
    if is_remote_reward(use):
        return find_remote_reward(use)
    return place_of(use).find()


def place_of(use: str) -> Place:
    """Where a reward of this machine is defined. Raises `UserError` where there is none of that name."""
    if is_given(use):
        raise not_given(use)
    return Place.of(use, KIND) or _shipped(use)


def with_absolute_path(use: str) -> str:
    """``path.py:function`` with an absolute path, so that it holds after a reward has changed the working directory;
    other names as they are."""
    place = None if is_remote_reward(use) or is_given(use) else Place.of(use, KIND)
    return use if place is None else place.with_absolute_path()


def check_reward(use: str, given: Given | None = None) -> None:
    """Raise `UserError` if a reward cannot exist; cheap, because a file is parsed and not run."""
    if is_given(use):
        if use not in (given or {}):
            raise not_given(use)
        return None
    if is_remote_reward(use):
        inner = check_remote_reward(use)
        return check_reward(inner) if inner else None
    place = Place.of(use, KIND)
    if place is not None:
        return place.check()
    _shipped(use)
    packages = next(entry.packages for entry in list_rewards() if entry.name == use)
    for package, extra in packages.items():
        if importlib.util.find_spec(package) is None:
            raise missing_package(use, package, extra)


def _shipped(use: str) -> Place:
    """The place of a reward that comes with flowrl. Raises `UserError` with a suggestion if there is none."""
    entries = list_rewards()
    module = next((entry.module for entry in entries if entry.name == use), None)
    if module is None:
        known = [entry.name for entry in entries]
        raise UserError(f"there is no reward {use!r}{did_you_mean(use, known)} (or give path.py:function)")
    return Place(module, use, KIND)


def _module_names() -> list[str]:
    return [info.name for info in pkgutil.iter_modules(shipped.__path__) if not info.name.startswith("_")]


@cache
def _entries(module: str) -> tuple[RewardEntry, ...]:
    spec = importlib.util.find_spec(f"{shipped.__name__}.{module}")
    assert spec is not None and spec.origin is not None
    tree = parse(Path(spec.origin), KIND)
    ranges, needs = _constant(tree, "RANGE", "unknown"), _constant(tree, "NEEDS", ())
    packages, found = _constant(tree, "PACKAGES", {}), []
    for name, node in _definitions(tree):
        kind = _kind(node)
        if kind is None or name.startswith("_"):
            continue
        mine = needs.get(name, ()) if isinstance(needs, dict) else needs
        reach = ranges.get(name, "unknown") if isinstance(ranges, dict) else ranges
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
        place, smooth = f"{shipped.__name__}.{module}", _has_gradient(node)
        found.append(RewardEntry(name, kind, str(reach), tuple(mine), summary, place, packages, smooth))
    return tuple(found)


Function = ast.FunctionDef | ast.AsyncFunctionDef


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
    return next((kind for name, kind in MEDIA.items() if name in names), None)


def _has_gradient(node: Function | ast.ClassDef) -> bool:
    return isinstance(node, ast.ClassDef) and any(isinstance(i, Function) and i.name == "gradient" for i in node.body)


def _constant(tree: ast.Module, name: str, default: Any) -> Any:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    return default
