"""The processes that a launcher started find each other, agree, and end together, with one sentence.

``torchrun`` and ``accelerate launch`` only start processes (`flowrl.launcher`). Inside `joined` they watch over each
other (`flowrl.runtime.watch`), and agree on how a part went that each did by itself (`flowrl.runtime.ranks.together`);
`Job.connect` gives the run its `Ranks`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from flowrl.errors import UserError, first_line
from flowrl.launcher import CHILDREN, Launch, ended_early, launch
from flowrl.runtime import watch as watching
from flowrl.runtime.display import print_error
from flowrl.runtime.rank_warnings import gather_warnings
from flowrl.runtime.ranks import DistributedRanks, mendable, together, words_of
from flowrl.runtime.watch import LostRankError, PeerCrashError, PeerError, Watch
from flowrl.types import OneProcess, Ranks

MEET_S = 600.0
"""Longest wait for all processes at the start."""
SETTLE_S = 2.0
"""Seconds in which a failure of all ranks alike shows on all of them."""


class Job:
    """The processes of a command. This one is alone, and agrees with itself."""

    rank = 0
    size = 1

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A part that rank 0 does first, then all others: what it downloads or writes is there for them."""
        yield

    def write(self, act: Callable[[], object]) -> None:
        """What rank 0 alone does, such as writing files; where it fails, it fails on all ranks."""
        act()

    def texts(self, text: str) -> list[str]:
        """What every rank says, in the order of ranks."""
        return [text]

    def largest(self, value: int) -> int:
        """The largest of all ranks' numbers."""
        return value

    def begin(self, phase: str) -> None:
        """A phase begins, so a good moment to notice what became of the others. Raises as `Watch.check`."""

    @contextmanager
    def connect(self, patience: float) -> Iterator[Ranks]:
        """The ranks, ready for exchanges of tensors; ``patience``: seconds that they wait for one of them."""
        yield OneProcess()


class _Launched(Job):
    def __init__(self, found: Launch) -> None:
        self.rank, self.size = found.rank, found.size
        self._served = found.served
        self._store = _meet(found)
        self._said = 0
        self._patience = MEET_S
        self._for_all = False
        """Whether what failed on rank 0 was done by it for all ranks."""
        Watch.introduce(self._store, self.rank)
        self._watch: Watch | None = None
        self._await([f"sign/{rank}" for rank in range(self.size)])
        self._watch = Watch(self._store.clone(), self.rank, self.size, found.served)
        watching.enter(self._watch)
        self._watch.start()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        if self.rank:
            with together(self):  # rank 0's turn
                pass
            with together(self):
                yield
            return
        self._for_all = True
        with together(self):
            yield
        self._for_all = False
        with together(self):  # the others' turn
            pass

    def write(self, act: Callable[[], object]) -> None:
        with together(self):
            if self.rank == 0:
                self._for_all = True
                act()
                self._for_all = False

    def largest(self, value: int) -> int:
        return max(int(text) for text in self.texts(str(value)))

    def texts(self, text: str) -> list[str]:
        number, self._said = self._said, self._said + 1
        if self._watch is not None:
            self._watch.exchange_begins()
        keys = [f"said/{number}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], text)
        self._await(keys)
        out = [found.decode() for found in self._store.multi_get(keys)]
        if number:  # whoever is here has read what was said before
            self._store.delete_key(f"said/{number - 1}/{self.rank}")
        return out

    def _await(self, keys: list[str]) -> None:
        """Until all keys are there."""
        since, pause = time.monotonic(), 0.0005
        while True:
            try:
                if self._store.check(keys):
                    return
            except RuntimeError as error:
                if self._watch is None:
                    raise
                self._watch.explain(error)
            if self._watch is not None:
                self._watch.check(since)
            elif time.monotonic() - since > MEET_S:
                there = sum(bool(self._store.check([key])) for key in keys)
                raise UserError(
                    f"only {there} of {self.size} processes have come together in {MEET_S:.0f} s; start as many as the "
                    "launcher was told, on every machine"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, 0.02)

    def begin(self, phase: str) -> None:
        if self._watch is not None:
            self._watch.phase(phase)
            self._watch.check()

    @contextmanager
    def connect(self, patience: float) -> Iterator[Ranks]:
        assert self._watch is not None
        self._watch.patience(patience)
        self._patience = patience
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        try:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("groups", self._store.clone()),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=patience),
            )
        except RuntimeError as error:
            self._watch.explain(error)
        yield DistributedRanks()
        dist.destroy_process_group()  # not after a failure: it could wait for a rank that is gone

    # how it ends

    def leave(self) -> None:
        """This rank is done: wait for the others, so that none is ended by the launcher before it is."""
        assert self._watch is not None
        self._watch.tell(state="ended")
        self._wait_for_others(self._patience)
        self._close()

    def fail(self, error: BaseException) -> NoReturn:
        """End with an error: the lowest rank that failed says it once and names itself, unless all failed alike. Raises
        `SystemExit` with the code that one process ends with; on rank 0 `KeyboardInterrupt` stays."""
        watch, kind = self._watch, _kind(error)
        assert watch is not None
        if isinstance(error, LostRankError):
            self._exit(2, error)
        if isinstance(error, PeerError | PeerCrashError):
            watch.tell(state="ended")
        elif isinstance(error, SystemExit):
            watch.tell(state="failed" if error.code else "ended", text=f"exit {error.code}")
        else:
            watch.tell(state=kind, text=words_of(error))
        own = not isinstance(error, PeerError | PeerCrashError | SystemExit | KeyboardInterrupt)
        if own:
            self._wait_for_others(SETTLE_S)
            self._say(error)
        self._wait_for_others(self._patience)
        if isinstance(error, KeyboardInterrupt):
            if self.rank == 0:
                self._ignore_the_launcher()
                self._close()
                raise error
            self._exit(130, error)
        code = error.code if isinstance(error, SystemExit) else 2 if kind == "failed" else 1
        self._exit(code, error)

    def _say(self, error: BaseException) -> None:
        assert self._watch is not None
        own = ("failed" if _kind(error) == "failed" else "crashed", words_of(error))
        signs = [own if r == self.rank else (sign.state, sign.text) for r, sign in enumerate(self._watch.signs)]
        failed = [rank for rank, (state, _) in enumerate(signs) if state in ("failed", "crashed")]
        if self.rank != min(failed):
            return
        alike = self._for_all or (len(failed) == self.size and len({text for _, text in signs}) == 1)
        where = "" if alike else f"{self._watch.name(self.rank)}: "
        if own[0] == "crashed":
            print(f"{where}\n{''.join(traceback.format_exception(error))}".lstrip(), file=sys.stderr, flush=True)
        else:
            print_error(f"{where}{words_of(error)}")

    def _wait_for_others(self, seconds: float) -> None:
        assert self._watch is not None
        end = time.monotonic() + seconds
        while not self._watch.settled() and time.monotonic() < end:
            try:
                self._watch.check()
            except (PeerError, PeerCrashError):
                pass
            except LostRankError:
                return
            time.sleep(0.02)

    def _exit(self, code: Any, error: BaseException) -> NoReturn:
        self._ignore_the_launcher()
        self._close()
        raise SystemExit(code) from error

    def _ignore_the_launcher(self) -> None:
        """It ends the other processes once one has failed; what is left to do here takes no time."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _close(self) -> None:
        assert self._watch is not None
        if self.rank == 0 and not self._served:
            time.sleep(4 * watching.BEAT_S)  # the others still read that this one has ended
        self._watch.close()
        watching.leave()


@contextmanager
def joined() -> Iterator[Job]:
    """The job of this process: what a launcher started, or this process alone. Inside another `joined`, its job.

    An error that leaves it has been printed, once for all ranks, and is `SystemExit` with the code it ends with.
    """
    if _JOBS:
        yield _JOBS[-1]
        return
    found = launch()
    if found is None:
        yield Job()
        return
    _take_place(found)
    job = _Launched(found)
    _JOBS.append(job)
    try:
        with gather_warnings(job.rank), _suspicious_of_signals():
            try:
                yield job
            except BaseException as error:
                job.fail(error)
            job.leave()
    finally:
        _JOBS.pop()


_JOBS: list[_Launched] = []


def _meet(found: Launch) -> Any:
    """This process' connection to the store that all share."""
    try:
        store = dist.TCPStore(
            found.address,
            found.port,
            None,
            found.rank == 0 and not found.served,
            timedelta(seconds=MEET_S),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"rank {found.rank} on {socket.gethostname()} cannot reach {found.address}:{found.port}, where the ranks "
            f"meet ({first_line(error)}); mend MASTER_ADDR and MASTER_PORT, or the network between the machines"
        ) from error
    return dist.PrefixStore(f"flowrl/{found.attempt}", store)


def _take_place(found: Launch) -> None:
    """An accelerator of this process' own; without word of how many threads, the processes of a machine share its
    cores."""
    os.environ[CHILDREN] = str(found.local_rank)
    if torch.cuda.is_available() and found.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(found.local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // found.local_size))


def _kind(error: BaseException) -> str:
    """``failed`` for what a user can mend, else ``crashed``."""
    return "failed" if isinstance(error, KeyboardInterrupt) or mendable(error) else "crashed"


@contextmanager
def _suspicious_of_signals() -> Iterator[None]:
    """A launcher sends SIGTERM to all processes when one has died, before the others know. Which of the two it was, a
    death or a person who ends the job, shows a moment later."""
    watch = watching.present()
    if watch is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def received(number: int, frame: FrameType | None) -> None:
        watch.suspect(leaving=True)

    before = signal.signal(signal.SIGTERM, received)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is received:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is ended_early else before)
