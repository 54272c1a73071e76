"""Users' own code: what ``path/to/file.py:Name`` and ``module:Name`` stand for.

Rewards, parts of an algorithm and presets are found by it. Checking reads source text and runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flowrl.errors import UserError, describe_exception, did_you_mean, first_line
from flowrl.exit_guard import catch_exit
from flowrl.paths import expand_user


@dataclass(frozen=True)
class Place:
    """Where something of a user's is defined. ``kind`` is what messages call it, such as ``reward``."""

    where: str
    """A file, as written, or a module that can be imported."""
    name: str
    kind: str

    @classmethod
    def of(cls, use: str, kind: str) -> Place | None:
        """The place that ``use`` names; None for the name of something that comes with flowrl. Raises `UserError` for a
        file without a name in it."""
        where, colon, name = use.rpartition(":")
        if colon:
            return cls(where, name, kind)
        if use.endswith(".py"):
            raise UserError(f"{kind} {use!r}: name the function or class in it as well, as in {use}:NAME")
        return None

    def __str__(self) -> str:
        return f"{self.where}:{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether it is a file, not a module."""
        return self.where.endswith(".py")

    @property
    def path(self) -> Path | None:
        """The file with the code, found without running it; None for a module that has none."""
        if self.is_file:
            return expand_user(self.where, self.kind)
        try:
            spec = importlib.util.find_spec(self.where)
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec is not None and spec.origin not in (None, "built-in", "frozen") else None

    def with_absolute_path(self) -> str:
        """As `str`, with an absolute path, which holds after code has changed the working directory."""
        return f"{expand_user(self.where, self.kind).absolute()}:{self.name}" if self.is_file else str(self)

    def check(self) -> None:
        """Raise `UserError` if a file is not there, is no Python or does not define the name; it is not run."""
        if not self.is_file:
            return
        path = expand_user(self.where, self.kind)
        bound = bound_names(parse(path, self.kind))
        if bound is not None and self.name not in bound:
            defined = [name for name in bound if not name.startswith("_")]
            raise UserError(
                f"{self.kind} {str(self)!r}: {path} does not define {self.name!r}{did_you_mean(self.name, defined)}"
            )

    def find(self, keep: bool = False) -> Callable[..., Any]:
        """What stands there. The module is run: with ``keep`` once for the same text of a file, else at every call.
        Raises `UserError`, whatever its code does."""
        module = self._file(keep) if self.is_file else self._module()
        found = getattr(module, self.name, None)  # which asks a module's own __getattr__ as well
        if not callable(found):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            what = f"no function or class {self.name!r}{did_you_mean(self.name, known)}"
            raise UserError(f"{self.kind} {str(self)!r}: {self.where} has {what}")
        return found

    def _file(self, keep: bool) -> ModuleType:
        path = expand_user(self.where, self.kind)
        parse(path, self.kind)
        path = path.resolve()
        text = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if keep else ""
        place = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # two files of one name do not clash
        name = f"flowrl_{self.kind}_{path.stem}_{place}{text}".replace(" ", "_")
        if keep and name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickles inside look their module up
        try:
            with catch_exit():
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # whatever a user's code raises is reported as theirs, chained
            del sys.modules[name]
            remedy = "; install what it needs" if isinstance(error, ModuleNotFoundError) else ""
            raise UserError(
                f"{self.kind} file {path} cannot be imported: {describe_exception(error)}{remedy}"
            ) from error
        return module

    def _module(self) -> ModuleType:
        try:
            with catch_exit():
                return importlib.import_module(self.where)
        except (Exception, SystemExit) as error:  # as of a file
            words = str(error) if isinstance(error, ImportError) else describe_exception(error)
            raise UserError(f"{self.kind} {str(self)!r}: module {self.where!r} cannot be imported: {words}") from error


def parse(path: Path, kind: str) -> ast.Module:
    """The syntax tree of a file. Raises `UserError` naming the line of a syntax error."""
    if not path.is_file():
        raise UserError(f"{kind} file {path} does not exist (looked in {Path.cwd()})")
    try:
        return ast.parse(path.read_bytes(), str(path))  # which knows Python's rules of encodings
    except SyntaxError as error:
        raise UserError(f"{kind} file {path} line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError, OSError) as error:  # NUL bytes, thousands of brackets
        raise UserError(f"{kind} file {path} is no Python: {first_line(error)}") from None


def bound_names(tree: ast.Module) -> list[str] | None:
    """Names that a module binds when it is run: definitions, assignments and imports, also inside ``if``, ``try``,
    ``with`` and loops. None where reading cannot tell (``from x import *``, ``__getattr__``, ``globals()``)."""
    names: dict[str, None] = {}
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
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
