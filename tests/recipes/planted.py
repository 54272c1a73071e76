"""Planted regressions: the command line with one expression of the package changed in memory, as `tests/mutation` does.

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
    """``before`` occurs once in the file, and becomes ``after``."""

    path: str
    before: str
    after: str


FAULTS = {
    "sign": Fault(
        "flowrl/train.py",
        "algorithm.advantage(batch.scores, session.memory)",
        "-algorithm.advantage(batch.scores, session.memory)",
    ),
    "factor": Fault("flowrl/session.py", "options.lr * self._schedule()", "0.1 * options.lr * self._schedule()"),
    "stale": Fault(
        "flowrl/staleness.py",
        "session.algorithm.behaviour if version == session.progress.iteration",
        '"reference" if version == session.progress.iteration',
    ),
}
"""An advantage of the wrong sign, a rate of a tenth, samples of the base model instead of the weights in training."""


def plant(name: str) -> None:
    """Change the module before anything imports it."""
    fault = FAULTS[name]
    source = (ROOT / fault.path).read_text()
    assert source.count(fault.before) == 1, f"{fault.path} has {source.count(fault.before)} times {fault.before}"
    module = fault.path.removesuffix(".py").replace("/", ".")
    assert module not in sys.modules
    sys.meta_path.insert(0, Finder(module, ROOT / fault.path, source.replace(fault.before, fault.after).encode()))


if __name__ == "__main__":
    plant(sys.argv.pop(1))
    from flowrl.cli import main

    main()
