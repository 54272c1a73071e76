"""The 288 completed 4x4 Sudoku grids and puzzles with exactly one solution."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations

SIDE, BOX = 4, 2
CELLS = SIDE * SIDE
DIGITS = "1234"
EMPTY = "."
UNITS = (
    *(tuple(range(SIDE * row, SIDE * row + SIDE)) for row in range(SIDE)),
    *(tuple(range(column, CELLS, SIDE)) for column in range(SIDE)),
    *(
        tuple(SIDE * (BOX * band + row) + BOX * stack + column for row in range(BOX) for column in range(BOX))
        for band in range(BOX)
        for stack in range(BOX)
    ),
)
"""Cells of the four rows, four columns and four 2x2 boxes; cell `4 * row + column`."""


@cache
def grids() -> tuple[str, ...]:
    """All 288 grids as strings of 16 digits, row by row, sorted."""
    rows = ["".join(row) for row in permutations(DIGITS)]
    found = [""]
    for _ in range(SIDE):
        found = [above + row for above in found for row in rows if _consistent(above + row)]
    return tuple(found)


def valid(cells: str) -> bool:
    """Whether 16 characters are a completed grid: every row, column and box holds the digits 1 to 4 once."""
    return len(cells) == CELLS and all({cells[i] for i in unit} == set(DIGITS) for unit in UNITS)


def solutions(puzzle: str) -> list[str]:
    """The grids that keep every clue of `puzzle` (16 characters, `.` for an empty cell); empty if there are none."""
    clues = [(i, digit) for i, digit in enumerate(puzzle) if digit != EMPTY]
    return [grid for grid in grids() if all(grid[i] == digit for i, digit in clues)]


def random_puzzle(grid: str, clues: int, rng: random.Random) -> str:
    """`grid` with all but `clues` cells emptied, drawn again until the solution is unique (six clues: a few draws)."""
    while True:
        kept = set(rng.sample(range(CELLS), clues))
        puzzle = "".join(digit if i in kept else EMPTY for i, digit in enumerate(grid))
        if len(solutions(puzzle)) == 1:
            return puzzle


def _consistent(cells: str) -> bool:
    """Whether the leading rows of a grid repeat no digit in a column or box."""
    filled = [[cells[i] for i in unit if i < len(cells)] for unit in UNITS]
    return all(len(set(digits)) == len(digits) for digits in filled)
