"""Prompts of image benchmarks as their authors publish them: PartiPrompts, DrawBench, Pick-a-Pic, GenEval, DPG."""

from __future__ import annotations

from pathlib import Path

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.target import Target
from flowrl.types import Prompt


def benchmark_prompts(name: str, target: Target, data: Path | None, spec: str | None) -> tuple[tuple[Prompt, ...], str]:
    """The prompts of a suite and where they are from: of the image folder, ``data`` or ``spec``.

    ``data`` and ``spec`` are files (.txt, .jsonl, .json, .parquet, .csv, .tsv); ``spec`` may also be ``hf:name:split``.
    Raises UserError where none or several are given.
    """
    given = [str(source) for source in (data, spec) if source is not None]
    if target.entries:
        if given:
            raise UserError(
                f"suite {name}: the images of {target.text!r} come with their prompts; leave {given[0]} out"
            )
        return target.prompts(), target.text
    if len(given) != 1:
        found = f"found both {' and '.join(given)}" if given else "none is built in"
        raise UserError(
            f"suite {name} needs prompts ({found}): give --data FILE (.txt, .jsonl, .csv, .tsv, ...), such as "
            "PartiPrompts.tsv or DrawBench.csv, or an image folder with its prompts"
        )
    return read(given[0]), given[0]


def read(spec: str) -> tuple[Prompt, ...]:
    """The prompts of a file or data set, in order. Repeated lines stay. Raises UserError."""
    return load_prompts(spec).prompts
