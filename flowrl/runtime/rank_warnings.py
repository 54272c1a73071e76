"""Warnings of several processes: none is lost, and none is printed by each of them."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowrl.errors import printable
from flowrl.runtime import watch as watching
from flowrl.runtime.watch import Watch

ECHO_S = 3.0
"""Seconds after which rank 0 prints another rank's warning, unless it had the same one itself."""


@contextmanager
def gather_warnings(rank: int) -> Iterator[None]:
    """Inside, warnings of all ranks, and what flowrl logs as such, are printed by rank 0, the same one once."""
    watch = watching.present()
    assert watch is not None
    show, said = warnings.showwarning, _Said()
    handler = _Notes(watch)

    def shown(message: Any, category: type[Warning], file: str, line: int, *rest: Any) -> None:
        text = warnings.formatwarning(message, category, file, line).strip()
        if rank == 0:
            said.remember(text)
            show(message, category, file, line, *rest)
        elif not watch.leave_note(text):
            show(message, category, file, line, *rest)

    watch.on_note = said.echo
    warnings.showwarning = shown
    if rank:
        logging.getLogger("flowrl").addHandler(handler)
    try:
        yield
    finally:
        warnings.showwarning = show
        logging.getLogger("flowrl").removeHandler(handler)
        said.print_rest()


class _Said:
    """What rank 0 has printed of all ranks' warnings, and what it still has to."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._waiting: dict[str, int] = {}

    def remember(self, text: str) -> None:
        """Rank 0 says this itself."""
        self._texts.add(text)

    def echo(self, rank: int, text: str) -> None:
        """Print another rank's, if rank 0 does not say the same within a moment."""
        self._waiting.setdefault(text, rank)
        timer = threading.Timer(ECHO_S, self._print, (text,))
        timer.daemon = True
        timer.start()

    def print_rest(self) -> None:
        """Print what still waits."""
        for text in list(self._waiting):
            self._print(text)

    def _print(self, text: str) -> None:
        rank = self._waiting.pop(text, None)
        if rank is not None and text not in self._texts:
            self._texts.add(text)
            print(f"rank {rank}: {printable(text)}", file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    """Gives rank 0 what is logged."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if not self._watch.leave_note(text):
            print(text, file=sys.stderr)
