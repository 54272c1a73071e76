"""Prompts of our own for the papers' tasks, for those without the papers' files: `geneval:train`, `ocr:test`, ...

A set is a function of its split alone, the same on every machine and in every version of Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from flowrl.generated import puzzles, texts
from flowrl.generated.objects import geneval

Split = Literal["train", "test"]
Row = dict[str, Any]

SETS: dict[str, Callable[[Split], Sequence[Row]]] = {
    "geneval": geneval,
    "ocr": texts.ocr,
    "countdown3": puzzles.countdown3,
    "sudoku4": puzzles.sudoku4,
}


def rows(name: str, split: Split) -> list[Row]:
    """The prompts of a set; ``split`` is ``train`` or ``test``, which share no prompt. KeyError for another set."""
    return list(SETS[name](split))
