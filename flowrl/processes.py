"""Child processes that are asked by frames (8 bytes of length, then the content) through standard input and output.

Every child of flowrl that answers questions speaks so: a reward in a process of its own, the reward server's workers,
verifiers that may hang, programs in the sandbox. Nothing is unpickled. Only the standard library of Python 3.10 is
used, since the sandbox's interpreter, which sees nothing else of flowrl, gets this file as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import BinaryIO

START_SECONDS = 600.0
"""For a reward to load in another process: imports and weights, on a busy machine."""
LARGEST = 1 << 40
"""Bytes of a frame of a trusted child."""
ENDING_SECONDS = 1.0
"""A child that closed its output has this long to say with which code it ends."""
_LENGTH = struct.Struct(">Q")
_JOINED = 1 << 16
"""Bytes of a frame up to which it is copied to be written with its length at once."""


class ChildError(RuntimeError):
    """What happened in a child process, as text: why it did not start, or the traceback of what it answered with."""


LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` tells a process. It is that process' alone: a child with it, in which a library looks at it, would
wait for the others."""


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number, also where it is another user's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group, and all of the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended (macOS says the latter of zombies)
        os.killpg(process.pid, signal.SIGKILL)


class Child:
    """A process that answers frames, asked from one thread at a time.

    ``process`` has pipes as standard input and output and leads a process group; ``kill`` ends it and all it started.
    ``largest`` bounds a frame that it sends, in bytes. Deadlines are times of ``time.monotonic()``; None is never.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        largest: int = LARGEST,
        kill: Callable[[subprocess.Popen[bytes]], None] = kill_group,
    ) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._largest, self._kill = process, largest, kill
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._busy = threading.RLock()
        os.set_blocking(self._in, False)

    @classmethod
    def start(
        cls,
        module: str,
        *arguments: str,
        without: Iterable[str] = (),
        stderr: int | None = None,
        largest: int = LARGEST,
    ) -> Child:
        """``python -m module`` with this process's import path and environment, but the variables ``without`` and a
        launcher's; in a session of its own, so that Ctrl-C goes to the parent alone, which ends its children."""
        left_out = {*LAUNCHER_VARIABLES, *without}
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", module, *arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        return cls(process, largest=largest)

    @property
    def ended(self) -> bool:
        """Whether the process is no longer there."""
        return self._exit_code(0) is not None

    def ask(self, *frames: bytes, seconds: float | None) -> bytes:
        """The frame that answers these frames. After any failure the process is ended: what it says later would be
        taken for another answer. Raises `TimeoutError`, and `EOFError` that says how it ended."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._busy:
            try:
                for frame in frames:
                    self.send(frame, deadline)
                return self.receive(deadline)
            except BaseException:
                self.close()
                raise

    def send(self, content: bytes, deadline: float | None) -> None:
        """Write a frame. Raises `TimeoutError` when the child does not read, `EOFError` when it has ended."""
        length = _LENGTH.pack(len(content))
        for part in (length + content,) if len(content) < _JOINED else (length, content):  # it wakes up once
            left = memoryview(part)
            while left:
                if not select.select([], [self._in], [], _left(deadline))[1]:
                    raise TimeoutError("it does not read")
                try:
                    left = left[os.write(self._in, left) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise EOFError(self._ending()) from None

    def receive(self, deadline: float | None) -> bytes:
        """The next frame. Raises `TimeoutError`, `EOFError` when the child has ended or the frame is too large."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        if length > self._largest:
            raise EOFError(f"it answers with {length} bytes, and may with {self._largest}")
        return self._read(length, deadline)

    def kill(self) -> None:
        """End the process and all it started; from any thread, without waiting."""
        if self._process.returncode is None:  # once it is collected, its number may be another's
            self._kill(self._process)

    def close(self) -> None:
        """End the process, wait for that, and close its pipes."""
        self.kill()
        with self._busy:  # whoever waits for its answer finds its end first
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()

    def _read(self, count: int, deadline: float | None) -> bytes:
        content = bytearray()
        while len(content) < count:
            if not select.select([self._out], [], [], _left(deadline))[0]:
                raise TimeoutError("no answer in time")
            block = os.read(self._out, min(count - len(content), 1 << 20))
            if not block:
                raise EOFError(self._ending())
            content += block
        return bytes(content)

    def _ending(self) -> str:
        code = self._exit_code(ENDING_SECONDS)
        if code is None:
            return "its process closed its output"
        return f"its process ended {f'by signal {-code} ({_signal(-code)})' if code < 0 else f'with code {code}'}"

    def _exit_code(self, seconds: float) -> int | None:
        """The code it ended with, minus the signal that ended it; None if that takes longer."""
        if self._process.returncode is None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            self._kill(self._process)  # what it has left behind
        return self._process.returncode


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _signal(number: int) -> str:
    """The name of a signal; SIGKILL is what a system sends whose memory runs out."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return "unknown"
    return f"{name}, as from a system without memory" if name == "SIGKILL" else name


def open_channel(*, silent: bool = False) -> tuple[BinaryIO, BinaryIO]:
    """In a child: the streams of requests and of replies. Its standard input becomes empty and what it prints goes to
    standard error (nowhere, if ``silent``), so that what libraries read or print disturbs nothing."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    if silent:
        os.dup2(nothing, 2)
    os.dup2(2, 1)
    os.dup2(nothing, 0)
    os.close(nothing)
    return requests, replies


def read_frame(requests: BinaryIO) -> bytes | None:
    """In a child: the next request; None when there will be no other."""
    header = requests.read(_LENGTH.size)
    return requests.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else None


def write_frame(replies: BinaryIO, content: bytes) -> None:
    """In a child: answer."""
    replies.write(_LENGTH.pack(len(content)))
    replies.write(content)
    replies.flush()


def end_with_parent() -> None:
    """In a child: end within a second after the parent, even while hanging: a parent that was killed ends nothing."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
