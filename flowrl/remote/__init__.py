"""Scoring elsewhere: a reward server with its client (``use: http://host:port/NAME``), and actors of a Ray cluster.

Requests are JSON with base64 PNG, answers JSON: nothing that arrives is unpickled, imported or opened as a path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowrl.errors import UserError, missing

HTTP = ("http://", "https://")
RAY = "ray:"
TOKEN_VARIABLE = "FLOWRL_TOKEN"
"""Environment variable of the bearer token, for the server and for its clients."""


def is_remote(use: str) -> bool:
    """Whether ``use`` of a reward names one that scores in another place."""
    return use.startswith((*HTTP, RAY))


def check_remote(use: str) -> None:
    """Raise `UserError` if the address or the reward behind ``ray:`` cannot be meant; asks no server."""
    if use.startswith(HTTP):
        _need("httpx", "server", use)
        from flowrl.remote.client import Address

        Address.of(use)
        return
    from flowrl.score.finding import check_reward

    _need("ray", "ray", use)
    check_reward(_behind_ray(use))


def find_remote(use: str) -> Callable[..., Any]:
    """A factory, called with a reward's options, of what scores remotely. Raises `UserError`."""
    if use.startswith(HTTP):
        _need("httpx", "server", use)
        from flowrl.remote.client import Address, connect

        return functools.partial(connect, Address.of(use))
    from flowrl.remote.cluster import place

    _need("ray", "ray", use)
    return functools.partial(place, _behind_ray(use))


def serve(config: Path, host: str, port: int, token_file: Path | None) -> None:
    """Score for others until interrupted. Raises `UserError` before listening if anything does not fit."""
    for package in ("fastapi", "uvicorn"):
        _need(package, "server", "reward-server")
    from flowrl.remote.server import run

    run(config, host, port, token_file)


def _behind_ray(use: str) -> str:
    inner = use.removeprefix(RAY)
    if not inner or is_remote(inner):
        raise UserError(f"reward {use!r}: ray: is followed by a reward as it is named elsewhere, as in ray:pickscore")
    return inner


def _need(package: str, extra: str, what: str) -> None:
    if find_spec(package) is None:
        raise missing(what, package, extra)
