"""A worker process of `flowrl.sandbox.worker_pool`: ``python -m flowrl.sandbox.worker module:factory MEMORY SECONDS``.

It imports nothing but the standard library and its target: torch would take seconds and gigabytes of address space.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
from collections.abc import Callable
from typing import Any

from flowrl.processes import open_channel, read_frame, write_frame

MESSAGE = 1000
"""Characters of a failure that are kept."""


def main(target: str, memory: int, seconds: float) -> None:
    """Answer ``[status, value]`` to every item, after one such answer for the start, until there are no more."""
    requests, replies = open_channel()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        function = _load(target)
    except Exception as error:  # reported by the parent, as `ChildError`
        return write_frame(replies, _answer("failed", f"{type(error).__name__}: {error}"))
    write_frame(replies, _answer("done", None))
    while (item := read_frame(requests)) is not None:
        _limit_cpu(seconds)
        try:
            answer = _answer("done", function(json.loads(item)))
        except Exception as error:  # the function's own failure is an answer; the parent counts it
            answer = _answer("failed", f"{type(error).__name__}: {error}"[:MESSAGE])
        write_frame(replies, answer)


def _load(target: str) -> Callable[[Any], Any]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)()


def _answer(status: str, value: Any) -> bytes:
    return json.dumps([status, value]).encode()


def _limit_cpu(seconds: float) -> None:
    """End this process by SIGXCPU if it works on and on because the parent that would kill it was itself killed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime + 2 * seconds) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
