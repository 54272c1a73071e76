"""Planted regressions: the command line with a mistake in one module, put there in memory, as `tests/mutation` does.

``python -m tests.recipes.planted NAME reproduce CONFIG ...``
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.trial import Finder

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """Each expression occurs once in the file, and becomes the other."""

    path: str
    edits: tuple[tuple[str, str], ...]


ADVANTAGE = "learned.advantage(algorithm, session.memory)"
RATE = "options.lr * self._schedule()"
KEPT = "if session.config.train.staleness:\n        session.policy.update_ema"
SAMPLES = "if version == at else _name(version)"
FAULTS = {
    "sign": Fault("flowrl/train.py", ((ADVANTAGE, f"-{ADVANTAGE}"),)),
    "factor": Fault("flowrl/session.py", ((RATE, f"0.1 * {RATE}"),)),
    "stale": Fault(
        "flowrl/staleness.py",
        (
            (KEPT, KEPT.replace("session.config.train.staleness", "not session.progress.iteration")),
            (SAMPLES, "if at == 0 else _name(0)"),
        ),
    ),
}
"""An advantage of the wrong sign; a rate of a tenth; samples of the weights before the first update, for ever."""


def faulty(fault: Fault) -> str:
    """The module's source with the fault."""
    source = (ROOT / fault.path).read_text()
    for before, after in fault.edits:
        assert source.count(before) == 1, f"{fault.path} has {source.count(before)} times {before}"
        source = source.replace(before, after)
    return source


def plant(name: str) -> None:
    """Change the module before anything imports it."""
    fault = FAULTS[name]
    source = faulty(fault)
    module = fault.path.removesuffix(".py").replace("/", ".")
    assert module not in sys.modules
    sys.meta_path.insert(0, Finder(module, ROOT / fault.path, source.encode()))


if __name__ == "__main__":
    plant(sys.argv.pop(1))
    from flowrl.cli import main

    main()
