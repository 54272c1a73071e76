"""Watching over the processes of a run: each gives a sign of life every second, and looks at those of the others.

A process that is killed, stopped or cut off cannot say so itself. A thread of every process writes its sign into the
store where they met (torch's `TCPStore`) and reads the others'; who falls silent is named, and the rest end.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from flowrl.errors import UserError, first_line
from flowrl.processes import is_running

BEAT_S = 0.5
"""Seconds between two signs of life."""
SILENCE_S = 60.0
"""Seconds without one after which a rank is given up."""
SUSPECTED_S = 12.0
"""The same, once something says that a rank is gone: a connection that broke, a launcher that ends its processes."""
LEAVING_S = 4.0
"""Seconds in which a death shows on this machine, to a process that was asked to end and has nothing to save."""
LEAVE_S = 20.0
"""Seconds that the other ranks have to end by themselves, once one is given up."""
RESUME = "go on with --resume auto"


class LostRankError(Exception):
    """A rank is gone. Whoever noticed first has said which."""


class PeerError(UserError):
    """Another rank failed, and says why."""


class PeerCrashError(Exception):
    """Another rank's exception, which it shows itself."""


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself."""

    beat: int = 0
    exchanges: int = 0
    """Exchanges with the others that it has begun."""
    phase: str = "starting"
    state: str = "working"
    """``working``, ``failed``, ``crashed`` or ``ended``."""
    text: str = ""
    """Why it failed."""
    notes: int = 0
    """Warnings it has left for rank 0 to print."""


class Watch:
    """The thread that gives this rank's signs and reads the others'.

    ``store`` is its own connection. ``check`` raises in the main thread what the watch has found.
    """

    def __init__(self, store: Any, rank: int, size: int, served: bool) -> None:
        self.rank, self.size = rank, size
        self._store, self._served = store, served
        self._sign, self._mine = Sign(), threading.Lock()
        self._who = [json.loads(text) for text in store.multi_get([f"who/{other}" for other in range(size)])]
        now = time.monotonic()
        self.signs = [Sign()] * size
        self._seen, self._round = [now] * size, now
        self._limit, self._patience = SILENCE_S, 1800.0
        self._suspected: float | None = None
        self._leaving = False
        self.sharded = False
        """Whether networks exchange by themselves, in which the main thread cannot be told that a rank failed."""
        self._checked = self._stuck = now
        self._lost: str | None = None
        self._wake, self._closed = threading.Event(), threading.Event()
        self.on_note: Callable[[int, str], None] = lambda rank, text: None
        self._thread = threading.Thread(target=self._run, name="watch over the ranks", daemon=True)

    @staticmethod
    def introduce(store: Any, rank: int) -> None:
        """Write who this rank is, and its first sign; before any rank watches."""
        facts = {"pid": os.getpid(), "host": platform.node(), "place": _namespace()}
        store.set(f"who/{rank}", json.dumps(facts))
        store.set(f"sign/{rank}", json.dumps(asdict(Sign())))

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching, and give the last sign."""
        self._closed.set()
        self._wake.set()
        self._thread.join(5.0)
        if self._lost is None and not self._thread.is_alive():
            with contextlib.suppress(Exception):  # the store is gone, so nobody reads it
                self._give_sign()

    def patience(self, seconds: float) -> None:
        """The most seconds that the others wait for a rank; one without signs of life is given up after a minute of
        them at the latest."""
        self._patience, self._limit = seconds, min(SILENCE_S, seconds)

    def name(self, rank: int) -> str:
        """``rank 1 (process 123 on node-b)``."""
        facts = self._who[rank]
        return f"rank {rank} (process {facts['pid']} on {facts['host']})"

    def tell(self, **changes: Any) -> None:
        """Change this rank's sign, and give it at once."""
        with self._mine:
            self._sign = replace(self._sign, **changes)
        self._wake.set()

    def phase(self, name: str) -> None:
        """What this rank does now; it is said with the next beat."""
        with self._mine:
            self._sign = replace(self._sign, phase=name)

    def exchange_begins(self) -> None:
        """Count an exchange with the others."""
        with self._mine:
            self._sign = replace(self._sign, exchanges=self._sign.exchanges + 1)

    def leave_note(self, text: str) -> bool:
        """Give rank 0 a sentence to print; whether it will."""
        with self._mine:
            number = self._sign.notes
            try:
                self._store.set(f"note/{self.rank}/{number}", text)
            except Exception:  # the store is gone
                return False
            self._sign = replace(self._sign, notes=number + 1)
        return True

    def suspect(self, leaving: bool = False) -> None:
        """Something says that a rank is gone, so look closer; ``leaving``: where none is, this process ends."""
        self._suspected = self._suspected or time.monotonic()
        self._leaving |= leaving

    def check(self, waiting_since: float | None = None) -> None:
        """Raise what the watch has found; in the main thread, wherever it may stop.

        Raises:
            LostRankError: a rank is gone, or keeps the others waiting for too long.
            PeerError, PeerCrashError: a rank failed.
        """
        now = self._checked = time.monotonic()
        if self._lost is None and now - self._round > self._limit + 2 * BEAT_S:
            self._give_up(self._store_is_gone(f"has been silent for {self._limit:.0f} s"))
        if self._lost is None and waiting_since is not None and now - waiting_since > self._patience:
            self._give_up(self._behind())
        if self._lost is not None:
            raise LostRankError(self._lost)
        for rank, sign in enumerate(self.signs):
            if rank != self.rank and sign.state in ("failed", "crashed"):
                raise (PeerError if sign.state == "failed" else PeerCrashError)(f"{self.name(rank)}: {sign.text}")
            if waiting_since is not None and sign.state == "ended" and sign.exchanges < self._sign.exchanges:
                raise PeerError(f"{self.name(rank)} has ended, and this exchange needs it")

    def explain(self, error: Exception) -> None:
        """An exchange failed: give the watch the time to find out which rank is gone, or failed. Returns where it finds
        none."""
        self.suspect()
        end = time.monotonic() + SUSPECTED_S + 4 * BEAT_S
        while time.monotonic() < end:
            self.check()
            time.sleep(0.05)
        self._give_up(f"the connection between the ranks broke ({first_line(error)[:200]}); {RESUME}")
        self.check()

    def settled(self) -> bool:
        """Whether no other rank is at work any more."""
        return all(sign.state != "working" for rank, sign in enumerate(self.signs) if rank != self.rank)

    def _run(self) -> None:
        while not self._closed.is_set():
            begun = time.monotonic()
            try:
                self._give_sign()
                self._read_signs(begun)
            except Exception as error:  # the store's host is gone: whatever the client raises
                if not self._closed.is_set():
                    self._give_up(self._store_is_gone(f"is gone ({first_line(error)[:100]})"))
                return
            self._wake.wait(BEAT_S)
            self._wake.clear()

    def _give_sign(self) -> None:
        with self._mine:
            self._sign = replace(self._sign, beat=self._sign.beat + 1)
            text = json.dumps(asdict(self._sign))
        self._store.set(f"sign/{self.rank}", text)

    def _read_signs(self, begun: float) -> None:
        texts = self._store.multi_get([f"sign/{other}" for other in range(self.size)])
        signs = [Sign(**json.loads(text)) for text in texts]
        now = time.monotonic()
        stalled = now - self._round > 10 * BEAT_S  # this process itself was stopped meanwhile
        for rank, (old, new) in enumerate(zip(self.signs, signs, strict=True)):
            if new != old or stalled or new.state != "working":
                self._seen[rank] = now
            for number in range(old.notes, new.notes if rank != self.rank and self.rank == 0 else 0):
                self.on_note(rank, self._store.get(f"note/{rank}/{number}").decode())
        self.signs, self._round = signs, now
        self._judge(now)
        self._end_if_stuck(now)

    def _judge(self, now: float) -> None:
        limit = min(SUSPECTED_S, self._limit) if self._suspected else self._limit
        for rank, sign in enumerate(self.signs):
            if rank == self.rank or sign.state != "working":
                continue
            if self._is_gone(rank) and self._last_sign(rank).state == "working":
                self._give_up(f"{self.name(rank)} ended without a word: it was killed, or crashed; {RESUME}")
            elif now - self._seen[rank] > limit:
                self._give_up(self._silent(rank, limit))
        since = 0.0 if self._suspected is None else now - self._suspected
        if self._leaving and since > LEAVING_S:
            _end(143)
        if since > SUSPECTED_S + 4 * BEAT_S:
            self._suspected = None

    def _last_sign(self, rank: int) -> Sign:
        return Sign(**json.loads(self._store.get(f"sign/{rank}")))

    def _end_if_stuck(self, now: float) -> None:
        """Another rank failed while this one waits for it inside a sharded network."""
        if not self.sharded or not any(sign.state in ("failed", "crashed") for sign in self.signs):
            self._stuck = now
        elif now - max(self._stuck, self._checked) > LEAVE_S and self._sign.state == "working":
            with self._mine:
                self._sign = replace(self._sign, state="ended")
            self._give_sign()
            _end(2)

    def _is_gone(self, rank: int) -> bool:
        """Whether a process of this machine is no longer there."""
        facts = self._who[rank]
        if facts["place"] is None or facts["place"] != self._who[self.rank]["place"]:
            return False
        return not is_running(facts["pid"])

    def _behind(self) -> str:
        most = self._sign.exchanges
        late = [rank for rank, sign in enumerate(self.signs) if rank != self.rank and sign.exchanges < most]
        rank = min(late, key=lambda it: self.signs[it].exchanges) if late else None
        if rank is None:
            return f"the ranks have waited for each other for {self._patience:.0f} s (train.rank_timeout); {RESUME}"
        silence = time.monotonic() - self._seen[rank]
        if silence > 6 * BEAT_S:
            return self._silent(rank, silence)
        return (
            f"{self.name(rank)} has kept the others waiting for {self._patience:.0f} s (train.rank_timeout), in its "
            f"phase {self.signs[rank].phase!r}; {RESUME}"
        )

    def _silent(self, rank: int, seconds: float) -> str:
        return (
            f"{self.name(rank)} has given no sign of life for {seconds:.0f} s: it was stopped or killed, or its "
            f"machine or network is gone; {RESUME}"
        )

    def _store_is_gone(self, how: str) -> str:
        keeper = "the launcher, through which the ranks know of each other," if self._served else self.name(0)
        return f"{keeper} {how}; {RESUME}"

    def _give_up(self, sentence: str) -> None:
        """A rank is lost: say so, unless another one has, and see to it that this process ends."""
        if self._lost is not None:
            return
        self._lost = sentence
        if self._speaks():
            print(f"error: {sentence}", file=sys.stderr, flush=True)
        threading.Thread(target=self._end_unless_closed, daemon=True).start()

    def _end_unless_closed(self) -> None:
        if not self._closed.wait(LEAVE_S):
            _end(2)

    def _speaks(self) -> bool:
        """Whether this rank is the one to say it: the first to write its number, where the store still answers."""
        answer: list[bool] = []

        def ask() -> None:
            try:
                mine = str(self.rank)
                answer.append(self._store.compare_set("verdict", "", mine).decode() == mine)
            except Exception:  # gone: every machine's first process says it
                answer.append(self.rank == min(r for r in range(self.size) if self._beside(r) and not self._is_gone(r)))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(LEAVING_S)
        return answer[0] if answer else self.rank <= 1

    def _beside(self, rank: int) -> bool:
        return rank == self.rank or self._who[rank]["host"] == self._who[self.rank]["host"]


_PRESENT: list[Watch] = []


def enter(watch: Watch) -> None:
    """From here on this process' run is watched over."""
    _PRESENT.append(watch)


def name_of(rank: int) -> str:
    """``rank 1``, with its process and machine where they are known."""
    watch = present()
    return f"rank {rank}" if watch is None else watch.name(rank)


def leave() -> None:
    """The latest that was entered no longer watches."""
    _PRESENT.pop()


def present() -> Watch | None:
    """The watch over the ranks of this process' run; None where it is the only one."""
    return _PRESENT[-1] if _PRESENT else None


def _namespace() -> str | None:
    """What two processes share whose process numbers mean the same."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _end(code: int) -> None:
    """End this process although its main thread cannot: it waits for a rank that is gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
