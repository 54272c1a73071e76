"""Serving the page: choosing a port and a token, saying where it is, and beside a run that trains."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.errors import UserError
from flowrl.processes import LAUNCHER_VARIABLES
from flowrl.report.feed import Feed

if TYPE_CHECKING:
    from fastapi import FastAPI

PORT = 8421
"""Where the page is, unless that is taken: an SSH tunnel is easier to set up to a port that is known."""


def serve(runs: Sequence[Path], port: int | None, say: Callable[[str], None]) -> None:
    """Serve the page of these runs on this machine until interrupted; ``say`` is told its address. Raises `UserError`
    as `serve_page`."""
    feeds = [Feed(run) for run in runs]

    def build(token: str) -> FastAPI:
        from flowrl.report.server import build_app

        threading.Thread(target=_read_ahead, args=(feeds,), daemon=True).start()
        return build_app(feeds, token)

    serve_page(build, port, say)


def serve_page(build: Callable[[str], FastAPI], port: int | None, say: Callable[[str], None]) -> None:
    """Serve what ``build`` makes for a token on this machine until interrupted; ``say`` is told its address.

    Raises `UserError` where the extra is not installed, or the ``port`` is taken.
    """
    token = secrets.token_urlsafe(24)
    try:
        import uvicorn

        app = build(token)
    except ImportError as error:
        raise UserError(f"the live page needs {error.name}; install the extra: pip install -e '.[server]'") from error
    with _listener(port) as listener:
        number = listener.getsockname()[1]
        say(f"http://127.0.0.1:{number}/?token={token}")
        if "SSH_CONNECTION" in os.environ:
            say(f"from your own machine: ssh -L {number}:127.0.0.1:{number} {socket.gethostname()}, then that address")
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, ws="none", lifespan="off", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run(sockets=[listener])


def _read_ahead(feeds: Sequence[Feed]) -> None:
    """A long run's files take a second to read: that happens while somebody goes to the page."""
    for feed in feeds:
        with suppress(UserError):  # the page says it
            feed.overview()


def _listener(port: int | None) -> socket.socket:
    """A socket of this machine alone; the usual port, or any where none is wished for."""
    for number in (PORT, 0) if port is None else (port,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", number))
            listener.listen(128)  # who is quicker than the server waits
        except OSError as error:
            listener.close()
            if number == port:
                raise UserError(f"--port: {port} cannot be listened on: {error.strerror}; name another") from error
            continue
        return listener
    raise UserError("no port of this machine can be listened on")


@contextmanager
def beside(run: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Inside, another process serves the page of ``run``, which need not have begun; ``note`` is told its address."""
    left_out = set(LAUNCHER_VARIABLES)
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "flowrl.report.follow", str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    lines = process.stdout

    def tell() -> None:
        for line in lines:
            note(line.rstrip("\n"))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        process.stdin.close()  # which ends it, as the end of this process would, however it comes
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        teller.join(5.0)
        process.stdout.close()
