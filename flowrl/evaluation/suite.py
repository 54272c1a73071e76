"""What a suite is: prompts, and how samples of them are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flowrl.detection.self_test import Check
from flowrl.evaluation.target import Medium, Target
from flowrl.types import Prompt, Samples

UNTAGGED = "all"
"""Tag of prompts that declare none."""
Options = Mapping[str, Any]
"""A suite's settings, as ``--option SUITE.KEY=VALUE`` gives them."""


@dataclass(frozen=True)
class SuiteScores:
    """What a suite says about n samples."""

    measures: Mapping[str, Tensor]
    """[n] float each; NaN = could not score."""
    reasons: Sequence[Sequence[str]]
    """Per sample: the clauses it failed, empty for none."""
    details: Sequence[Mapping[str, Any]]
    """Per sample: what the scores rest on, such as detections, as plain JSON values."""

    @classmethod
    def of(cls, measures: Mapping[str, Tensor], count: int) -> SuiteScores:
        """Scores of ``count`` samples that need no reasons and no details."""
        return cls(measures, [()] * count, [{}] * count)


class Suite(Protocol):
    """Prompts, and the scores of samples made for them."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def title(self) -> str:
        """Name to print; says by what samples are scored."""
        ...

    @property
    def version(self) -> str:
        """Changes where the same samples would score otherwise."""
        ...

    @property
    def source(self) -> str:
        """Where the prompts are from, such as ``shapes:test``."""
        ...

    @property
    def primary(self) -> str:
        """Measure of the headline."""
        ...

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The whole benchmark, in its fixed order; of an image folder, the prompts that it came with."""
        ...

    @property
    def tags(self) -> Sequence[str]:
        """Tags that the benchmark has; without all of them there is no overall."""
        ...

    @property
    def size(self) -> int:
        """Prompts that the benchmark has; with fewer a result is partial."""
        ...

    def score(self, samples: Samples) -> SuiteScores:
        """Every measure of every sample; the first is the primary one."""
        ...

    def close(self) -> None:
        """Free what scoring needed."""
        ...


@runtime_checkable
class SelfTesting(Protocol):
    """A suite that can tell whether what judges works."""

    def self_test(self, afresh: bool) -> Sequence[Check]:
        """The checks of what judges; those it passed before are remembered unless ``afresh``."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A suite with measures that are means over the parts of samples, of which prompts have different numbers."""

    def weights(self, prompt: Prompt) -> Mapping[str, float]:
        """By measure, how much a sample of this prompt counts in its mean; 1 for a measure that is left out."""
        ...


@runtime_checkable
class Collective(Protocol):
    """A suite with measures that follow from all samples of a variant."""

    def conclude(self, measures: Mapping[str, NDArray[np.float64]]) -> Mapping[str, NDArray[np.float64]]:
        """The measures [P, S] of all samples, NaN where there is none, with those put in place."""
        ...


@dataclass(frozen=True)
class SamplingProtocol:
    """How a benchmark's samples are made where the user says nothing else."""

    steps: int
    guidance: float
    size: int
    """Pixels per side; a run, and an export of one that states it, keep their own."""
    samples: int
    """Per prompt."""


@dataclass(frozen=True)
class SuiteEntry:
    """How a suite is made when it is asked for by its name."""

    build: Callable[[Target, Path | None, Options], Suite]
    """From the target, ``--data`` and the suite's options. Raises `UserError`."""
    media: tuple[Medium, ...]
    """What it can score."""
    takes_data: bool = False
    """Whether it reads a file of prompts or problems."""
    takes_options: bool = False
    protocol: SamplingProtocol | None = None
    """With one, noise follows from the prompt's words, not from its place in the file."""
    least: int = 0
    """Samples of all prompts together, at least, where the user says nothing."""
    independent: bool = False
    """Samples are trials of their own and not attempts at a problem: no pass@k, and Wilson's interval is told."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Temperatures, by their label, that are evaluated beside the target's own where the user asks for no decoding."""


def prompt_tag(prompt: Prompt) -> str:
    """The prompt's tag, the stratum of the statistics."""
    return str(prompt.columns.get("tag") or UNTAGGED)


def prompt_tags(prompts: Sequence[Prompt]) -> list[str]:
    """The different tags of prompts, in the order they come."""
    return list(dict.fromkeys(map(prompt_tag, prompts)))
