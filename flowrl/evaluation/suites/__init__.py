"""Suites: what is asked, and how the answers are judged. One module each; its name is the suite's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.target import Target
from flowrl.types import Prompt, Samples

UNTAGGED = "all"
"""Tag of prompts that declare none."""


@dataclass(frozen=True)
class Verdicts:
    """What a suite says about n samples."""

    measures: Mapping[str, Tensor]
    """[n] float each; NaN = could not score."""
    reasons: Sequence[Sequence[str]]
    """Per sample: the clauses it failed, empty for none."""
    details: Sequence[Mapping[str, Any]]
    """Per sample: what the verdict rests on, such as detections, as plain JSON values."""


class Suite(Protocol):
    """Prompts and a judge of the samples made for them."""

    name: str
    title: str
    """Name to print; says by what it was judged."""
    version: str
    source: str
    """Where the prompts are from, such as ``shapes:test``."""
    primary: str
    """Measure of the headline."""
    prompts: Sequence[Prompt]
    """The whole benchmark, in its fixed order; of an image folder, the prompts that it came with."""

    tags: Sequence[str]
    """Tags that the benchmark has; without all of them there is no overall."""
    size: int
    """Prompts that the benchmark has; with fewer a result is partial."""

    def judge(self, samples: Samples) -> Verdicts: ...
    def close(self) -> None:
        """Free what judging needed."""
        ...


def names() -> list[str]:
    """All suites."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(
    names: Sequence[str],
    target: Target,
    data: Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Suite]:
    """The suites of these names, prepared for a target; ``data`` is a file of problems or prompts for those that read
    such, ``options`` are settings by suite.

    Raises UserError for an unknown name, an unfit target, a file that none would read, or settings that none has.
    """
    modules = {name: _module(name) for name in dict.fromkeys(names)}
    for name, module in modules.items():
        if target.medium not in module.MEDIA:
            raise UserError(_unfit(name, module, target))
    readers = [name for name, module in modules.items() if _takes(module, "data")]
    if data is not None and not readers:
        raise UserError("--data: none of the suites reads one; leave it out")
    answered = [name for name in readers if target.medium == "completions"]
    if data is not None and len(answered) > 1:
        raise UserError(f"--data: {' and '.join(answered)} would both read it; evaluate one of them alone with it")
    options = options or {}
    for name in options:
        if name not in modules:
            raise UserError(f"--option: {name!r} is not one of the suites{did_you_mean(name, modules)}")
        if not _takes(modules[name], "options") or not isinstance(options[name], Mapping):
            raise UserError(f"--option: suite {name} has no such option; give SUITE.KEY=VALUE of a suite of images")
    suites = []
    for name, module in modules.items():
        settings: dict[str, Any] = {"data": data} if _takes(module, "data") else {}
        if _takes(module, "options"):
            settings["options"] = options.get(name)
        suites.append(module.build(target, **settings))
    return suites


def _module(name: str) -> ModuleType:
    if name not in names():
        raise UserError(f"--suite: there is no suite {name!r}{did_you_mean(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def _takes(module: ModuleType, name: str) -> bool:
    return name in inspect.signature(module.build).parameters


def _unfit(name: str, module: ModuleType, target: Target) -> str:
    fitting = [other for other in names() if target.medium in _module(other).MEDIA]
    taken = (
        "" if Path(target.text).exists() else " (there is no such folder here; it was taken for a world or hub name)"
    )
    judged = " and ".join(module.MEDIA)
    return (
        f"suite {name} judges {judged}, and {target.text!r}{taken} makes {target.medium}; choose one of "
        f"{', '.join(fitting)}"
    )


def tag_of(prompt: Prompt) -> str:
    """The prompt's tag, the stratum of the statistics."""
    return str(prompt.columns.get("tag") or UNTAGGED)
