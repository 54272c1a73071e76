"""Waiting for asynchronous rewards: one event loop for all of them, in a thread of its own, for as long as the process
lives. Clients that a reward keeps (connections, locks) belong to the loop they were first used in."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from flowrl.exit_guard import ExitCalledError, catch_exit


def wait_for(result: object) -> Any:
    """The result itself, awaited where it has to be; works where a loop already runs (as in notebooks)."""
    return wait_for_all([result])[0]


def wait_for_all(results: Sequence[object]) -> list[Any]:
    """The results, those that have to be awaited waiting together. Raises what the first of them raises."""
    if not any(inspect.isawaitable(result) for result in results):
        return list(results)
    return asyncio.run_coroutine_threadsafe(_gathered(results), _loop()).result()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="asynchronous rewards", daemon=True).start()
    return loop


async def _gathered(results: Sequence[object]) -> list[Any]:
    return list(await asyncio.gather(*map(_awaited, results)))


async def _awaited(result: object) -> Any:
    if not inspect.isawaitable(result):
        return result
    try:
        with catch_exit():  # which is about threads, and this one is the loop's
            return await result
    except SystemExit as error:  # it would end the loop's thread, and everybody would wait for ever
        raise ExitCalledError(f"it called exit({error.code}), which would have ended the run") from error
