"""Prompts of image benchmarks as their authors publish them: PartiPrompts, DrawBench, Pick-a-Pic, GenEval, DPG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl.data import TEXT_KEYS, load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.target import Target
from flowrl.paths import expanded
from flowrl.types import Prompt

TABLES = {".csv": ",", ".tsv": "\t"}


def prompts_of(name: str, target: Target, data: Path | None, spec: str | None) -> tuple[tuple[Prompt, ...], str]:
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
    path = expanded(spec)
    if path.suffix.lower() not in TABLES:
        return load_prompts(spec).prompts
    rows = table(path)
    key = next((key for key in TEXT_KEYS if key in (rows[0] if rows else {})), None)
    if key is None:
        columns = ", ".join(map(repr, rows[0])) if rows else "no rows"
        raise UserError(f"prompts {path}: no column of {', '.join(map(repr, TEXT_KEYS))} (found {columns})")
    rest = [{name: value for name, value in row.items() if name != key} for row in rows]
    return tuple(Prompt(str(row[key]), n, more) for n, (row, more) in enumerate(zip(rows, rest, strict=True)))


def table(path: Path) -> Sequence[Mapping[str, Any]]:
    """The rows of a .csv or .tsv file with a header. Raises UserError for one that is missing or damaged."""
    if not path.is_file():
        raise UserError(f"prompts {path} do not exist (looked in {Path.cwd()})")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=TABLES[path.suffix.lower()], restkey="", restval=None))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"prompts {path} are not a readable table ({error}); save it as UTF-8") from None
    for number, row in enumerate(rows, 2):
        if "" in row or None in row.values():
            raise UserError(f"prompts {path}, row {number}: another number of columns than the header; repair it")
    return rows
