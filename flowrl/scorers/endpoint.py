"""A client of OpenAI-compatible chat endpoints: time limits, retries, and a key that stays in the environment."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from flowrl.connections import Backoff, ConnectionFailure, read_within, retry_after
from flowrl.errors import UserError

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
REFUSED = (401, 403, 404)
"""Wrong key, model or address: trying on is no use, and every request would fail."""
MAX_BYTES = 8 << 20
_COUNTS = ("requests", "retries", "failures", "prompt_tokens", "completion_tokens", "unparsable")
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class EndpointOptions:
    """Where to ask, and how patiently. Holds no key, only the name of the variable that does."""

    url: str
    """Base address such as ``http://localhost:8000/v1``; ``/chat/completions`` is added."""
    model: str
    key_variable: str | None = None
    """Environment variable that holds the key; None sends no key."""
    timeout: float = 60.0
    """Seconds of one request, from start to last byte."""
    retries: int = 5
    """Further tries of one request, after 429, 5xx, a broken connection or an unreadable answer."""
    backoff: float = 1.0
    """Seconds before the first retry (half of it to all, at random), doubled each time up to ``max_wait``."""
    max_wait: float = 60.0
    """Bound of a wait, whatever Retry-After says."""
    concurrency: int = 8
    """Requests at a time."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request, such as ``temperature`` or ``max_tokens``."""


class _FailedError(Exception):
    """One try failed: whether another may help, and how long the server asks to wait."""

    def __init__(self, kind: str, *, retry: bool = True, wait: float = 0.0) -> None:
        super().__init__(kind)
        self.kind, self.retry, self.wait = kind, retry, wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Endpoint:
    """``complete`` sends conversations and returns what the model said.

    Raises `UserError` for an address that is none, a key variable that is not set, and when the server refuses the
    key, the address or the model.
    """

    def __init__(self, options: EndpointOptions) -> None:
        if urlsplit(options.url).scheme not in ("http", "https") or not urlsplit(options.url).netloc:
            raise UserError(f"endpoint: url should be like http://localhost:8000/v1, found {options.url!r}")
        self.options = options
        self._headers = {"Content-Type": "application/json", **_authorization(options.key_variable)}
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._backoff = Backoff(options.backoff, options.max_wait)
        self.counts: Counter[str] = Counter()
        """``requests``, ``retries``, ``failures`` (given up), failures by kind, and the tokens the server reports."""

    def complete(self, conversations: Sequence[Messages]) -> list[str | None]:
        """The reply to each list of messages, in order; None where every try failed, the server rejected the request
        (such as one that is too long) or the reply has no text. Failures are counted, and a warning names them.

        Messages are OpenAI's: ``{"role", "content"}``, content a string or parts (``text``, ``image_url`` with a data
        URI). Up to ``concurrency`` requests are under way at a time.
        """
        if not conversations:
            return []
        before = self.counts.copy()
        with ThreadPoolExecutor(min(self.options.concurrency, len(conversations))) as threads:
            replies = list(threads.map(self._complete, conversations))
        new = self.counts - before
        if new["failures"]:
            kinds = ", ".join(f"{name} {new[name]} times" for name in sorted(new) if name not in _COUNTS)
            warnings.warn(
                f"endpoint {self._place()} did not answer {new['failures']} of {len(conversations)} requests ({kinds})",
                stacklevel=2,
            )
        return replies

    def _complete(self, messages: Messages) -> str | None:
        body = {"model": self.options.model, "messages": list(messages), **self.options.parameters}
        data = json.dumps(body).encode()
        for attempt in range(self.options.retries + 1):
            try:
                return self._text(self._post(data))
            except _FailedError as problem:
                self._count(problem.kind)
                if not problem.retry:
                    break
                if attempt < self.options.retries:
                    self._count("retries")
                    time.sleep(self._backoff.seconds(attempt, problem.wait))
        self._count("failures")
        return None

    def _post(self, data: bytes) -> Any:
        """One request. Raises `_FailedError`, or `UserError` where every other request would fail as well."""
        self._count("requests")
        address = self.options.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, data, self._headers, method="POST")
        deadline = time.monotonic() + self.options.timeout
        try:
            with self._opener.open(request, timeout=self.options.timeout) as response:
                return json.loads(read_within(iter(lambda: response.read1(1 << 16), b""), deadline, MAX_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                if error.code in REFUSED or 300 <= error.code < 400:
                    raise UserError(self._refusal(error.code)) from error
                wait = retry_after(error.headers.get("Retry-After"))
                raise _FailedError(f"http_{error.code}", retry=error.code in RETRIED, wait=wait) from error
        except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
            failure = ConnectionFailure.of(error)
            if failure.permanent:
                raise UserError(f"endpoint {self._place()}: {failure.reason}; check the url") from error
            raise _FailedError(failure.kind) from error
        except (ValueError, RecursionError, OverflowError) as error:
            raise _FailedError("unreadable") from error

    def _text(self, answer: Any) -> str | None:
        """The reply inside a response. Raises `_FailedError` for one of another shape."""
        try:
            content = answer["choices"][0]["message"]["content"]
            usage = answer.get("usage") or {}
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _FailedError("unreadable") from None
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(usage, dict) and isinstance(usage.get(name), int):
                self._count(name, usage[name])
        return content if isinstance(content, str) else None

    def _refusal(self, code: int) -> str:
        key = self.options.key_variable
        advice = {
            401: f"check the key in ${key}" if key else "it wants a key: set key_variable",
            403: f"check the key in ${key}" if key else "it wants a key: set key_variable",
            404: f"check the url and the model {self.options.model!r}",
        }
        return f"endpoint {self._place()} answers HTTP {code}; {advice.get(code, 'give the address it redirects to')}"

    def _place(self) -> str:
        """The address without what may be secret in it (user, password, query)."""
        parts = urlsplit(self.options.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def _count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[name] += amount


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"endpoint: the environment variable {variable} is not set; export {variable}=... (the key)")
    return {"Authorization": f"Bearer {key}"}
