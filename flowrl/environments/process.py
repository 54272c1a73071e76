"""An environment in a process of its own, which can be stopped where a step hangs, and outlived where a simulator ends
its process.

A frame (`flowrl.processes`) is a line of JSON and arrays behind it. Nothing is unpickled.
"""

from __future__ import annotations

import atexit
import json
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flowrl.environments.protocol import Answer, Array
from flowrl.errors import UserError
from flowrl.processes import START_SECONDS, Child, ChildError
from flowrl.types import Prompt

PROGRAM = "flowrl.remote.environment"
"""The other side."""


class ProcessEnvironment:
    """``count`` rows of an environment that live in a process, kept for the next ones that ask for this ``name``.

    A reset or a step, each of all its rows together, may take ``timeout_s`` seconds; the process is killed after that,
    and another one started for the next `ProcessEnvironment`. Raises `ChildError` where it hangs, ends or raises, and
    `UserError` where the environment cannot be made.
    """

    def __init__(self, name: str, count: int, timeout_s: float) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._child: Child | None = _processes.take(name)
        made, _ = self._ask({"do": "make", "name": name, "count": count, "threads": torch.get_num_threads()})
        self.observation_size, self.action_size = made["sizes"]

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> Array:
        """[N, o]. Raises `UserError` for columns of prompts that JSON cannot hold."""
        told = [[prompt.text, prompt.id, dict(prompt.columns)] for prompt in prompts]
        try:
            _, (observed,) = self._ask({"do": "reset", "seeds": list(seeds), "prompts": told})
        except TypeError as error:
            raise UserError(
                f"environment {self._name}: algorithm.sampler.timeout_s sends prompts to another process, and a column "
                f"is no plain value ({error}); remove it, or timeout_s"
            ) from error
        return observed

    def step(self, actions: Array, rows: Array) -> Answer:
        """One step of some rows."""
        _, (observed, reward, terminated, truncated, *known) = self._ask({"do": "step"}, actions, rows)
        return observed, reward, terminated, truncated, dict(zip(KNOWN, known, strict=True))

    def close(self) -> None:
        """Leave the process to the next one."""
        if self._child is not None:
            _processes.give(self._name, self._child)
            self._child = None

    def _ask(self, what: Mapping[str, Any], *arrays: Array) -> tuple[dict[str, Any], list[Array]]:
        if self._child is None:
            raise ChildError("its process was stopped")
        seconds = START_SECONDS if what["do"] == "make" else self._timeout_s
        question = pack(what, arrays)
        try:
            said, found = unpack(self._child.ask(question, seconds=seconds))
        except BaseException as failure:
            self._child = None  # what fails there has ended the process
            if isinstance(failure, TimeoutError):
                raise ChildError(f"it took longer than {seconds:g} s, and its process was killed") from failure
            if isinstance(failure, EOFError):
                raise ChildError(str(failure)) from failure
            raise
        if "mistake" in said:
            raise UserError(said["mistake"])
        if "error" in said:
            raise ChildError(said["error"])
        return said, found


KNOWN = ("success", "mode")
"""What is read of an environment's ``info``."""


def pack(said: Mapping[str, Any], arrays: Sequence[Array] = ()) -> bytes:
    """A frame. Raises `TypeError` where something said is no plain value."""
    blocks = [np.ascontiguousarray(array) for array in arrays]
    kinds = [[block.dtype.str, array.shape] for block, array in zip(blocks, arrays, strict=True)]
    return b"\n".join([json.dumps({**said, "arrays": kinds}).encode(), b"".join(block.tobytes() for block in blocks)])


def unpack(frame: bytes) -> tuple[dict[str, Any], list[Array]]:
    """What `pack` was given."""
    line, _, content = frame.partition(b"\n")
    said, place = json.loads(line), 0
    writable, found = bytearray(content), []
    for kind, shape in said.pop("arrays"):
        count = math.prod(shape)
        found.append(np.frombuffer(writable, np.dtype(kind), count, place).reshape(shape))
        place += found[-1].nbytes
    return said, found


class _Processes:
    """Processes that wait to be asked again: an environment is made anew for every batch of episodes, and its imports
    take seconds. They end with this process, whichever way it ends (`flowrl.processes.end_with_parent`)."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Child]] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def take(self, name: str) -> Child:
        """One that had this environment before, or a new one."""
        with self._lock:
            waiting = self._waiting.get(name, [])
            while waiting:
                child = waiting.pop()
                if not child.ended:
                    return child
                child.close()
        return Child.start(PROGRAM)

    def give(self, name: str, child: Child) -> None:
        """Keep it."""
        with self._lock:
            self._waiting.setdefault(name, []).append(child)

    def close(self) -> None:
        """End all that wait."""
        with self._lock:
            for child in [child for waiting in self._waiting.values() for child in waiting]:
                child.close()
            self._waiting.clear()


_processes = _Processes()
