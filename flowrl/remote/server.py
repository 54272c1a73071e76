"""The reward server: FastAPI in front of one process per reward.

``GET /health`` names the rewards, ``POST /score`` scores (`protocol`). Both want the bearer token. This process reads
and checks requests, and never imports or runs a reward; images are unpacked in the reward's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowrl.clients.protocol import (
    MEDIA_TYPE,
    TOKEN_VARIABLE,
    VERSION,
    RefusedError,
    RequestLimits,
    ScoreRequest,
    reward_named_by,
)
from flowrl.errors import UserError
from flowrl.remote.reward_process import Response, RewardProcess
from flowrl.remote.settings import ServerConfig, choose_token

HEAD_SECONDS = 10.0
"""A connection without a complete request head is closed after this time (slow loris)."""
GRACE_SECONDS = 5
"""For requests under way when the server is stopped."""
CONNECTIONS = 256
"""Open connections, asking or not; further ones are closed at once."""
CLOSE = {"Connection": "close"}
"""On refusals: the rest of the request is not read."""


class Backend(Protocol):
    """What answers the requests for one reward."""

    facts: Mapping[str, Any]

    async def ask(self, body: bytes) -> Response:
        """The answer to the body of a request, which nobody has checked so far."""
        ...


class _RequestSlots:
    """Counts requests under way, so that their memory is bounded."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    @property
    def full(self) -> bool:
        """A further request has to come back later."""
        return self.taken >= self.limit

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


def build_app(scorers: Mapping[str, Backend], token: str, limits: RequestLimits) -> FastAPI:
    """The application for rewards by name."""
    slots = _RequestSlots(limits.concurrency)
    one_parser = asyncio.Lock()  # for odd bodies: one of empty lists takes 34 times its size while it is parsed

    async def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise RefusedError(401, "this server wants 'Authorization: Bearer TOKEN' with its token")

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(authorise)])
    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(Exception, _fail)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        rewards = [dict(scorer.facts) | {"name": name} for name, scorer in scorers.items()]
        return {"protocol": VERSION, "rewards": rewards, "limits": limits.model_dump()}

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        _check_head(request, limits)
        if slots.full:
            await _pass_over(request, limits)
            raise RefusedError(503, f"{slots.limit} requests are under way already; come back later")
        with slots.one():
            body = await _receive(request, limits)
            if (name := reward_named_by(body)) is None:
                async with one_parser:
                    name = await asyncio.to_thread(lambda: ScoreRequest.parse(body, limits).reward)
            if name not in scorers:
                raise RefusedError(404, f"there is no such reward here; there are {', '.join(sorted(scorers))}")
            reply = await scorers[name].ask(body)
        return JSONResponse(dict(reply.content), reply.status, _headers(reply.status))

    return app


def run(config: Path, host: str, port: int, token_file: Path | None) -> None:
    """Serve a config's rewards until interrupted; prints the address, and the token if it was made up.

    Raises `UserError` before listening for a config, a reward, a token or an address that does not do.
    """
    settings = ServerConfig.load(config)
    token, invented = choose_token(host, token_file)
    signal.signal(signal.SIGTERM, _leave)
    with _bind(host, port) as listener:
        asyncio.run(_serve(settings, token, invented, listener))


async def _serve(settings: ServerConfig, token: str, invented: bool, listener: socket.socket) -> None:
    async with _started(settings) as scorers:
        app = build_app(scorers, token, settings.limits)
        config = uvicorn.Config(
            app,
            http=HeadTimeoutProtocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        if invented:
            print(f"export {TOKEN_VARIABLE}={token}")
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"listening on {address} ({', '.join(f'{address}/{name}' for name in scorers)})", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


@contextlib.asynccontextmanager
async def _started(settings: ServerConfig) -> AsyncIterator[dict[str, RewardProcess]]:
    """Rewards by name, all loaded; their processes end with the block."""
    processes = [RewardProcess(spec, settings.limits) for spec in settings.specs()]
    try:
        try:
            async with asyncio.TaskGroup() as group:
                for process in processes:
                    group.create_task(process.start())
        except* UserError as errors:
            raise errors.exceptions[0] from None
        scorers = {process.facts["name"]: process for process in processes}
        if len(scorers) < len(processes):
            raise UserError("rewards: two have the same name; give each a name of its own")
        yield scorers
    finally:
        for process in processes:
            await process.close()


def _leave(*_: object) -> None:
    """Unwind as after Ctrl-C, so that the rewards' processes are ended."""
    raise SystemExit(0)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host} port {port}: {error}; choose another --host or --port") from error


def _check_head(request: Request, limits: RequestLimits) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != MEDIA_TYPE:
        raise RefusedError(415, f"a request is {MEDIA_TYPE}; nothing else is read")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "a compressed request is not read; send it plain")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body:
        raise RefusedError(413, f"a request may have {limits.body} bytes; send fewer samples at a time")


async def _receive(request: Request, limits: RequestLimits) -> bytes:
    """The body."""
    body = bytearray()
    async for block in _blocks(request, limits):
        body += block
    return bytes(body)


async def _pass_over(request: Request, limits: RequestLimits) -> None:
    """Read the body and keep nothing: what arrives at a closed connection resets it, and the answer is lost."""
    async for _ in _blocks(request, limits):
        pass


async def _blocks(request: Request, limits: RequestLimits) -> AsyncIterator[bytes]:
    """The body's bytes, counted while they arrive and within the time they may take."""
    count = 0
    try:
        async with asyncio.timeout(limits.receive_seconds):
            async for block in request.stream():
                count += len(block)
                if count > limits.body:
                    raise RefusedError(413, f"a request may have {limits.body} bytes; send fewer samples at a time")
                yield block
    except TimeoutError:
        raise RefusedError(408, f"the request did not arrive within {limits.receive_seconds:g} s") from None
    except ClientDisconnect:
        raise RefusedError(400, "the request ended before its end") from None


def _headers(status: int) -> dict[str, str]:
    return {} if status < 400 else CLOSE | ({"Retry-After": "1"} if status == 503 else {})


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return JSONResponse({"error": error.sentence}, error.status, _headers(error.status))


async def _refuse_route(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": "there are GET /health and POST /score"}, error.status_code, CLOSE)


async def _fail(_: Request, error: Exception) -> JSONResponse:
    """For a bug; uvicorn writes its traceback to the log."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500, CLOSE)


class HeadTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to its patience: it waits for ever for the head of a request."""

    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; close when there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._set_alarm()

    def data_received(self, data: bytes) -> None:
        """Stop the clock once a request has begun; its body has a time limit of its own."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._unset_alarm()

    def on_response_complete(self) -> None:
        """Start the clock for the next request on the connection."""
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._set_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._unset_alarm()
        super().connection_lost(exc)

    def _set_alarm(self) -> None:
        self._unset_alarm()
        self._alarm = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unset_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
