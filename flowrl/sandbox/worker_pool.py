"""A pool of worker processes that may be killed: for work on a policy's output that can hang or eat the memory.

A worker is this file run as a program. Both sides speak JSON lines through its standard input and output, so nothing
is unpickled. Signals (math-verify's own time limit) work in the main thread only and not inside one long C call;
killing works always.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

START_SECONDS = 120.0
"""For the imports of a new worker, on a busy machine."""
MAX_REPLY = 1 << 20
"""Bytes of one reply; a worker that says more is killed."""


class WorkerError(RuntimeError):
    """A worker could not start: its module does not import, or its memory limit is too small for that."""


@dataclass(frozen=True)
class Reply:
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

    def map(self, items: Sequence[Any]) -> list[Reply]:
        """One reply per item, in order. Raises `WorkerError` when a worker cannot start."""
        with ThreadPoolExecutor(len(self._workers)) as threads:
            replies = list(threads.map(self._one, items))
        for reply in replies:
            self.counts[reply.status] += 1
        return replies

    def close(self) -> None:
        """End the worker processes; they start again if the pool is used again."""
        for worker in self._workers:
            worker.kill()

    def _one(self, item: Any) -> Reply:
        worker = self._idle.get()
        try:
            return worker.ask(item)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started when first needed."""

    def __init__(self, target: str, timeout: float, memory: int, recycle: int) -> None:
        self.target, self.timeout, self.memory, self.recycle = target, timeout, memory, recycle
        self.process: subprocess.Popen[bytes] | None = None
        self.asked = 0
        self.rest = b""

    def ask(self, item: Any) -> Reply:
        if self.process is None or self.asked >= self.recycle or self.process.poll() is not None:
            self.start()
        assert self.process is not None and self.process.stdin is not None
        self.asked += 1
        try:
            self.process.stdin.write(json.dumps(item).encode() + b"\n")
            self.process.stdin.flush()
            return Reply(**json.loads(self.read_line(self.timeout)))
        except TimeoutError:
            self.kill()
            return Reply("timeout")
        except (EOFError, BrokenPipeError):
            self.kill()
            return Reply("crashed")

    def start(self) -> None:
        self.kill()
        # Run as a file: importing flowrl.score would load torch, seconds and gigabytes of address space.
        command = [sys.executable, "-u", os.path.abspath(__file__), self.target, str(self.memory), str(self.timeout)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the trainer, which closes the pool
        )
        self.asked, self.rest = 0, b""
        try:
            ready = json.loads(self.read_line(START_SECONDS))
        except (TimeoutError, EOFError) as error:
            self.kill()
            raise WorkerError(f"a worker for {self.target} did not start: {error}") from None
        if ready["status"] != "done":
            self.kill()
            raise WorkerError(f"a worker for {self.target} did not start: {ready['value']}")

    def read_line(self, seconds: float) -> bytes:
        """The next line. Raises `TimeoutError`, or `EOFError` when the process ended or said too much."""
        assert self.process is not None and self.process.stdout is not None
        channel, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([channel], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer after {seconds:g} s")
            block = os.read(channel, 1 << 16)
            if not block or len(self.rest) > MAX_REPLY:
                raise EOFError("the process ended" if not block else "too long a reply")
            self.rest += block
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def kill(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # an item that the dead process did not read
                continue
        self.process = None


def _serve(target: str, memory: int, seconds: float) -> None:
    """The worker's side: answer items until standard input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer

    def say(status: str, value: Any) -> None:
        channel.write(json.dumps({"status": status, "value": value}) + "\n")
        channel.flush()

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, name = target.partition(":")
    try:
        function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)()
    except Exception as error:  # reported by the parent, as `WorkerError`
        say("failed", f"{type(error).__name__}: {error}")
        return
    say("done", None)
    for line in sys.stdin:
        _limit_cpu(seconds)
        try:
            status, value = "done", function(json.loads(line))
        except Exception as error:  # the function's own failure is an answer; the parent counts it
            status, value = "failed", f"{type(error).__name__}: {error}"[:1000]
        say(status, value)


def _limit_cpu(seconds: float) -> None:
    """End this process by SIGXCPU if it works on and on because the parent that would kill it was itself killed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime + 2 * seconds) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, whose modules are not meant to be found
    _serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
