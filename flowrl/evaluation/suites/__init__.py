"""The suites by name. Every module here has a table ``SUITES`` of those it defines; a new suite is a line in one of
them, or a module of its own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.suite import Options, Suite, SuiteEntry
from flowrl.evaluation.target import Target


@cache
def entries() -> Mapping[str, SuiteEntry]:
    """All suites, sorted by name."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return dict(sorted(item for module in modules for item in module.SUITES.items()))


def names() -> list[str]:
    """The names of all suites."""
    return list(entries())


def find(
    names: Sequence[str], target: Target, data: Path | None = None, options: Mapping[str, Options] | None = None
) -> list[Suite]:
    """The suites of these names, prepared for a target; ``data`` is a file of problems or prompts for those that read
    such, ``options`` are settings by suite.

    Raises UserError for an unknown name, an unfit target, a file that none would read, or settings that none has.
    """
    chosen = {name: _entry(name) for name in dict.fromkeys(names)}
    options = options or {}
    for name, entry in chosen.items():
        if target.medium not in entry.media:
            raise UserError(_unfit(name, entry, target))
    if data is not None:
        _check_data([name for name, entry in chosen.items() if entry.takes_data], target)
    _check_options(chosen, options)
    return [
        entry.build(target, data if entry.takes_data else None, options.get(name, {})) for name, entry in chosen.items()
    ]


def _entry(name: str) -> SuiteEntry:
    if name not in entries():
        raise UserError(f"--suite: there is no suite {name!r}{did_you_mean(name, entries())}")
    return entries()[name]


def _unfit(name: str, entry: SuiteEntry, target: Target) -> str:
    fitting = [other for other, each in entries().items() if target.medium in each.media]
    taken = (
        "" if Path(target.text).exists() else " (there is no such folder here; it was taken for a world or hub name)"
    )
    return (
        f"suite {name} judges {' and '.join(entry.media)}, and {target.text!r}{taken} makes {target.medium}; choose "
        f"one of {', '.join(fitting)}"
    )


def _check_data(readers: Sequence[str], target: Target) -> None:
    if not readers:
        raise UserError("--data: none of the suites reads one; leave it out")
    if target.medium == "completions" and len(readers) > 1:
        raise UserError(f"--data: {' and '.join(readers)} would both read it; evaluate one of them alone with it")


def _check_options(chosen: Mapping[str, SuiteEntry], options: Mapping[str, object]) -> None:
    for name, settings in options.items():
        if name not in chosen:
            raise UserError(f"--option: {name!r} is not one of the suites{did_you_mean(name, chosen)}")
        if not chosen[name].takes_options or not isinstance(settings, Mapping):
            raise UserError(f"--option: suite {name} has no such option; give SUITE.KEY=VALUE of a suite of images")
