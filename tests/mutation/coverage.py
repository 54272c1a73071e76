"""Which quick test runs which line of the mathematics. Measured once per test file, and again when that file changes.

Lines are known by their text, so that the map outlives moves of the code. Of a line that is new, the tests are those of
its function.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.mutation.mutants import Mutant

Lines = dict[str, set[int]]

IMPORTS = re.compile(r"\bflowrl\.(parts|math|estimators|samplers|step|coupling)\b|tests\.contract\.toys")
"""A test file that imports none of these is about something else."""
OTHERS = re.compile(r"/test_(evaluation|generated|model_files|monitor|reward|own_parts|self_checks)")
"""These are as well: they reach the mathematics by the way, and take long."""
LONGEST = 10.0
"""Seconds of a test that is too slow to be run for a mutant."""


@dataclass
class Seen:
    """What one test runs: lines by their text."""

    lines: set[str]
    seconds: float
    """Of the processor, so that a busy machine does not change which tests are chosen."""


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Recorder:
    """A pytest plugin that notes the lines of ``files`` that every test runs.

    What runs while fixtures are set up belongs to every test of the file: a fixture may be shared by all.
    """

    files: dict[str, str]
    """Absolute to relative path."""
    tests: dict[str, tuple[Lines, float]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)
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
            self.tests[item.nodeid] = lines, time.process_time() - start

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What fails without a mutant says nothing about one."""
        if report.failed:
            self.failing.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Join the two, and note what else was imported."""
        threading.settrace(None)  # type: ignore[arg-type]
        for name, (lines, _) in self.tests.items():
            for path, found in self._shared.get(name.split("::")[0], {}).items():
                lines[path] |= found
        self.modules = [name for name in sys.modules if not re.match(r"(flowrl|tests|rewards|conftest|__)\b", name)]


def test_files(root: Path) -> list[str]:
    """Files of unit and contract tests that are about the mathematics."""
    found = sorted((*root.glob("tests/unit/test_*.py"), *root.glob("tests/contract/test_*.py")))
    names = [str(file.relative_to(root)) for file in found if IMPORTS.search(file.read_text())]
    return [name for name in names if not OTHERS.search(name)]


def places(root: Path, cache: Path) -> dict[str, Path]:
    """Where the map of every test file is kept, by the hash of its text."""
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest()[:24] for name in test_files(root)}
    return {name: cache / f"{Path(name).stem}-{digest}.json" for name, digest in hashes.items()}


def measure(root: Path, kept: dict[str, Path], mutated: list[str]) -> int:
    """Run the test files and write the maps of what passes. To be called in a process of its own. 0, or pytest's code
    where it could not run them: then nothing is written."""
    recorder = Recorder({str(root / path): path for path in mutated})
    code = pytest.main([*ARGUMENTS, *kept], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)
    texts = {path: texts_of((root / path).read_text()) for path in mutated}
    for name, file in kept.items():
        tests = {
            test: {"seconds": round(spent, 4), "lines": sorted({texts[p][n - 1] for p in lines for n in lines[p]})}
            for test, (lines, spent) in recorder.tests.items()
            if test.split("::")[0] == name and test not in recorder.failing
        }
        file.write_text(json.dumps({"tests": tests, "modules": recorder.modules}))
    return 0


def texts_of(source: str) -> list[str]:
    """Lines without their indentation."""
    return [line.strip() for line in source.splitlines()]


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
            tests |= {test: Seen(set(seen["lines"]), seen["seconds"]) for test, seen in found["tests"].items()}
        return cls(root, tests, list(modules))

    def likely(self, mutant: Mutant, seconds: float) -> tuple[list[str], int]:
        """Tests that can notice a mutant, those of few lines and short first, as many as fit in ``seconds``; and how
        many did not fit."""
        found: list[str] = []
        for lines in self._reached(mutant):
            found = found or [name for name, seen in self.tests.items() if seen.lines & lines]
        cost = {name: (self.tests[name].seconds + 0.02) * len(self.tests[name].lines) for name in found}
        chosen, spent = [], 0.0
        for name in sorted(found, key=cost.__getitem__):
            spent += self.tests[name].seconds
            if self.tests[name].seconds < LONGEST and (spent < seconds or not chosen):
                chosen.append(name)
        return chosen, len(found) - len(chosen)

    def _reached(self, mutant: Mutant) -> Iterator[set[str]]:
        """Texts of the lines of a mutant's statement, then of its function or class. A constant of the module counts
        where its name is used, and what stands in a class (a default) where its methods run."""
        source = (self.root / mutant.path).read_text()
        texts = texts_of(source)
        if not mutant.name:
            word = re.compile(rf"\b{re.escape(mutant.before.split(' ')[0])}\b")
            yield {line for seen in self.tests.values() for line in seen.lines if word.search(line)}
        yield _plain(texts[n - 1] for n in mutant.reached)
        around = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        spans = [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in around]
        for span in sorted((span for span in spans if mutant.reached.start in span), key=len):
            yield _plain(texts[n - 1] for n in span)


def _plain(lines: Iterable[str]) -> set[str]:
    """Those that say something: brackets and ``else`` are the same everywhere."""
    return {line for line in lines if len(line) > 7}
