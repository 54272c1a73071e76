"""What every client over HTTP needs: why a connection failed, how long to wait before another try, bounded reading."""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

_JITTER = random.SystemRandom()  # leaves the generators of a run alone


@dataclass(frozen=True)
class ConnectionFailure:
    """Why there is no connection, or no more."""

    kind: str
    """``certificate``, ``tls``, ``name_not_found``, ``name_lookup``, ``connection_refused``, ``timeout`` or, for all
    else, ``connection``."""
    reason: str
    permanent: bool = False
    """Whether it fails the next time as well: somebody has to change something first."""

    @classmethod
    def of(cls, error: BaseException) -> ConnectionFailure:
        """What is behind the exception of an HTTP library."""
        for cause in _causes(error):
            if (found := _explained(cause)) is not None:
                return found
        return cls("connection", f"{type(error).__name__}: {error}".rstrip(": "))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from, the outermost first."""
    seen: list[BaseException] = []
    following: object = error
    while isinstance(following, BaseException) and following not in seen:
        seen.append(following)
        yield following
        reason = getattr(following, "reason", None)  # urllib's
        following = reason if isinstance(reason, BaseException) else following.__cause__ or following.__context__


def _explained(error: BaseException) -> ConnectionFailure | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", None) or error.strerror  # the former is set by OpenSSL alone
        return ConnectionFailure("certificate", f"the server's certificate is not accepted: {why}", True)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConnectionFailure("connection", "the connection was broken off")
    if isinstance(error, ssl.SSLError):
        what = str(getattr(error, "reason", None) or error.strerror).replace("_", " ").lower()
        return ConnectionFailure("tls", f"no TLS with this server ({what}): is it https there?", True)
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return ConnectionFailure("name_lookup", f"the host name cannot be looked up now: {error.strerror}")
        return ConnectionFailure("name_not_found", f"the host name is not found: {error.strerror}", True)
    if isinstance(error, ConnectionRefusedError):
        return ConnectionFailure("connection_refused", "connection refused")
    if isinstance(error, TimeoutError):
        return ConnectionFailure("timeout", "timed out")
    if isinstance(error, OSError) and error.errno is not None:
        return ConnectionFailure("connection", error.strerror or type(error).__name__)
    return None


@dataclass(frozen=True)
class Backoff:
    """Waits between tries, in seconds: ``first``, doubled each time up to ``most``; of that half to all, at random."""

    first: float
    most: float

    def seconds(self, attempt: int, asked: float = 0.0) -> float:
        """Before another try after the ``attempt``-th, counted from 0; as long as the server asks, but not over
        ``most``."""
        full = min(self.most, self.first * 2**attempt)
        return min(self.most, max(full * (0.5 + 0.5 * _JITTER.random()), asked))


def retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header: a number, or a date; 0 where it says nothing."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time())


def read_within(blocks: Iterable[bytes], deadline: float, most: int) -> bytes:
    """A body, within the deadline (of ``time.monotonic()``) even from a server that sends a byte now and then.

    Raises `TimeoutError`, and `OverflowError` for more than ``most`` bytes.
    """
    body = bytearray()
    for block in blocks:
        body += block
        if time.monotonic() > deadline:
            raise TimeoutError("the rest of the body is late")
        if len(body) > most:
            raise OverflowError(f"longer than {most} bytes")
    return bytes(body)
