"""The server's side of a reward in a process: asks it, ends it when it hangs, and starts it anew."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from flowrl.clients.protocol import TOKEN_VARIABLE, RequestLimits
from flowrl.errors import UserError
from flowrl.processes import START_SECONDS, Child

PROGRAM = "flowrl.remote.worker"
"""The other side, which imports rewards; the server never does."""

T = TypeVar("T")


@dataclass(frozen=True)
class Response:
    """What becomes of a request: an HTTP status and the JSON object that goes with it."""

    status: int
    content: Mapping[str, Any]

    @classmethod
    def error(cls, status: int, sentence: str) -> Response:
        """A response that says what went wrong."""
        return cls(status, {"error": sentence})


class RewardProcess:
    """Asks one reward, one request at a time. ``facts`` (name, range, version, ...) are known once it has started."""

    def __init__(self, spec: Mapping[str, Any], limits: RequestLimits) -> None:
        self._setup = json.dumps({"reward": spec, "limits": limits.model_dump()}).encode()
        self._seconds = limits.seconds
        self._child: Child | None = None
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)  # it waits for the child, so that the event loop need not
        self.facts: Mapping[str, Any] = {}

    async def start(self) -> None:
        """Start the process and let it load the reward. Raises `UserError` with the reason when it cannot."""
        await self._end()
        # the token is no reward's business
        self._child = await self._run(lambda: Child.start(PROGRAM, without=[TOKEN_VARIABLE]))
        try:
            response = await self._exchange(self._setup, START_SECONDS)
        except (TimeoutError, EOFError) as error:
            raise UserError(f"a reward's process did not start ({error}); its output says why") from error
        if response.status != 200:
            await self._end()
            raise UserError(str(response.content["error"]))
        self.facts = response.content

    async def ask(self, body: bytes) -> Response:
        """The answer to a request; 503 when the reward is busy for too long, 504 when it took too long itself."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._lock.acquire()
        except TimeoutError:
            return Response.error(503, "the reward is busy; come back later")
        try:
            return await self._ask(body)
        finally:
            self._lock.release()

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        await self._end()
        self._thread.shutdown(wait=False)

    async def _ask(self, body: bytes) -> Response:
        name = self.facts.get("name")
        try:
            if self._child is None or self._child.ended:
                await self.start()
            return await self._exchange(body, self._seconds)
        except UserError as error:
            print(f"reward-server: reward {name!r} cannot be started again: {error}", file=sys.stderr, flush=True)
            return Response.error(500, f"reward {name!r} cannot be started again; the server's log says why")
        except TimeoutError:
            return Response.error(504, f"reward {name!r} took more than {self._seconds:g} s, and was stopped")
        except EOFError:
            return Response.error(500, f"the process of reward {name!r} died")

    async def _exchange(self, body: bytes, seconds: float) -> Response:
        child = self._child
        assert child is not None
        try:
            return Response(**json.loads(await self._run(lambda: child.ask(body, seconds=seconds))))
        except asyncio.CancelledError:
            await self._end()  # its answer would be taken for that of the next request
            raise

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()  # at once: the thread may be waiting for it
            await self._run(child.close)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
