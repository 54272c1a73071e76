"""Who may ask a page that is served to this machine alone, whatever it shows.

Every request wants the token: once in the address, which a browser changes for a cookie, then in the cookie. What could
be turned against a browser is refused: other host names than this machine's own (DNS rebinding), requests of other
pages, and content as anything but data (content security policy).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowrl.errors import UserError

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


class RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Guard:
    """Whom a server answers."""

    token: str
    frame: Callable[[], str]
    """The page, without content."""

    @property
    def cookie(self) -> str:
        """Its name: pages on several ports of a host share their cookies."""
        return "flowrl-" + hashlib.sha256(self.token.encode()).hexdigest()[:12]

    def is_token(self, given: str) -> bool:
        """Whether somebody knows the token; the time that this takes tells nothing of it."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


def guarded(guard: Guard, private: APIRouter) -> FastAPI:
    """An application that shows ``guard.frame`` and answers what is ``private`` to those who know the token."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.guard = guard
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=1)
    app.add_middleware(_Headers)
    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(UserError, _explain)
    app.include_router(_entrance)
    app.include_router(private, dependencies=[Depends(authorise)])
    return app


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


def _guard(request: Request) -> Guard:
    return request.app.state.guard


Guarded = Annotated[Guard, Depends(_guard)]


def authorise(request: Request, guard: Guarded) -> None:
    """Raise `RefusedError` for a request without the cookie, or of another page."""
    if not guard.is_token(request.cookies.get(guard.cookie, "")):
        raise RefusedError(401, "open the address that was printed: it holds the token of this page")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise RefusedError(403, "this was asked by another page")


_entrance = APIRouter()


@_entrance.get("/")
def frame(request: Request, guard: Guarded) -> Response:
    """The page's frame; with the token in the address, a cookie instead, so that the token stays in no history."""
    given = request.query_params.get("token")
    if given is None:
        authorise(request, guard)
        return HTMLResponse(guard.frame())
    if not guard.is_token(given):
        raise RefusedError(401, "this is not the token of this page; open the address that was printed last")
    answer = RedirectResponse("./", 303)
    answer.set_cookie(guard.cookie, guard.token, httponly=True, samesite="strict", path="/")
    return answer


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return PlainTextResponse(str(error), error.status)


def _explain(_: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 409)
