"""The page of runs while they train, served to this machine alone.

Every request wants the token: once in the address, which a browser changes for a cookie, then in the cookie. Only files
that the page names are served, and of a run only images inside its directory. What could be turned against a browser is
refused: other host names than this machine's own (DNS rebinding), requests of other pages, and content of a run as
anything but data (content security policy).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowrl.errors import UserError
from flowrl.records.owner import ask_to_stop
from flowrl.report import page
from flowrl.report.feed import Feed, as_json, waiting
from flowrl.report.gallery import inside
from flowrl.report.pictures import Show, shrunk

PAUSE_S = 1.0
"""Seconds between two looks at the runs' files."""
SILENCE_S = 15.0
"""Seconds after which a quiet stream says that it is still there."""
STATIC = {name: "text/javascript" for name in page.SCRIPTS} | {name: "text/css" for name in page.STYLES}
HOSTS = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""Names of this machine itself, and of the near end of an SSH tunnel to it."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
PROOF = "x-flowrl-token"
"""Header that a request which changes something carries; a page of another origin cannot know it."""


class _RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Headers:
    """Adds what every answer carries, and refuses other host names before anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in known)]
            await send(message)

        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(given) != 1 or not HOSTS.fullmatch(given[0]):
            answer = PlainTextResponse("this page is for this machine alone: open it as 127.0.0.1 or localhost", 421)
            await answer(scope, receive, send_with)
            return
        await self._app(scope, receive, send_with)


@dataclass(frozen=True)
class Watched:
    """What a server shows, and to whom."""

    feeds: Sequence[Feed]
    token: str
    stop: Callable[[Path], str]

    @property
    def cookie(self) -> str:
        """Its name: pages on several ports of a host share their cookies."""
        return "flowrl-" + hashlib.sha256(self.token.encode()).hexdigest()[:12]

    def is_token(self, given: str) -> bool:
        """Whether somebody knows the token; the time that this takes tells nothing of it."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


def build_app(feeds: Sequence[Feed], token: str, stop: Callable[[Path], str] = ask_to_stop) -> FastAPI:
    """The application for these run directories, which need not have begun."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.watched = Watched(feeds, token, stop)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=1)
    app.add_middleware(_Headers)
    app.add_exception_handler(_RefusedError, _refuse)
    app.add_exception_handler(UserError, _explain)
    app.include_router(entrance)
    app.include_router(private)
    return app


def _watched(request: Request) -> Watched:
    return request.app.state.watched


Known = Annotated[Watched, Depends(_watched)]


def _authorise(request: Request, watched: Known) -> None:
    if not watched.is_token(request.cookies.get(watched.cookie, "")):
        raise _RefusedError(401, "open the address that `flowrl watch` printed: it holds the token of this page")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise _RefusedError(403, "this was asked by another page")


def _chosen(number: int, watched: Known) -> Feed:
    if not 0 <= number < len(watched.feeds):
        raise _RefusedError(404, "there is no such run here")
    return watched.feeds[number]


Run = Annotated[Feed, Depends(_chosen)]
entrance = APIRouter()
private = APIRouter(dependencies=[Depends(_authorise)])


@entrance.get("/")
def frame(request: Request, watched: Known) -> Response:
    """The page's frame; with the token in the address, a cookie instead, so that the token stays in no history."""
    given = request.query_params.get("token")
    if given is None:
        _authorise(request, watched)
        return HTMLResponse(page.live_page())
    if not watched.is_token(given):
        raise _RefusedError(401, "this is not the token of this page; open the address that was printed last")
    answer = RedirectResponse("./", 303)
    answer.set_cookie(watched.cookie, watched.token, httponly=True, samesite="strict", path="/")
    return answer


@private.get("/static/{name}")
def static(name: str) -> Response:
    """A script or style sheet of ours."""
    if name not in STATIC:
        raise _RefusedError(404, "there is no such file")
    return Response(page.static(name), media_type=STATIC[name])


@private.get("/runs")
def runs(watched: Known) -> Response:
    """Which runs are shown, and what a request to stop one carries."""
    listed = [
        {"id": i, "name": feed.path.resolve().name, "path": str(feed.path)} for i, feed in enumerate(watched.feeds)
    ]
    return _json({"runs": listed, "token": watched.token})


@private.get("/runs/{number}/overview")
def overview(run: Run) -> Response:
    """All that is told in words and tables."""
    return _json(_overview(run))


@private.get("/runs/{number}/steps")
def steps(run: Run) -> Response:
    """Iterations of which there are samples."""
    return _json(run.steps())


@private.get("/runs/{number}/pairs")
def pairs(number: int, run: Run) -> Response:
    """The same prompt and seed before and after."""
    return _json(run.pairs(_address(number, run.path)))


@private.get("/runs/{number}/samples/{kind}/{step}")
def samples(number: int, kind: str, step: int, run: Run) -> Response:
    """Samples of an iteration."""
    return _json(run.samples(kind, step, _address(number, run.path)))


@private.get("/runs/{number}/file/{name:path}")
def picture(name: str, run: Run, small: bool = False) -> Response:
    """An image inside the run's directory, whole or ``small``."""
    path = inside(run.path, name)
    if not path.is_file():
        raise _RefusedError(404, "there is no such picture in this run")
    kept = {"cache-control": "private, max-age=86400"}
    if not small:
        return FileResponse(path, headers=kept)
    found = _thumbnail(path, path.stat().st_mtime_ns)
    if found is None:
        raise _RefusedError(404, "this picture is damaged")
    return Response(found[0], media_type=found[1], headers=kept)


@private.get("/runs/{number}/{part}")
def growing(part: str, run: Run, cursor: str = "") -> Response:
    """What is new in a file that grows."""
    parts = {"metrics": run.metrics, "memory": run.memory, "histograms": run.histograms, "said": run.said}
    if part not in parts:
        raise _RefusedError(404, "there is nothing of this name")
    return _json(parts[part](cursor))


@private.get("/events")
def events(watched: Known) -> Response:
    """A stream that says when something is new."""
    return StreamingResponse(changes(watched.feeds), media_type="text/event-stream")


@private.post("/runs/{number}/stop")
def stop_run(run: Run, watched: Known, proof: Annotated[str, Header(alias=PROOF)] = "") -> Response:
    """Ask the process that writes a run to save and end."""
    if not watched.is_token(proof):
        raise _RefusedError(403, "a request to stop a run carries the token")
    return _json({"said": watched.stop(run.path)})


async def changes(feeds: Sequence[Feed], pause: float = PAUSE_S) -> AsyncIterator[str]:
    """Server-sent events: the states of all runs, at first and whenever one is another."""
    before, quiet = None, 0.0
    while True:
        now = await asyncio.to_thread(lambda: [feed.state() for feed in feeds])
        if now != before:
            yield f"data: {as_json(now)}\n\n"
            before, quiet = now, 0.0
        elif quiet >= SILENCE_S:
            yield ": still here\n\n"  # a connection that is gone is noticed by writing to it
            quiet = 0.0
        await asyncio.sleep(pause)
        quiet += pause


def _overview(feed: Feed) -> dict[str, Any]:
    try:
        return feed.overview()
    except UserError as error:
        return waiting(feed.path, error)


def _address(number: int, run: Path) -> Show:
    """Addresses of a run's images, relative to the page's own: a tunnel or a proxy may serve it elsewhere."""
    root = run.resolve()

    def address(path: Path) -> str | None:
        if not path.is_file():
            return None
        changed = path.stat().st_mtime_ns  # a resumed run may write it anew
        return f"runs/{number}/file/{quote(path.resolve().relative_to(root).as_posix())}?v={changed:x}"

    return address


@lru_cache(maxsize=512)
def _thumbnail(path: Path, _changed: int) -> tuple[bytes, str] | None:
    return shrunk(path)


def _json(value: Any) -> Response:
    return Response(as_json(value), media_type="application/json")


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, _RefusedError)
    return PlainTextResponse(str(error), error.status)


def _explain(_: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 409)
