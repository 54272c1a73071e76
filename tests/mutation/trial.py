"""One mutant tried: a fork that imports the changed module from memory and runs the likely tests until one fails."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from tests.mutation.coverage import ARGUMENTS
from tests.mutation.mutants import Mutant


@dataclass(frozen=True)
class Outcome:
    """``killed``: a test failed, or the module could not be imported; ``timeout`` counts as noticed as well. ``error``:
    the tests did not get to an end, which says nothing."""

    verdict: str
    by: str
    seconds: float


class _Loader(importlib.machinery.SourceFileLoader):
    source = b""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Imports one module from changed source."""

    def __init__(self, name: str, path: Path, source: bytes) -> None:
        self.name, self.path, self.source = name, str(path), source

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, self.path)
        loader.source = self.source
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


class _Chosen:
    """A pytest plugin: only these tests, in this order."""

    def __init__(self, tests: list[str], say: Callable[[str], object]) -> None:
        self.place, self.say = {name: index for index, name in enumerate(tests)}, say

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.say(f"import of {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.say(report.nodeid)


def preload(modules: list[str]) -> None:
    """Import what tests import of other packages, so that a fork has it already."""
    for name in modules:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # a name that a package made up; the fork imports what it needs
                continue


WAITING = 20
"""A fork may take this many times its processor seconds, for it shares the machine."""


def forked(work: Callable[[], int], log: Path, seconds: float) -> int | None:
    """The exit code of ``work`` in a fork that writes to ``log``; None if it took more than ``seconds`` of the
    processor, or waited for something that does not come, and was killed."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            code = work()
        finally:
            os._exit(code)
    end = time.monotonic() + WAITING * seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGXCPU else code
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def attempt(root: Path, mutant: Mutant, tests: list[str], scratch: Path, seconds: float) -> Outcome:
    """Try one mutant on ``tests``, for at most ``seconds``."""
    start, told = time.monotonic(), scratch / "failed.txt"
    told.write_text("")

    def work() -> int:
        source = mutant.applied((root / mutant.path).read_bytes())
        module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sys.meta_path.insert(0, Finder(module, root / mutant.path, source))
        files = list(dict.fromkeys(name.split("::")[0] for name in tests))
        say = told.write_text
        return int(pytest.main([*ARGUMENTS, "-x", *files], plugins=[_Chosen(tests, say)]))

    code = forked(work, scratch / "output.txt", seconds) if tests else 0
    verdict = {None: "timeout", 0: "survived", 1: "killed", 2: "killed"}.get(code, "error")
    return Outcome(verdict, told.read_text(), time.monotonic() - start)
