"""A command of flowrl in this process, and what the device saw of it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowrl.cli import main
from flowrl.devices import in_use, peak_allocated, reset_peaks
from flowrl.runtime.timing import PhaseTimer
from tests import fakegpu


@contextmanager
def watched() -> Iterator[fakegpu.Events]:
    """Events under the phases of the run that is timed."""
    before = PhaseTimer.__call__
    with fakegpu.watch("/flowrl/") as events:

        @contextmanager
        def timed(self: PhaseTimer, name: str) -> Iterator[None]:
            outer, events.phase = events.phase, name
            try:
                with before(self, name):
                    yield
            finally:
                events.phase = outer

        PhaseTimer.__call__ = timed  # type: ignore[method-assign]
        try:
            yield events
        finally:
            PhaseTimer.__call__ = before  # type: ignore[method-assign]


def run(arguments: list[str]) -> dict[str, Any]:
    """Exit code, events by kind and by phase, waits, and the peak of allocated bytes of a command."""
    gc.collect()  # what the command before left
    sys.argv = ["flowrl", *arguments]
    reset_peaks()
    with watched() as events:
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
    return {
        "code": code,
        "events": dict(events.totals),
        "phases": {phase: dict(found) for phase, found in events.phases.items()},
        "waits": events.waits(),
        "peak": max(map(peak_allocated, in_use()), default=0),
        "table": events.table(),
    }
