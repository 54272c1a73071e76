"""Tries many damaged inputs and counts what comes of each: accepted, one clean sentence, a traceback, a hang.

Every case follows from its target's name and its number, so a finding is repeated by ``one(target, number)``.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

import flowrl.models  # noqa: F401  (slow to import, and no case should wait for it)
from flowrl.errors import MOST_CHARACTERS, MOST_CHARACTERS_OF_SEVERAL, MOST_LINES, UserError

Case = Callable[[random.Random, Path], None]
"""Makes an input from the random numbers, in the folder, and gives it to flowrl."""
COMPUTING, WAITING = 20.0, 120.0
"""Seconds of computing, and of computing or waiting, after which a case counts as hanging; a busy machine is slow."""
PATIENCE = 4.0
ALARMS = ((signal.SIGPROF, signal.ITIMER_PROF, COMPUTING), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the folders of the cases are: a disk that syncs slows them down."""
USAGE: Any = typer.BadParameter.__bases__[0].__bases__[0]
"""What the command line raises for arguments that it does not know."""


OUTCOMES = ("accepted", "clean", "traceback", "hang")
HEAD = f"| target | tried | {' | '.join(OUTCOMES)} |\n|---|{'---:|' * (1 + len(OUTCOMES))}"


class Hang(BaseException):
    """A case took longer than the watchdog allows."""


@dataclass
class Count:
    """What became of the cases of a target."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def row(self) -> str:
        """The counts as a row of `HEAD`'s table."""
        return " | ".join(str(self.outcomes[name]) if name else str(self.outcomes.total()) for name in ("", *OUTCOMES))


def one(case: Case, name: str, number: int) -> tuple[str, str]:
    """``(outcome, what was said)`` of a case; a message that is too long or holds control characters is a traceback's
    equal."""
    folder = Path(tempfile.mkdtemp(prefix="flowrl-fuzz-", dir=MEMORY))
    rng = random.Random(f"{name}:{number}")
    before = {number: signal.signal(number, _ring) for number, _, _ in ALARMS}
    for _, clock, seconds in ALARMS:
        signal.setitimer(clock, seconds)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            case(rng, folder)
        return "accepted", ""
    except UserError as error:
        return ("clean", str(error)) if _fit(str(error)) else ("traceback", f"unfit message: {str(error)[:2000]!r}")
    except (USAGE, typer.Exit, typer.Abort) as error:
        return "clean", str(error)
    except Hang:
        return "hang", traceback.format_exc(limit=-6)
    except Exception:
        return "traceback", traceback.format_exc(limit=-6)
    finally:
        for signal_number, clock, _ in ALARMS:
            signal.setitimer(clock, 0)
            signal.signal(signal_number, before[signal_number])
        shutil.rmtree(folder, ignore_errors=True)


def explore(cases: Mapping[str, Case], seconds: float, first: int = 0) -> dict[str, Count]:
    """Cases of all targets in turn, as many as there is computing time for, from number ``first`` on; each target gets
    an equal share. On a busy machine it takes longer, `PATIENCE` times at most."""
    counts = {name: Count() for name in cases}
    spent = dict.fromkeys(cases, 0.0)
    number = dict.fromkeys(cases, first)
    end, latest = time.process_time() + seconds, time.monotonic() + PATIENCE * seconds
    while time.process_time() < end and time.monotonic() < latest:
        name = min(spent, key=spent.__getitem__)
        began = time.process_time()
        outcome, said = one(cases[name], name, number[name])
        spent[name] += max(time.process_time() - began, 1e-3)
        counts[name].outcomes[outcome] += 1
        if outcome in ("traceback", "hang"):
            counts[name].findings.append(f"{name} {number[name]}: {said}")
        number[name] += 1
    return counts


def _fit(said: str) -> bool:
    lines = said.split("\n")
    longest = MOST_CHARACTERS if len(lines) == 1 else MOST_CHARACTERS_OF_SEVERAL
    printable = all(char.isprintable() or char in "\n\t" or ord(char) > 0xA0 for char in said)
    return bool(said.strip()) and len(lines) <= MOST_LINES and max(map(len, lines)) <= longest and printable


def _ring(number: int, frame: Any) -> None:
    raise Hang
