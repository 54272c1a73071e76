"""From the name of an environment to the environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from flowrl.environments.checked import CheckedEnvironment, OnError
from flowrl.environments.gym import GymEnvironment
from flowrl.environments.process import ProcessEnvironment
from flowrl.environments.protocol import Array, Draw, Environment
from flowrl.errors import UserError, describe_exception, did_you_mean
from flowrl.importing import Place
from flowrl.processes import ChildError

GYM = "gym:"


def check_environment(name: str) -> None:
    """Raise `UserError` where there is no environment of that name; nothing of it is run."""
    if name.startswith(GYM):
        return
    place = Place.of(name, "environment")
    if place is not None:
        return place.check()
    if name not in _worlds():
        raise UserError(
            f"environment {name!r} is none of the worlds {', '.join(_worlds())}; others are gym:NAME and path.py:make"
            f"{did_you_mean(name, _worlds())}"
        )


def open_environment(
    name: str, count: int, on_error: OnError = "raise", timeout_s: float | None = None
) -> CheckedEnvironment:
    """``count`` rows of an embedded world (``avoid``), of ``gym:NAME``, or of what a user's ``path.py:make`` makes,
    with ``timeout_s`` in a process of their own. Raises `UserError` where there is none of that name, or it is none."""
    check_environment(name)
    if timeout_s is None:
        return CheckedEnvironment(make_environment(name, count), name, on_error)
    try:
        made = ProcessEnvironment(name, count, timeout_s)
    except ChildError as error:
        raise UserError(f"environment {name}: making it fails: {error}") from error
    return CheckedEnvironment(made, name, on_error)


def open_rendered(name: str) -> tuple[CheckedEnvironment, Callable[[int], Array]]:
    """One row of an environment, and what gives its own picture [H, W, 3] of a row. Raises `UserError` where it has
    none."""
    made = make_environment(name, 1, render=True)
    render = getattr(made, "render", None)
    if render is None:
        raise UserError(
            f"environment {name} has no method render(row) that answers a picture, as algorithm.sampler.render=true "
            "needs; add one, or a function draw beside make, and remove render"
        )
    return CheckedEnvironment(made, name, "raise"), render


def make_environment(name: str, count: int, render: bool = False) -> Environment:
    """The environment itself, of a name that `check_environment` knows. Raises `UserError`."""
    if name.startswith(GYM):
        return GymEnvironment(name.removeprefix(GYM), count, render)
    place = Place.of(name, "environment")
    if place is None:
        return _worlds()[name](count)
    try:
        return place.find(keep=True)(count)
    except UserError:
        raise
    except Exception as error:  # a user's code
        raise UserError(f"environment {name}: make({count}) fails: {describe_exception(error)}") from error


def find_drawing(name: str) -> Draw | None:
    """What draws episodes of this environment: the function ``draw`` beside what makes it. None where there is none,
    and of ``gym:NAME``; nothing is made for it."""
    if name.startswith(GYM):
        return None
    place = Place.of(name, "environment")
    if place is None:
        return getattr(importlib.import_module(f"flowrl.worlds.{name}"), "draw", None)
    try:
        return cast(Draw, Place(place.where, "draw", place.kind).find(keep=True))
    except UserError:  # the module was run when the environment was made: it has no such name
        return None


def _worlds() -> dict[str, Any]:
    """What makes an embedded world, by its name, of those in which one acts."""
    every = {name: importlib.import_module(f"flowrl.worlds.{name}") for name in _package().world_names()}
    return {name: world.make for name, world in every.items() if hasattr(world, "make")}


def _package() -> Any:
    return importlib.import_module("flowrl.worlds")  # by name: worlds know environments, not the other way
