"""Which quick test runs which line of the mathematics. Measured once per test file, and again when it or the code
changes."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.mutation.mutants import Mutant

Lines = dict[str, set[int]]

IMPORTS = re.compile(r"\bflowrl\.(parts|math|estimators|samplers|step|coupling)\b")
"""A test file that imports none of these tests something else."""
LONGEST = 10.0
"""Seconds of a test that is too slow to be run for a mutant."""


@dataclass
class Seen:
    """What one test runs."""

    lines: Lines
    seconds: float
    """Of the processor, so that a busy machine does not change which tests are chosen."""


@dataclass
class Recorder:
    """A pytest plugin that notes the lines of ``files`` that every test runs.

    What runs while fixtures are set up belongs to every test of the file: a fixture may be shared by all.
    """

    files: dict[str, str]
    """Absolute to relative path."""
    tests: dict[str, Seen] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    _lines: Lines = field(default_factory=lambda: defaultdict(set))
    _shared: dict[str, Lines] = field(default_factory=dict)
    _known: dict[CodeType, str | None] = field(default_factory=dict)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code not in self._known:
            self._known[code] = self.files.get(code.co_filename)
        return self._line if self._known[code] else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = self._known[frame.f_code]
        if path:
            self._lines[path].add(frame.f_lineno)
        return self._line

    def _record(self) -> Lines:
        self._lines = defaultdict(set)
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        return self._lines

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item):
        """Of the whole file."""
        lines = self._record()
        try:
            return (yield)
        finally:
            sys.settrace(None)
            shared = self._shared.setdefault(item.nodeid.split("::")[0], defaultdict(set))
            for path, found in lines.items():
                shared[path] |= found

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        """Of this test."""
        start, lines = time.process_time(), self._record()
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests[item.nodeid] = Seen(lines, time.process_time() - start)

    def pytest_sessionfinish(self) -> None:
        """Join the two, and note what else was imported."""
        threading.settrace(None)  # type: ignore[arg-type]
        for name, seen in self.tests.items():
            for path, found in self._shared.get(name.split("::")[0], {}).items():
                seen.lines.setdefault(path, set()).update(found)
        self.modules = [name for name in sys.modules if not re.match(r"(flowrl|tests|rewards|conftest|__)\b", name)]


def test_files(root: Path) -> list[str]:
    """Files of unit and contract tests that are about the mathematics."""
    found = sorted((*root.glob("tests/unit/test_*.py"), *root.glob("tests/contract/test_*.py")))
    return [str(file.relative_to(root)) for file in found if IMPORTS.search(file.read_text())]


def places(root: Path, cache: Path, mutated: list[str]) -> dict[str, Path]:
    """Where the map of every test file is kept, by the hash of itself and of the code."""
    code = hashlib.sha256()
    for path in mutated:
        code.update((root / path).read_bytes())
    return {
        name: cache / f"{hashlib.sha256(code.digest() + (root / name).read_bytes()).hexdigest()[:24]}.json"
        for name in test_files(root)
    }


def measure(root: Path, kept: dict[str, Path], mutated: list[str]) -> None:
    """Run the test files and write their maps. To be called in a process of its own."""
    recorder = Recorder({str(root / path): path for path in mutated})
    pytest.main([*ARGUMENTS, *kept], plugins=[recorder])
    for name, file in kept.items():
        tests = {
            test: {"seconds": seen.seconds, "lines": {p: sorted(found) for p, found in seen.lines.items()}}
            for test, seen in recorder.tests.items()
            if test.split("::")[0] == name
        }
        file.write_text(json.dumps({"tests": tests, "modules": recorder.modules}))


ARGUMENTS = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--assert=plain", "--no-header", "-W", "ignore"]


@dataclass
class Coverage:
    """Tests by the lines they run."""

    root: Path
    tests: dict[str, Seen]
    modules: list[str]

    @classmethod
    def read(cls, root: Path, kept: dict[str, Path]) -> Coverage:
        """From the files of `measure`."""
        tests, modules = {}, dict[str, None]()
        for file in kept.values():
            found = json.loads(file.read_text())
            modules |= dict.fromkeys(found["modules"])
            for test, seen in found["tests"].items():
                tests[test] = Seen({p: set(lines) for p, lines in seen["lines"].items()}, seen["seconds"])
        return cls(root, tests, list(modules))

    def likely(self, mutant: Mutant, seconds: float) -> tuple[list[str], int]:
        """Tests that can notice a mutant, those of few lines and short first, as many as fit in ``seconds``; and how
        many did not fit."""
        lines = self._reached(mutant)
        found = [name for name, seen in self.tests.items() if any(seen.lines.get(p, set()) & at for p, at in lines)]
        cost = {n: (self.tests[n].seconds + 0.02) * sum(map(len, self.tests[n].lines.values())) for n in found}
        chosen, spent = [], 0.0
        for name in sorted(found, key=cost.__getitem__):
            spent += self.tests[name].seconds
            if self.tests[name].seconds < LONGEST and (spent < seconds or not chosen):
                chosen.append(name)
        return chosen, len(found) - len(chosen)

    def _reached(self, mutant: Mutant) -> list[tuple[str, set[int]]]:
        """Lines by path. What stands in a class (a default) counts where the class's methods do, and a constant of the
        module where its name does."""
        text = (self.root / mutant.path).read_text()
        if not mutant.name:
            name = re.match(r"\w+", mutant.before)
            word = re.compile(rf"\b{name.group() if name else mutant.before}\b")
            paths = {path for seen in self.tests.values() for path in seen.lines}
            lines = ((p, (self.root / p).read_text().splitlines()) for p in paths)
            return [(p, {i for i, line in enumerate(found, 1) if word.search(line)}) for p, found in lines]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and any(mutant.reached.start == child.lineno for child in node.body):
                return [(mutant.path, set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))]
        return [(mutant.path, set(mutant.reached))]
