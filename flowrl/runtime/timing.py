"""Where the time of an iteration goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch


class PhaseTimer:
    """Wall-clock seconds per named phase since the last ``collect``."""

    clock: ClassVar[Callable[[], float]] = time.perf_counter
    """Benchmarks on a shared machine take ``time.process_time``, the CPU seconds of this process, instead."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = self.clock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``; an accelerator's queue is emptied at both ends."""
        _synchronize()
        start = self.clock()
        try:
            yield
        finally:
            _synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + self.clock() - start

    def collect(self) -> dict[str, float]:
        """``{"time/<phase>": s, ..., "time/iteration": s}``, and start anew. ``time/iteration`` covers everything since
        the last call, so the phases add up to at most it."""
        now = self.clock()
        out = {f"time/{name}": seconds for name, seconds in self._seconds.items()} | {
            "time/iteration": now - self._since
        }
        self._seconds, self._since = {}, now
        return out


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
