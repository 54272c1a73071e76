"""Asking a run to stop: the iteration is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from flowrl.runtime.watch import present


class Interrupts:
    """While active, the first SIGINT, SIGTERM or SIGHUP (the terminal was closed) sets ``requested``; a second SIGINT
    raises KeyboardInterrupt at once. A signal that is ignored stays so: ``nohup`` has its way.

    ``on_request`` is called when ``requested`` is set. Outside the main thread, where handlers cannot be set, it does
    nothing.
    """

    def __init__(self, on_request: Callable[[], None] | None = None) -> None:
        self._on_request = on_request
        self.requested: str | None = None
        """Name of the signal that came, such as ``SIGTERM``."""
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        watch = present()
        if watch is not None:  # a launcher ends all processes when one has died
            watch.suspect()
        if self._on_request is not None:
            self._on_request()
