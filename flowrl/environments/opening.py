"""From the name of an environment to the environment."""

from __future__ import annotations

import importlib
from typing import Any, cast

from flowrl.environments.checked import CheckedEnvironment, OnError
from flowrl.environments.gym import GymEnvironment
from flowrl.environments.protocol import Draw
from flowrl.errors import UserError, describe_exception, did_you_mean
from flowrl.importing import Place

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


def open_environment(name: str, count: int, on_error: OnError = "raise") -> CheckedEnvironment:
    """``count`` rows of an embedded world (``avoid``), of ``gym:NAME``, or of what a user's ``path.py:make`` makes.
    Raises `UserError` where there is none of that name, or it is none."""
    check_environment(name)
    if name.startswith(GYM):
        return CheckedEnvironment(GymEnvironment(name.removeprefix(GYM), count), name, on_error)
    place = Place.of(name, "environment")
    if place is None:
        return CheckedEnvironment(_worlds()[name](count), name, on_error)
    try:
        made = place.find(keep=True)(count)
    except UserError:
        raise
    except Exception as error:  # a user's code
        raise UserError(f"environment {name}: make({count}) fails: {describe_exception(error)}") from error
    return CheckedEnvironment(made, name, on_error)


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
