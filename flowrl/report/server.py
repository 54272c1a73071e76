"""The page of runs while they train, served to this machine alone (`flowrl.report.guard`).

Only files that the page names are served, and of a run only images inside its directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from flowrl.errors import UserError
from flowrl.records.owner import ask_to_stop
from flowrl.report import page
from flowrl.report.feed import Feed, as_json, waiting
from flowrl.report.gallery import inside
from flowrl.report.guard import PROOF, Guard, Guarded, RefusedError, guarded
from flowrl.report.pictures import Show, shrunk

__all__ = ["PROOF", "build_app", "changes"]
PAUSE_S = 1.0
"""Seconds between two looks at the runs' files."""
SILENCE_S = 15.0
"""Seconds after which a quiet stream says that it is still there."""
STATIC = {name: "text/javascript" for name in page.SCRIPTS} | {name: "text/css" for name in page.STYLES}


@dataclass(frozen=True)
class Watched:
    """What a server shows, and how it asks a run to stop."""

    feeds: Sequence[Feed]
    stop: Callable[[Path], str]


def build_app(feeds: Sequence[Feed], token: str, stop: Callable[[Path], str] = ask_to_stop) -> FastAPI:
    """The application for these run directories, which need not have begun."""
    app = guarded(Guard(token, page.live_page), private)
    app.state.watched = Watched(feeds, stop)
    return app


def _watched(request: Request) -> Watched:
    return request.app.state.watched


Known = Annotated[Watched, Depends(_watched)]


def _chosen(number: int, watched: Known) -> Feed:
    if not 0 <= number < len(watched.feeds):
        raise RefusedError(404, "there is no such run here")
    return watched.feeds[number]


Run = Annotated[Feed, Depends(_chosen)]
private = APIRouter()


@private.get("/static/{name}")
def static(name: str) -> Response:
    """A script or style sheet of ours."""
    if name not in STATIC:
        raise RefusedError(404, "there is no such file")
    return Response(page.static(name), media_type=STATIC[name])


@private.get("/runs")
def runs(watched: Known, guard: Guarded) -> Response:
    """Which runs are shown, and what a request to stop one carries."""
    listed = [
        {"id": i, "name": feed.path.resolve().name, "path": str(feed.path)} for i, feed in enumerate(watched.feeds)
    ]
    return _json({"runs": listed, "token": guard.token})


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
        raise RefusedError(404, "there is no such picture in this run")
    kept = {"cache-control": "private, max-age=86400"}
    if not small:
        return FileResponse(path, headers=kept)
    found = _thumbnail(path, path.stat().st_mtime_ns)
    if found is None:
        raise RefusedError(404, "this picture is damaged")
    return Response(found[0], media_type=found[1], headers=kept)


@private.get("/runs/{number}/{part}")
def growing(part: str, run: Run, cursor: str = "") -> Response:
    """What is new in a file that grows."""
    parts = {"metrics": run.metrics, "memory": run.memory, "histograms": run.histograms, "said": run.said}
    if part not in parts:
        raise RefusedError(404, "there is nothing of this name")
    return _json(parts[part](cursor))


@private.get("/events")
def events(watched: Known) -> Response:
    """A stream that says when something is new."""
    return StreamingResponse(changes(watched.feeds), media_type="text/event-stream")


@private.post("/runs/{number}/stop")
def stop_run(run: Run, watched: Known, guard: Guarded, proof: Annotated[str, Header(alias=PROOF)] = "") -> Response:
    """Ask the process that writes a run to save and end."""
    if not guard.is_token(proof):
        raise RefusedError(403, "a request to stop a run carries the token")
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
