"""Where the time of an iteration goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowrl.devices import synchronize


class PhaseTimer:
    """Wall-clock seconds per named phase since the last ``collect``; ``on_phase`` is called with each that begins."""

    @staticmethod
    def clock() -> float:
        """Seconds. Benchmarks on a shared machine put ``time.process_time`` here, the CPU seconds of this process."""
        return time.perf_counter()

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        self._on_phase = on_phase
        self._seconds: dict[str, float] = {}
        self.failed: str | None = None
        """The innermost phase that an exception has left since the last ``collect``."""
        self._since = self.clock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``; an accelerator's queue is emptied at both ends."""
        if self._on_phase is not None:
            self._on_phase(name)
        synchronize()
        start = self.clock()
        try:
            yield
        except BaseException:
            self.failed = self.failed or name
            raise
        else:
            synchronize()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self.clock() - start

    def collect(self) -> dict[str, float]:
        """``{"time/<phase>": s, ..., "time/iteration": s}``, and start anew. ``time/iteration`` covers everything since
        the last call, so the phases add up to at most it."""
        now = self.clock()
        out = {f"time/{name}": seconds for name, seconds in self._seconds.items()} | {
            "time/iteration": now - self._since
        }
        self._seconds, self._since, self.failed = {}, now, None
        return out


class RunClock:
    """Seconds of a run, over all its sessions."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before

    def __call__(self) -> float:
        return time.perf_counter() - self._start
