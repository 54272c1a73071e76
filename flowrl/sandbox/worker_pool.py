"""A pool of worker processes that may be killed: for work on a policy's output that can hang or eat the memory.

A worker is `flowrl.sandbox.worker`, asked in JSON. Signals (math-verify's own time limit) work in the main thread only
and not inside one long C call; killing works always.
"""

from __future__ import annotations

import json
import queue
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from flowrl.processes import Child, ChildError

PROGRAM = "flowrl.sandbox.worker"
IMPORT_SECONDS = 120.0
"""For the imports of a new worker, on a busy machine."""
LARGEST = 1 << 20
"""Bytes of an answer; a worker that says more is killed."""


@dataclass(frozen=True)
class ItemResult:
    """What became of one item."""

    status: Literal["done", "failed", "timeout", "crashed"]
    """``failed``: the function raised (running out of memory included). ``crashed``: the process died."""
    value: Any = None
    """The function's answer, or the exception as text."""


class WorkerPool:
    """Applies one function to items in processes that are killed and replaced when an item takes too long.

    ``target`` is ``module:factory``; a worker calls the factory once (imports, warm-up) and the function it returns for
    every item. Items and answers are whatever JSON can hold. ``timeout`` is in seconds per item, ``memory`` the address
    space of a worker in bytes; a worker is replaced after ``recycle`` items, since libraries cache without bound.
    """

    def __init__(
        self, target: str, *, workers: int = 2, timeout: float = 3.0, memory: int = 2 << 30, recycle: int = 2000
    ) -> None:
        self.counts = {"done": 0, "failed": 0, "timeout": 0, "crashed": 0}
        self._workers = [_Worker(target, timeout, memory, recycle) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def map(self, items: Sequence[Any]) -> list[ItemResult]:
        """One result per item, in order. Raises `ChildError` when a worker cannot start."""
        with ThreadPoolExecutor(len(self._workers)) as threads:
            results = list(threads.map(self._one, items))
        for result in results:
            self.counts[result.status] += 1
        return results

    def close(self) -> None:
        """End the worker processes; they start again if the pool is used again."""
        for worker in self._workers:
            worker.close()

    def _one(self, item: Any) -> ItemResult:
        worker = self._idle.get()
        try:
            return worker.ask(item)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started when first needed."""

    def __init__(self, target: str, timeout: float, memory: int, recycle: int) -> None:
        self.target, self.timeout, self.memory, self.recycle = target, timeout, memory, recycle
        self.child: Child | None = None
        self.asked = 0

    def ask(self, item: Any) -> ItemResult:
        if self.child is None or self.asked >= self.recycle or self.child.ended:
            self.child = self.start()
        self.asked += 1
        try:
            return _result(self.child.ask(json.dumps(item).encode(), seconds=self.timeout))
        except TimeoutError:
            return ItemResult("timeout")
        except EOFError:
            return ItemResult("crashed")

    def start(self) -> Child:
        self.close()
        limits = (str(self.memory), str(self.timeout))
        child = Child.start(PROGRAM, self.target, *limits, stderr=subprocess.DEVNULL, largest=LARGEST)
        try:
            ready = _result(child.ask(seconds=IMPORT_SECONDS))
        except (TimeoutError, EOFError) as error:
            raise ChildError(f"a worker for {self.target} did not start: {error}") from error
        if ready.status != "done":
            child.close()
            raise ChildError(f"a worker for {self.target} did not start: {ready.value}")
        self.asked = 0
        return child

    def close(self) -> None:
        if self.child is not None:
            self.child.close()


def _result(answer: bytes) -> ItemResult:
    return ItemResult(*json.loads(answer))
