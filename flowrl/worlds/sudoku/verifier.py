"""Verifies a completion against its puzzle: solved by the rules, and how many empty cells are right."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flowrl.worlds.sudoku.grids import CELLS, EMPTY, valid

SEPARATORS = re.compile(r"[\s/|,]")
"""What may stand between cells."""
LONGEST = 256
"""Characters of a completion that are read at all; a longer one is wrong."""


@dataclass(frozen=True)
class SudokuVerdict:
    """Whether the grid is solved, and the share of the originally empty cells that equal the solution."""

    strict: bool
    continuous: float


def verify(completion: str, puzzle: str, solution: str) -> SudokuVerdict:
    """The rules decide `strict`: 16 digits, clues kept, rows, columns and boxes valid. `solution` decides `continuous`
    (arXiv:2504.12216's Sudoku reward), which is 0 for anything but 16 characters; white space and `/ | ,` are ignored.
    """
    cells = SEPARATORS.sub("", completion) if len(completion) <= LONGEST else ""
    if len(cells) != CELLS:
        return SudokuVerdict(False, 0.0)
    empty = [i for i, clue in enumerate(puzzle) if clue == EMPTY]
    kept = all(clue in (EMPTY, cell) for clue, cell in zip(puzzle, cells, strict=True))
    right = sum(cells[i] == solution[i] for i in empty)
    return SudokuVerdict(kept and valid(cells), right / len(empty) if empty else 1.0)
