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


def find(names: Sequence[str], target: Target, data: Path | None = None) -> list[Suite]:
    """The suites of these names, prepared for a target; ``data`` is a file of problems for the one that reads such.

    Raises UserError for an unknown name, an unfit target, or a file that none or several would read.
    """
    modules = {name: _module(name) for name in dict.fromkeys(names)}
    for name, module in modules.items():
        if target.medium not in module.MEDIA:
            raise UserError(_unfit(name, module, target))
    readers = [name for name, module in modules.items() if _reads(module)]
    if data is not None and len(readers) != 1:
        some = f"{' and '.join(readers)} would both read it" if readers else "none of the suites reads one"
        raise UserError(f"--data: {some}; evaluate gsm8k or math500 alone with it")
    return [module.build(target, **({"data": data} if _reads(module) else {})) for module in modules.values()]


def _module(name: str) -> ModuleType:
    if name not in names():
        raise UserError(f"--suite: there is no suite {name!r}{did_you_mean(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def _reads(module: ModuleType) -> bool:
    return "data" in inspect.signature(module.build).parameters


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
