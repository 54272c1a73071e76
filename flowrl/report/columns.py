"""Files that a run appends to, read as they grow: only what is new is parsed, and a reader is told only what is new.

A cursor ``G-N`` says what a reader has: the first N rows of generation G. A file that was replaced, as by resuming from
an earlier checkpoint, begins a new generation, of which a reader is sent everything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.records.sample_files import json_object
from flowrl.report.numbers import spaced
from flowrl.report.record import Metrics, finite

GIB = 2**30
Value = float | None
MOST_ROWS = 300
"""Of histograms, sent at once; evenly spaced ones of more."""


class GrowingFile:
    """A JSON-lines file that another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._offset, self._line = -1, 0, 0

    def new_lines(self) -> tuple[list[dict[str, Any]], bool]:
        """Objects appended since the last call, and whether the file began anew. A last line without an end is left for
        later. Raises `UserError` for a line that is no JSON object."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                anew = status.st_ino != self._inode or status.st_size < self._offset
                if anew:
                    self._inode, self._offset, self._line = status.st_ino, 0, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            anew = self._inode != -1
            self._inode, self._offset, self._line = -1, 0, 0
            return [], anew
        content = content[: content.rfind(b"\n") + 1]
        numbered = enumerate(content.split(b"\n"), start=self._line + 1)
        lines = [json_object(line, self.path, number) for number, line in numbered if line.strip()]
        self._offset += len(content)
        self._line += content.count(b"\n")
        return lines, anew


class Columns:
    """A file of numbers by name, one row per step, as columns. Lines of one step are one row; a step that comes again
    after later ones replaces them."""

    def __init__(self, path: Path, flat: Any = None) -> None:
        self._file = GrowingFile(path)
        self._flat = flat or (lambda line: line)
        """Makes numbers by name of a line."""
        self._generation = 0
        self._columns: dict[str, list[Value]] = {"step": []}
        """Those of a key that later rows lack are shorter."""

    @property
    def columns(self) -> dict[str, list[Value]]:
        """Values by key, None where a row has none."""
        for values in self._columns.values():
            values.extend([None] * (len(self) - len(values)))
        return self._columns

    def update(self) -> None:
        """Read what is new. Raises `UserError` as `GrowingFile.new_lines`."""
        lines, anew = self._file.new_lines()
        if anew:
            self._restart(0)
        for line in lines:
            self._add(self._flat(line))

    def __len__(self) -> int:
        return len(self._columns["step"])

    def since(self, cursor: str) -> dict[str, Any]:
        """``{cursor, reset, columns}``: rows that a reader with this cursor lacks, and the last that it has, to which
        something may have been added."""
        generation, rows = _numbers(cursor)
        reset = generation != self._generation or rows > len(self)
        start = 0 if reset else max(0, rows - 1)
        known = {key: _short(values[start:]) for key, values in self.columns.items()}
        known = {key: values for key, values in known.items() if values.count(None) < len(values)}
        return {"cursor": f"{self._generation}-{len(self)}", "reset": reset, "columns": known}

    def metrics(self) -> Metrics:
        """The columns as arrays, NaN for what is missing."""
        return Metrics({key: np.array(values, dtype=np.float64) for key, values in self.columns.items()})

    def _restart(self, rows: int) -> None:
        """Keep so many rows; readers are sent everything."""
        self._generation += 1
        self._columns = {key: values[:rows] for key, values in self._columns.items()} if rows else {"step": []}

    def _add(self, line: Mapping[str, Any]) -> None:
        step, steps = finite(line.get("step", len(self))), self._columns["step"]
        if math.isnan(step):  # not a line of ours
            return
        while steps and steps[-1] is not None and steps[-1] > step:
            self._restart(next(row for row, known in enumerate(steps) if known is not None and known >= step))
            steps = self._columns["step"]
        if not steps or steps[-1] != step:
            steps.append(step)
        row = len(steps) - 1
        for key, value in line.items():
            if key != "step":
                values = self._columns.setdefault(key, [])
                if len(values) <= row:
                    values.extend([None] * (row + 1 - len(values)))
                values[row] = value if type(value) is float and value - value == 0 else _known(value)


class Lines:
    """A file of lines that are kept as they are."""

    def __init__(self, path: Path) -> None:
        self._file = GrowingFile(path)
        self._generation = 0
        self._lines: list[dict[str, Any]] = []

    def all(self) -> list[dict[str, Any]]:
        """Every line so far."""
        fresh, anew = self._file.new_lines()
        if anew:
            self._generation, self._lines = self._generation + 1, []
        self._lines += fresh
        return self._lines

    def since(self, cursor: str, most: int = MOST_ROWS, latest: bool = False) -> dict[str, Any]:
        """``{cursor, reset, rows}``; of more than ``most`` rows evenly spaced ones, both ends included, or the
        ``latest``."""
        self.all()
        generation, rows = _numbers(cursor)
        reset = generation != self._generation or rows > len(self._lines)
        lacking = self._lines[0 if reset else rows :]
        if len(lacking) > most:
            lacking = lacking[-most:] if latest else [lacking[i] for i in spaced(len(lacking), most)]
        return {"cursor": f"{self._generation}-{len(self._lines)}", "reset": reset, "rows": lacking}


def memory_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``memory.jsonl`` as numbers by name, in GiB: ``host/PHASE`` and ``device/PHASE``, the most of any."""
    phase, devices = str(line.get("phase")), line.get("devices")
    row = {"step": line.get("step"), f"host/{phase}": finite(line.get("host")) / GIB}
    held = [finite(value) for value in devices.values()] if isinstance(devices, Mapping) else []
    if held:
        row[f"device/{phase}"] = max(held) / GIB
    return row


class Numbers(list[Value]):
    """Numbers and None that need no further look before they are sent."""


def _known(value: Any) -> Value:
    number = finite(value)
    return None if math.isnan(number) else number


def _short(values: Sequence[Value]) -> Numbers:
    """Six significant digits: a third of the bytes, and more than a chart can show. Whole numbers stay whole."""
    array = np.array(values, dtype=np.float64)
    whole = array == np.floor(array)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** np.clip(5 - np.floor(np.log10(np.abs(array))), 0, 300)
        short = np.where(whole, array, np.round(array * scale) / scale)
    return Numbers(None if value != value else int(value) if value.is_integer() else value for value in short.tolist())


def _numbers(cursor: str) -> tuple[int, int]:
    """``(generation, rows)`` of a cursor; one of no generation for what is none."""
    generation, _, rows = cursor.partition("-")
    good = generation.isdecimal() and rows.isdecimal() and len(cursor) < 40
    return (int(generation), int(rows)) if good else (-1, 0)
