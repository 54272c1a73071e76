"""Standard output and standard error that outlive their reader: a closed terminal must not end a run unsaved."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from flowrl.errors import UserError

READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ESHUTDOWN, errno.ENXIO)
"""What writing says when nobody reads any more: a closed pipe, a terminal that was hung up, a closed descriptor."""


class SurvivingStream:
    """A text stream that falls silent when its reader has gone, instead of raising in whoever writes next."""

    def __init__(self, stream: TextIO, *, must_arrive: bool) -> None:
        self._stream, self._must_arrive, self._gone = stream, must_arrive, False

    def write(self, text: str) -> int:
        """As a file's. Raises `UserError` where the text ``must_arrive`` and the disk is full."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As a file's."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Any) -> None:
        if self._gone:
            return
        try:
            act()
        except ValueError:  # closed from inside
            self._gone = True
        except OSError as error:
            self._gone = True
            _silence(self._stream)
            if self._must_arrive and error.errno not in READER_GONE:
                raise UserError(f"standard output cannot be written: {error.strerror}") from error


def _silence(stream: TextIO) -> None:
    """Let the descriptor lead nowhere: what is still buffered would fail once more when Python ends, and other
    libraries write to it as well."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no real file
        pass


@contextmanager
def survive_closed_streams() -> Iterator[None]:
    """Inside, `sys.stdout` and `sys.stderr` fall silent instead of failing, and write what their encoding lacks as
    escapes. A stream that was closed before the start leads nowhere."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _of(sys.stdout, must_arrive=True), _of(sys.stderr, must_arrive=False)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if not any(isinstance(stream, SurvivingStream) and stream._gone for stream in (sys.stdout, sys.stderr)):
            sys.stdout, sys.stderr = before


def _of(stream: TextIO | None, *, must_arrive: bool) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, SurvivingStream):
        return cast(TextIO, stream)
    if "reconfigure" in dir(stream):
        cast(Any, stream).reconfigure(errors="backslashreplace")
    return cast(TextIO, SurvivingStream(stream, must_arrive=must_arrive))
