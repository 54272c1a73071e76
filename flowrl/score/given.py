"""Rewards that are Python functions of this process: given to `flowrl.train`, and called ``callable:NAME`` in the
config that the run keeps. Their source is recorded, because nothing else says what trained the run."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from flowrl.errors import UserError

PREFIX = "callable:"
MOST = 400
"""Characters of a constant that is recorded with the function that reads it."""


@dataclass(frozen=True)
class GivenReward:
    """A reward that lives in this process."""

    name: str
    function: Callable[..., Any]
    source: str | None
    """Its own, and of what it uses of its module; None where Python keeps no text of it."""

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> GivenReward:
        """A function, a class or an object that can be called; ``name`` is by default its own."""
        return cls(name or _own_name(function), function, source_of(function))

    @property
    def use(self) -> str:
        """What stands in the config for it."""
        return f"{PREFIX}{self.name}"

    @property
    def file_name(self) -> str:
        """Of the record of its source."""
        return re.sub(r"[^\w.-]+", "-", self.name) + ".py"

    @property
    def record(self) -> str:
        """The text that a run keeps of it."""
        head = f"# The reward {self.name!r}, a Python function that was given to flowrl.train."
        if self.source is None:
            return f"{head}\n# Python keeps no source of it: {self.function!r}\n"
        return f"{head}\n{self.source}"

    @property
    def fingerprint(self) -> str | None:
        """Of its source without comments and layout; None where there is none."""
        if self.source is None:
            return None
        try:
            text = ast.dump(ast.parse(self.source))
        except SyntaxError:
            text = self.source
        return hashlib.sha256(text.encode()).hexdigest()


Given = Mapping[str, GivenReward]
"""By what stands in the config for them."""


def is_given(use: str) -> bool:
    """Whether a config names a function that was given."""
    return use.startswith(PREFIX)


def not_given(use: str) -> UserError:
    """The error where a config names a function that is not here."""
    name = use.removeprefix(PREFIX)
    return UserError(
        f"reward {name!r} is a Python function that was given to flowrl.train, and no file that can be read again: give"
        f" it again, flowrl.train(..., rewards=[{name}]). The run's rewards/ keeps its source; in a file of your own it"
        " is named path.py:function"
    )


def source_of(function: Callable[..., Any]) -> str | None:
    """The source of a function, class or callable object, after that of the functions, classes and constants of the
    same module that it reads; None where Python has none, as for what was typed into an interpreter."""
    first = _definition(function)
    module = getattr(first, "__module__", None)
    texts: dict[int, str] = {}
    constants: dict[str, None] = {}
    waiting = [first]
    while waiting:
        found = waiting.pop()
        if id(found) in texts:
            continue
        text = _text(found)
        if text is None and found is first:
            return None
        texts[id(found)] = text or ""
        for name, value in _read_by(found):
            used = _definition(value)
            if isinstance(used, FunctionType | type) and used.__module__ == module:
                waiting.append(used)
            elif isinstance(value, ModuleType):
                constants[f"import {value.__name__} as {name}"] = None
            elif _is_plain(value):
                constants[f"{name} = {_written(value)}"] = None
    lines = "".join(f"{line}\n" for line in sorted(constants))
    return lines + "\n\n".join(text for text in reversed(texts.values()) if text)


def _own_name(function: Callable[..., Any]) -> str:
    name = getattr(_definition(function), "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name


def _definition(value: Any) -> Any:
    """The function or class that is behind something that can be called."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType | type | ModuleType) or not callable(value):
        return inspect.unwrap(value) if isinstance(value, FunctionType) else value
    return type(value)


def _text(definition: Any) -> str | None:
    try:
        if getattr(definition, "__name__", "") == "<lambda>":
            return _lambda(definition)
        return textwrap.dedent(inspect.getsource(definition))
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


def _lambda(function: FunctionType) -> str | None:
    """The expression alone: the line around it may be a call that is written anew for a resumed run. None where a line
    begins several."""
    text = "".join(inspect.findsource(function)[0])
    line = function.__code__.co_firstlineno
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Lambda) and node.lineno == line]
    return f"{ast.get_source_segment(text, found[0])}\n" if len(found) == 1 else None


def _read_by(definition: Any) -> Iterator[tuple[str, Any]]:
    """``(name, value)`` of the global and enclosing variables that a function, or the methods of a class, read."""
    if isinstance(definition, type):
        for member in vars(definition).values():
            member = getattr(member, "__func__", member)  # of static and class methods
            if isinstance(member, FunctionType):
                yield from _read_by(member)
        return
    if not isinstance(definition, FunctionType):
        return
    for name in dict.fromkeys(_globals(definition.__code__)):
        if name in definition.__globals__:
            yield name, definition.__globals__[name]
    for name, cell in zip(definition.__code__.co_freevars, definition.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue


def _globals(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals(inner)


def _written(value: Any) -> str:
    """``repr``, of a set in one order."""
    return f"{{{', '.join(sorted(map(repr, value)))}}}" if isinstance(value, set | frozenset) and value else repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value)) and len(repr(value)) <= MOST
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values())) and len(repr(value)) <= MOST
    return isinstance(value, bool | int | float | str | None) and len(repr(value)) <= MOST
