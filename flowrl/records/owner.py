"""Which process writes a run, and asking it to stop: read from the run's lock, which it holds."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from flowrl.errors import UserError
from flowrl.processes import is_running


@dataclass(frozen=True)
class Owner:
    """The process named in a run's lock."""

    process: int
    machine: str

    @property
    def here(self) -> bool:
        """Whether it is on this machine."""
        return self.machine == os.uname().nodename


def owner(run: Path) -> Owner | None:
    """The process that writes ``run``; None where nobody does. A process of another machine is taken at its word."""
    try:
        words = (run / ".lock").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.fullmatch(r"process (\d+) on (.+)", words.strip())
    if found is None:
        return None
    named = Owner(int(found[1]), found[2])
    return named if not named.here or is_running(named.process) else None


def ask_to_stop(run: Path) -> str:
    """Send SIGTERM to the process that writes ``run``: it finishes its iteration, saves and ends. Says what was done.

    Raises `UserError` where nobody here holds the run's lock: a number alone may by now be another's process.
    """
    named = owner(run)
    if named is None:
        raise UserError(f"{run} is not being written: there is nothing to stop")
    if not named.here:
        raise UserError(f"{run} is written on {named.machine}; stop it there")
    if not _is_held(run / ".lock") or not _has_open(named.process, run / ".lock"):
        raise UserError(f"{run}: process {named.process} no longer holds the run's lock; nothing was stopped")
    os.kill(named.process, signal.SIGTERM)
    return f"process {named.process} was asked to stop: it finishes its iteration, saves and ends"


def _is_held(lock: Path) -> bool:
    with lock.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _has_open(process: int, lock: Path) -> bool:
    """Whether a process has this file open; True where the system does not tell."""
    folder = Path(f"/proc/{process}/fd")
    if not Path("/proc/self/fd").is_dir():
        return True
    try:
        return any(link.samefile(lock) for link in folder.iterdir() if link.exists())
    except OSError:
        return False
