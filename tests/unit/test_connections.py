"""Connections that fail: the cause is named and chained, and what cannot get better is not tried again."""

import contextlib
import http.client
import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flowrl.connections import Backoff, ConnectionFailure, read_within, retry_after
from flowrl.errors import UserError
from flowrl.scorers.endpoint import Endpoint, EndpointOptions

httpx = pytest.importorskip("httpx")

from flowrl.clients import http as http_client  # noqa: E402
from flowrl.score import RewardError, load_rewards  # noqa: E402


def chained(*errors: BaseException) -> BaseException:
    """The first exception, raised from the second, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "kind", "words", "permanent"),
    [
        (chained(httpx.ConnectError("x"), ConnectionRefusedError(111, "no")), "connection_refused", "refused", False),
        (urllib.error.URLError(ConnectionRefusedError(111, "refused")), "connection_refused", "refused", False),
        (urllib.error.URLError(TimeoutError("timed out")), "timeout", "timed out", False),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name_not_found", "not known", True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "name_lookup", "Temporary failure", False),
        (chained(OSError("x"), ssl.SSLCertVerificationError(1, "expired")), "certificate", "expired", True),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "tls", "wrong version number", True),
        (ssl.SSLEOFError(8, "EOF occurred"), "connection", "broken off", False),
        (ConnectionResetError(104, "Connection reset by peer"), "connection", "reset by peer", False),
        (OSError(113, "No route to host"), "connection", "No route to host", False),
        (http.client.BadStatusLine("junk"), "connection", "BadStatusLine: junk", False),
    ],
)
def test_the_cause_behind_an_exception_is_found(error: BaseException, kind: str, words: str, permanent: bool) -> None:
    found = ConnectionFailure.of(error)
    assert (found.kind, found.permanent) == (kind, permanent) and words in found.reason


def test_waits_double_up_to_a_bound_and_follow_the_server() -> None:
    backoff = Backoff(first=0.5, most=4.0)
    for attempt, full in enumerate((0.5, 1.0, 2.0, 4.0, 4.0)):
        found = [backoff.seconds(attempt) for _ in range(200)]
        assert full / 2 <= min(found) < 0.6 * full and 0.9 * full < max(found) <= full
    assert backoff.seconds(0, 3.0) == 3.0 and backoff.seconds(0, 1e6) == 4.0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert [retry_after(value) for value in (None, "", "7", " 12 ", "soon", "-1", "²")] == [0, 0, 7, 12, 0, 0, 0]
    later = datetime.now(UTC) + timedelta(seconds=60)
    assert 55 < retry_after(format_datetime(later, usegmt=True)) <= 60
    assert 55 < retry_after(later.strftime("%a, %d %b %Y %H:%M:%S -0000")) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_body_is_read_within_its_bounds() -> None:
    assert read_within([b"ab", b"", b"c"], time.monotonic() + 5, 3) == b"abc"
    with pytest.raises(OverflowError, match="longer than 3 bytes"):
        read_within([b"ab", b"cd"], time.monotonic() + 5, 3)
    with pytest.raises(TimeoutError):
        read_within([b"a", b"b"], time.monotonic() - 1, 3)


@contextlib.contextmanager
def listening(context: ssl.SSLContext | None) -> Iterator[tuple[int, list[int]]]:
    """A server that counts its connections and answers nothing useful."""
    connections: list[int] = []

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> Any:
            connections.append(1)
            taken, address = self.socket.accept()
            return (context.wrap_socket(taken, server_side=True) if context else taken), address

        def handle_error(self, *_: Any) -> None:
            return None

    with Server(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_port, connections
        server.shutdown()


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=127.0.0.1", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv("FLOWRL_TOKEN", "a-token-of-some-length")
    found: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", found.append)
    return found


def ask(url: str) -> list[str | None]:
    options = EndpointOptions(url, "m", retries=3, backoff=0.01, timeout=5.0)
    return Endpoint(options).complete([[{"role": "user", "content": "hello"}]])


def test_a_certificate_that_is_not_accepted_is_said_at_once(self_signed: ssl.SSLContext, naps: list[float]) -> None:
    with listening(self_signed) as (port, connections):
        with pytest.raises(
            RewardError, match="no connection: the server's certificate is not accepted: self"
        ) as caught:
            load_rewards([f"https://127.0.0.1:{port}/r"])
        assert len(connections) == 1 and not naps and isinstance(caught.value.__cause__, httpx.ConnectError)
        with pytest.raises(UserError, match=r"endpoint https.*certificate is not accepted: self.signed.*check the url"):
            ask(f"https://127.0.0.1:{port}/v1")
        assert len(connections) == 2 and not naps


def test_https_of_a_server_without_tls_is_said_at_once(naps: list[float]) -> None:
    with listening(None) as (port, connections):
        with pytest.raises(RewardError, match=r"no TLS with this server \(.*is it https there"):
            load_rewards([f"https://127.0.0.1:{port}/r"])
        with pytest.raises(UserError, match=r"no TLS with this server \(.*is it https there"):
            ask(f"https://127.0.0.1:{port}/v1")
        assert len(connections) == 2 and not naps


@pytest.mark.parametrize(("code", "tries"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 4)])
def test_names_that_are_not_found(monkeypatch: pytest.MonkeyPatch, naps: list[float], code: int, tries: int) -> None:
    asked: list[str] = []

    def nowhere(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(code, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    spec = {"use": "http://no-such-host.invalid/r", "options": {"retries": 3}}
    with pytest.raises(RewardError, match=r"host name .*: Name or service not known") as caught:
        load_rewards([spec])
    assert len(asked) == tries and len(naps) == tries - 1
    assert "no-such-host.invalid" in str(caught.value) and caught.value.__cause__ is not None
    asked.clear()
    if tries == 1:
        with pytest.raises(UserError, match="host name is not found"):
            ask("http://no-such-host.invalid/v1")
    else:
        with pytest.warns(UserWarning, match="name_lookup 4 times"):
            assert ask("http://no-such-host.invalid/v1") == [None]
    assert len(asked) == tries
