"""Rewards that are scored elsewhere, seen from the trainer: in a process, on a reward server, in a Ray cluster.

Requests are JSON with base64 PNG, answers JSON: nothing that arrives is unpickled, imported or opened as a path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from flowrl.errors import UserError, missing_package

HTTP = ("http://", "https://")
RAY = "ray:"


def is_remote_reward(use: str) -> bool:
    """Whether ``use`` of a reward names one that scores in another connect_to_ray."""
    return use.startswith((*HTTP, RAY))


def check_remote_reward(use: str) -> str | None:
    """The reward behind ``ray:``, to be checked in turn; None for a server, which is not asked. Raises `UserError` if
    the address cannot be meant or a package is missing."""
    if use.startswith(HTTP):
        require("httpx", "server", use)
        from flowrl.clients.http import Address

        Address.of(use)
        return None
    require("ray", "ray", use)
    return _behind_ray(use)


def find_remote_reward(use: str) -> Callable[..., Any]:
    """A factory, called with a reward's options, of what scores remotely. Raises `UserError`."""
    if use.startswith(HTTP):
        require("httpx", "server", use)
        from flowrl.clients.http import Address, connect_to_server

        return functools.partial(connect_to_server, Address.of(use))
    from flowrl.clients.ray import connect_to_ray

    require("ray", "ray", use)
    return functools.partial(connect_to_ray, _behind_ray(use))


def require(package: str, extra: str, what: str) -> None:
    """Raise `UserError` naming the extra to install if ``what`` cannot do without ``package``."""
    if find_spec(package) is None:
        raise missing_package(what, package, extra)


def _behind_ray(use: str) -> str:
    inner = use.removeprefix(RAY)
    if not inner or is_remote_reward(inner):
        raise UserError(f"reward {use!r}: ray: is followed by a reward as it is named elsewhere, as in ray:pickscore")
    return inner
