"""A user's code in the trainer's process that ends the process: it ends its own call instead."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_LOCK = threading.Lock()
_INSIDE: dict[int, int] = {}
"""Threads that are inside `catch_exit`, and how often."""
_EXIT = os._exit
_PROCESS = os.getpid()


class ExitCalledError(RuntimeError):
    """Code called ``os._exit`` in the trainer's process."""


@contextmanager
def catch_exit() -> Iterator[None]:
    """Inside, ``os._exit`` raises `ExitCalledError` in this thread. It would end the run at once, unsaved and without a
    word, and nothing else in Python can notice it. Child processes leave as they like."""
    thread = threading.get_ident()
    with _LOCK:
        _INSIDE[thread] = _INSIDE.get(thread, 0) + 1
        os._exit = _leave
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[thread] -= 1
            if not _INSIDE[thread]:
                del _INSIDE[thread]
            if not _INSIDE:
                os._exit = _EXIT


def _leave(status: int) -> NoReturn:
    if os.getpid() == _PROCESS and threading.get_ident() in _INSIDE:
        raise ExitCalledError(f"it called os._exit({status}), which would have ended the run")
    _EXIT(status)
