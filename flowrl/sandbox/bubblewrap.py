"""Running untrusted Python: bubblewrap, resource limits and a wall clock, proven by a self-test before first use.

A program sees a read-only system (``/usr`` and the interpreter), an empty ``/tmp`` of limited size, and nothing else:
no network, no home, no environment, no other process. System calls that reach memory outside the limits, other kinds
of sockets or rarely used parts of the kernel are refused (`flowrl.sandbox.system_calls`: x86_64 and aarch64; elsewhere
nothing is filtered). What is not defended: holes in the calls that remain, reading what lies in ``/usr`` and the
interpreter's folder, heating the CPU for its allotted seconds, and memory up to ``processes * memory``, since limits
are per process.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from flowrl import processes
from flowrl.errors import UserError
from flowrl.processes import Child, kill_group
from flowrl.sandbox import harness
from flowrl.sandbox.system_calls import compile_filter

NOBODY = 65534
INTERPRETER_SECONDS = 60.0
"""For an interpreter to start, on a busy machine."""
LARGEST = 4 << 20
"""Bytes of one message of the harness."""


@dataclass(frozen=True)
class SandboxLimits:
    """What one program may use."""

    seconds: float = 6.0
    """Wall clock; CPU time of each process ends a second later."""
    memory: int = 512 << 20
    """Bytes of address space, per process."""
    processes: int = 16
    """Processes and threads, the sandbox's own three included."""
    disk: int = 16 << 20
    """Bytes of ``/tmp``, and of any file."""
    files: int = 64
    """Open files."""
    output: int = 64 << 10
    """Bytes of standard output; a program that writes more is killed."""


@dataclass(frozen=True)
class CompletedProgram:
    """How a program ended."""

    status: Literal["ended", "timeout", "output"]
    code: int
    output: bytes
    errors: bytes
    """The first bytes of standard error."""


class Sandbox:
    """A way to run programs that has passed its self-test; `open_sandbox` makes one."""

    def __init__(self, limits: SandboxLimits, python: Path) -> None:
        self.limits, self.python = limits, python

    def run(self, source: str, stdin: bytes = b"", seconds: float | None = None) -> CompletedProgram:
        """Run a program with ``stdin`` and collect its output; everything it started is dead afterwards."""
        process = self._start({"/program.py": source.encode("utf-8", "replace")}, "/program.py")
        try:
            return _collect(process, stdin, self.limits.seconds if seconds is None else seconds, self.limits.output)
        finally:
            _end(process)

    def start_harness(self, part: Literal["program", "tests"]) -> Child:
        """One side of `flowrl.sandbox.harness`, ready to be asked; close what is returned. Raises `UserError` where it
        does not start."""
        harness = Child(self._start(_harness(), "/harness.py", part), largest=LARGEST, kill=_kill)
        try:
            harness.receive(time.monotonic() + INTERPRETER_SECONDS)
        except (TimeoutError, EOFError) as error:
            harness.close()
            raise UserError(
                f"code_tests: {self.python} in the sandbox does not start ({error}); it needs Python 3.10 or later and "
                f"{self.limits.memory >> 20} MB of memory"
            ) from error
        return harness

    def _start(self, files: Mapping[str, bytes], *arguments: str) -> subprocess.Popen[bytes]:
        """Python in the sandbox, with ``files`` by their paths there."""
        root = os.geteuid() == 0  # exempt from the limit on processes, so it becomes nobody first
        with contextlib.ExitStack() as opened:
            command, descriptors = _bubblewrap(self.limits, self.python), []
            for path, content in files.items():
                descriptors.append(opened.enter_context(_in_memory(content)))
                command += ["--ro-bind-data", str(descriptors[-1]), path]
            command += ["--remount-ro", "/"]
            if (calls := compile_filter()) is not None:
                descriptors.append(opened.enter_context(_in_memory(calls)))
                command += ["--seccomp", str(descriptors[-1])]
            command += ["--", *_prlimit(self.limits), str(self.python), "-s", "-B", *arguments]
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=descriptors,
                    env={},
                    start_new_session=True,
                    bufsize=0,
                    user=NOBODY if root else None,
                    group=NOBODY if root else None,
                    extra_groups=[] if root else None,
                )
            except OSError as error:
                raise UserError(_not_started(error, root)) from error


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    """An anonymous file of this content, open at its start while the block lasts."""
    descriptor = os.memfd_create("flowrl")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _harness() -> dict[str, bytes]:
    """The harness, and of flowrl the one module that it imports, by their paths in the sandbox."""
    files = {"/harness.py": harness.__file__, "/flowrl/processes.py": processes.__file__}
    return {"/flowrl/__init__.py": b""} | {path: Path(file).read_bytes() for path, file in files.items()}


def _not_started(error: OSError, root: bool) -> str:
    if root and isinstance(error, PermissionError):
        return (
            f"code_tests: flowrl runs as root here but may not become another user ({error.strerror}), so programs "
            "could not be limited: run it as an ordinary user, or give the container CAP_SETUID and CAP_SETGID"
        )
    return f"code_tests: bubblewrap does not start ({error.strerror}): apt install --reinstall bubblewrap"


def _bubblewrap(limits: SandboxLimits, python: Path) -> list[str]:
    command = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
    ]
    command += ["--clearenv", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    command += ["--ro-bind", "/usr", "/usr"]
    for folder in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    prefix = python.parent.parent
    if not prefix.is_relative_to("/usr"):
        command += ["--ro-bind", str(prefix), str(prefix)]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(limits.disk), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    settings = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    for name, value in settings.items():
        command += ["--setenv", name, value]
    return command


def _prlimit(limits: SandboxLimits) -> list[str]:
    # Set inside the user namespace, where the count of processes starts at zero.
    values = {
        "cpu": math.ceil(limits.seconds) + 1,
        "as": limits.memory,
        "nproc": limits.processes,
        "fsize": limits.disk,
        "nofile": limits.files,
        "core": 0,
    }
    return [
        shutil.which("prlimit") or "/usr/bin/prlimit",
        *(f"--{name}={value}:{value}" for name, value in values.items()),
        "--",
    ]


def _collect(process: subprocess.Popen[bytes], stdin: bytes, seconds: float, limit: int) -> CompletedProgram:
    """Feed and read a process until it ends, time is up or its output is too long."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    deadline, left = time.monotonic() + seconds, memoryview(stdin)
    output, errors = process.stdout.fileno(), process.stderr.fileno()
    seen = {output: bytearray(), errors: bytearray()}
    reading, feeding = [output, errors], process.stdin.fileno()
    os.set_blocking(feeding, False)

    def ended(status: Literal["ended", "timeout", "output"], code: int = -1) -> CompletedProgram:
        return CompletedProgram(status, code, bytes(seen[output]), bytes(seen[errors]))

    while reading:
        if not left and not process.stdin.closed:
            process.stdin.close()
        readable, writable, _ = select.select(
            reading, [feeding] if left else [], [], max(0.0, deadline - time.monotonic())
        )
        if time.monotonic() >= deadline:
            return ended("timeout")
        if writable:
            left = _feed(feeding, left)
        for channel in readable:
            block = os.read(channel, 1 << 16)
            if not block:
                reading.remove(channel)
            seen[channel] += block[: limit + 1 - len(seen[channel])]
        if len(seen[output]) > limit:
            return ended("output")
    try:
        return ended("ended", process.wait(max(0.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        return ended("timeout")


def _feed(channel: int, left: memoryview) -> memoryview:
    """Write what fits; nothing is left for a process that does not want it."""
    try:
        return left[os.write(channel, left[: 1 << 16]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the first process of the namespace, and with it all others; then bubblewrap, should it still be there.

    In this order, because bubblewrap collects its child; killed first, it would leave a zombie per run to a container
    without an init.
    """
    if process.returncode is not None:  # once it is collected, its number may be another's
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # it may have ended, or never come to have a child
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children") if process.poll() is None else None
        for child in children.read_text().split() if children else ():
            os.kill(int(child), signal.SIGKILL)
        process.wait(1.0)
    if process.returncode is None:
        kill_group(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
