"""Presets by name: the files of ``flowrl/algorithms``, and functions in users' own files."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from typing import get_args, get_type_hints

from flowrl import algorithms, renamed
from flowrl.composition.episodes import acts
from flowrl.composition.slots import KIND
from flowrl.errors import UserError, did_you_mean
from flowrl.importing import Place
from flowrl.parts.algorithm import Algorithm, Family


def preset_names() -> list[str]:
    """All presets that come with flowrl."""
    return list(_names())


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(algorithms.__path__)))


def find_preset(name: str) -> Callable[..., Algorithm]:
    """The preset function of a name, of ``path.py:function`` or of ``module:function``. Raises `UserError`, with a
    suggestion for an unknown name."""
    place = Place.of(name, KIND)
    if place is not None:
        preset = place.find(keep=True)
        if not inspect.isfunction(preset):
            raise UserError(
                f"algorithm {name!r}: a preset is a function that returns an Algorithm; found {preset!r} (a part is"
                " named in its own key, such as algorithm.objective)"
            )
        return preset
    if name not in _names():
        new = renamed.new_name("algorithm", name)
        remedy = did_you_mean(name, preset_names()) if new is None else f": it was renamed, write {new}"
        raise UserError(f"algorithm: there is no {name!r}{remedy} (or give path.py:function)")
    return getattr(importlib.import_module(f"{algorithms.__name__}.{name}"), name)


def families(name: str) -> tuple[Family, ...]:
    """The kinds of model that a preset trains: those its argument ``family`` may name, the default first; where it has
    no such argument those of its algorithm, and ``control`` where that can be put on episodes."""
    preset = find_preset(name)
    argument = inspect.signature(preset).parameters.get("family")
    if argument is None:
        algorithm = preset()
        return (*algorithm.families, "control") if acts(algorithm) else algorithm.families
    named = get_args(get_type_hints(preset)["family"])
    return tuple(sorted(named, key=lambda family: family != argument.default))


def paper(name: str) -> str:
    """The source a preset declares by ``PAPER``; of a user's own without one, where it is defined."""
    module = sys.modules[find_preset(name).__module__]
    return str(getattr(module, "PAPER", name))


def summary(name: str) -> str:
    """First paragraph of the docstring of a preset's module, on one line; of a user's own preset, of its function."""
    preset = find_preset(name)
    module = sys.modules[preset.__module__].__doc__
    text = (preset.__doc__ if Place.of(name, KIND) else module) or ""
    return " ".join(text.strip().split("\n\n")[0].split())
