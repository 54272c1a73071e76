"""flowrl's command line with the phases of an iteration timed in CPU seconds of the process, which do not depend on
what else the machine does: ``python -m benchmarks.cpu_clock train CONFIG ...``, with one thread."""

from __future__ import annotations

import time

from flowrl.runtime.timing import PhaseTimer

PHASES = ("sample", "decode", "reward", "advantage", "update")
"""What the seconds of a method are: evaluation, the monitor and loading are the same for all and not counted."""


def use_cpu_clock() -> None:
    """From now on `PhaseTimer` counts CPU seconds."""
    PhaseTimer.clock = time.process_time


def seconds_of(line: dict[str, float]) -> float:
    """What an iteration's line of ``metrics.jsonl`` says that the method took; 0 for the evaluation of the base."""
    return sum(line.get(f"time/{phase}", 0.0) for phase in PHASES) if line["step"] else 0.0


if __name__ == "__main__":
    from flowrl.cli import main

    use_cpu_clock()
    main()
