"""Suites: what is asked, and how the answers are judged. One module each; its name is the suite's name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.evaluation.target import Target
from flowrl.types import Prompt, Samples

UNTAGGED = "all"
"""Tag of prompts that declare none."""


@dataclass(frozen=True)
class Verdicts:
    """What a suite says about n images."""

    measures: Mapping[str, Tensor]
    """[n] float each; NaN = could not score."""
    reasons: Sequence[Sequence[str]]
    """Per image: the clauses it failed, empty for none."""
    details: Sequence[Mapping[str, Any]]
    """Per image: what the verdict rests on, such as detections, as plain JSON values."""


class Suite(Protocol):
    """Prompts and a judge of the images made for them."""

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


def find(name: str, target: Target) -> Suite:
    """The suite of a name, prepared for a target. Raises UserError for an unknown name or an unfit target."""
    if name not in names():
        raise UserError(f"--suite: there is no suite {name!r}{did_you_mean(name, names())}")
    return importlib.import_module(f"{__name__}.{name}").build(target)


def tag_of(prompt: Prompt) -> str:
    """The prompt's tag, the stratum of the statistics."""
    return str(prompt.columns.get("tag") or UNTAGGED)
