"""Does a Python program pass its unit tests, run in a sandbox."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.processes import Child
from flowrl.sandbox.bubblewrap import Sandbox, SandboxLimits
from flowrl.sandbox.self_test import open_sandbox

RANGE = "[0, 1]"
NEEDS = ("tests or inputs and outputs", "bubblewrap")
FENCE = re.compile(r"```(?:py(?:thon)?3?)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
MAX_SOURCE = 100_000
"""Characters of a program; a longer one scores 0."""


class code_tests:  # noqa: N801 - the name a config uses
    """Fraction of tests that the program in a completion passes; with ``partial: false``, 1 for all of them, else 0.

    Column ``tests``: Python sources such as ``assert f(2) == 3`` (after the optional column ``setup``, once per test;
    where a test only defines ``check(candidate)``, functions ``test...`` or unittest's classes, they are run, the first
    with the function that the optional column ``entry_point`` names),
    or columns ``inputs`` and ``outputs``: standard input of a run and the output it must give, compared line by line
    without trailing white space. The program is the last fenced block of the completion, or all of it. NaN where a
    prompt has no tests, or where its tests cannot be run (below). A test that passes without asking the program
    anything is not counted.

    A program runs only in `flowrl.sandbox.bubblewrap`. One that hangs costs one zero and one timeout (``counts``). It
    cannot announce its own success: outputs are compared here, and tests run in a second sandbox that never sees the
    program. Its functions are called from there with arguments as data and answer with data, so leaving early,
    printing, patching and ``__eq__`` gain nothing, and expected values are out of its reach. The tests see Python's own
    builtins and modules, whatever the program calls ``set`` or ``math`` (`flowrl.sandbox.harness.requested_names` has
    the rule, and what it does where the function asked for is called ``sum``). Objects of the program's own classes
    stay with it and are reached by attribute and call; two of them are compared by their own ``__eq__``.
    What is not defended: weak tests (a constant that happens to be right; an expected value that is among the
    arguments; a test that asks only whether something is true, or evaluates text of the program's). What is not
    supported: tests that hand functions of their own to the program (scored NaN, counted as ``crossing``), or that need
    the program's classes as classes (``isinstance``, ``except``): those fail.

    ``seconds`` is the time for all tests of a program (for each run, with inputs), ``memory`` in bytes per process,
    ``workers`` the number of programs at a time. Raises `UserError` where the sandbox is missing or not proven tight.
    """

    def __init__(
        self,
        *,
        partial: bool = True,
        seconds: float = 6.0,
        memory: int = 512 << 20,
        processes: int = 16,
        max_tests: int = 50,
        workers: int = 2,
    ) -> None:
        self.partial, self.max_tests, self.workers = partial, max_tests, workers
        self.counts: Counter[str] = Counter()
        """Programs by what became of them: ``scored``, ``timeout``, ``broken`` (does not import), ``crossing``."""
        self._sandbox = open_sandbox(SandboxLimits(seconds=seconds, memory=memory, processes=processes))

    def __call__(self, completions: Sequence[str], prompts: Sequence[str], **columns: Sequence[Any]) -> Tensor:
        """[N] float64 in [0, 1] or NaN; ``columns`` holds ``tests`` (and ``setup``), or ``inputs`` and ``outputs``."""
        if "tests" not in columns and not {"inputs", "outputs"} <= set(columns):
            have = ", ".join(sorted(columns)) or "none"
            raise UserError(f"code_tests needs the column 'tests', or 'inputs' and 'outputs' (columns: {have})")
        empty = [None] * len(completions)
        tasks = [
            json.dumps([program(text), *(_listed(column) for column in row)])
            for text, *row in zip(
                completions,
                *(columns.get(name, empty) for name in ("tests", "setup", "inputs", "outputs", "entry_point")),
                strict=True,
            )
        ]
        unique = list(dict.fromkeys(tasks))  # samples of a group often agree
        with ThreadPoolExecutor(self.workers) as threads:
            results = dict(zip(unique, threads.map(self._score, unique), strict=True))
        self.counts.update(kind for _, kind in results.values())
        return torch.tensor([results[task][0] for task in tasks], dtype=torch.float64)

    def _score(self, task: str) -> tuple[float, str]:
        source, tests, setup, inputs, outputs, entry_point = json.loads(task)
        if not tests and not inputs:
            return float("nan"), "untested"
        if len(source) > MAX_SOURCE:
            return 0.0, "broken"
        if tests:
            judging = {"tests": tests[: self.max_tests], "setup": "\n".join(setup), "entry_point": "".join(entry_point)}
            passed, asked, kind = _examine(self._sandbox, source, judging)
        else:
            if len(inputs) != len(outputs):
                raise UserError(f"code_tests: {len(inputs)} inputs but {len(outputs)} outputs for one prompt")
            pairs = list(zip(inputs, outputs, strict=True))[: self.max_tests]
            passed, kind = _compare(self._sandbox, source, pairs)
            asked = len(pairs)
        if kind == "crossing" or (kind == "scored" and not asked):
            return float("nan"), "untested" if kind == "scored" else kind
        share = passed / asked if kind == "scored" else 0.0
        return (share if self.partial else float(share == 1)), kind


def program(completion: str) -> str:
    """The last fenced block of a completion, closed or not, or the completion itself."""
    blocks = FENCE.findall(completion)
    return blocks[-1] if blocks else completion


def _compare(sandbox: Sandbox, source: str, pairs: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """How many runs gave the right output."""
    passed = 0
    for given, wanted in pairs:
        outcome = sandbox.run(source, str(given).encode("utf-8", "replace"))
        if outcome.status == "timeout":
            return 0, "timeout"
        right = _lines(outcome.output.decode("utf-8", "replace")) == _lines(str(wanted))
        passed += outcome.status == "ended" and outcome.code == 0 and right
    return passed, "scored"


def _examine(sandbox: Sandbox, source: str, judging: dict[str, Any]) -> tuple[int, int, str]:
    """How many tests passed of how many that ask something, asked from a sandbox of their own."""
    mine = sandbox.start_harness("program")
    try:
        deadline = time.monotonic() + sandbox.limits.seconds
        mine.send(json.dumps({"source": source}).encode(), deadline)
        loaded = mine.receive(deadline)
        names = _names(loaded)
        if names is None:
            return 0, 1, "broken"
        judge = sandbox.start_harness("tests")
        try:
            deadline = time.monotonic() + sandbox.limits.seconds
            judge.send(json.dumps(judging | {"names": names}).encode(), deadline)
            return _relay(judge, mine, len(judging["tests"]), deadline)
        finally:
            judge.close()
    except TimeoutError:
        return 0, 1, "timeout"
    except EOFError:
        return 0, 1, "broken"
    finally:
        mine.close()


def _relay(judge: Child, mine: Child, count: int, deadline: float) -> tuple[int, int, str]:
    """Carry calls and answers, unread, until every test has its verdict."""
    passed = asked = 0
    for _ in range(count):
        while (frame := judge.receive(deadline))[:1] != b"t":
            try:
                mine.send(frame[1:], deadline)
                answer = mine.receive(deadline)
            except EOFError:  # it left: this and all later calls fail
                answer = b'{"raised": "EOFError", "message": "the program has ended"}'
            judge.send(answer, deadline)
        verdict = json.loads(frame[1:])["verdict"]
        if verdict.startswith("crossing"):
            return 0, 1, "crossing"
        asked, passed = asked + (verdict != "vacuous"), passed + (verdict == "passed")
    return passed, asked, "scored"


def _names(answer: bytes) -> dict[str, Any] | None:
    """What a program defines, or None where it did not load (or lies about it)."""
    try:
        names = json.loads(answer).get("names")
    except (ValueError, RecursionError, AttributeError):
        return None
    return names if isinstance(names, dict) else None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
