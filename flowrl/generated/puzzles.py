"""Countdown with three numbers and 4x4 Sudoku in the form d1 asks for them (arXiv:2504.12216)."""

from __future__ import annotations

import operator
import random
from fractions import Fraction
from typing import Any, Literal

from flowrl.worlds.sudoku.grids import CELLS, grids, random_puzzle

Split = Literal["train", "test"]

SIZE, TEST_SIZE = 8000, 256
LARGEST = 99
"""Of numbers and targets."""
OPERATORS = (operator.add, operator.sub, operator.mul, operator.truediv)
PUZZLES = 1000
EMPTY = range(6, 11)
"""Cells of a Sudoku left open."""
TEST_GRIDS = 58


def countdown3(split: Split) -> list[dict[str, Any]]:
    """8,000 tasks to train on, 256 to test on: columns `numbers` (three of 1 to 99) and `target` (1 to 99), which an
    expression of all three reaches. No task is in both, in whatever order of its numbers."""
    rng = random.Random("countdown3")
    found: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}
    while len(found) < SIZE + TEST_SIZE:
        numbers = tuple(rng.randint(1, LARGEST) for _ in range(3))
        value = _value(numbers, rng)
        if value is not None and value.denominator == 1 and 1 <= value <= LARGEST:
            found.setdefault((tuple(sorted(numbers)), int(value)), numbers)
    tasks = [(numbers, target) for (_, target), numbers in found.items()]
    chosen = tasks[:TEST_SIZE] if split == "test" else tasks[TEST_SIZE:]
    return [{"prompt": f"{list(n)} -> {target}", "numbers": list(n), "target": target} for n, target in chosen]


def sudoku4(split: Split) -> list[dict[str, Any]]:
    """1,000 puzzles to train on, 256 to test on, with 6 to 10 cells open and one solution: columns `puzzle` (16 digits,
    0 = open) and `solution`. No grid solves puzzles of both."""
    shuffled = random.Random("sudoku4").sample(grids(), len(grids()))
    own, size = (shuffled[:TEST_GRIDS], TEST_SIZE) if split == "test" else (shuffled[TEST_GRIDS:], PUZZLES)
    rng = random.Random(f"sudoku4-{split}")
    found: dict[str, dict[str, Any]] = {}
    while len(found) < size:
        grid = rng.choice(own)
        puzzle = random_puzzle(grid, CELLS - rng.choice(EMPTY), rng).replace(".", "0")
        found.setdefault(puzzle, {"prompt": puzzle, "puzzle": puzzle, "solution": grid})
    return list(found.values())


def _value(numbers: tuple[int, ...], rng: random.Random) -> Fraction | None:
    """What a random expression of all three numbers is worth, exactly; None where it divides by 0."""
    a, b, c = map(Fraction, rng.sample(numbers, 3))
    try:
        first = rng.choice(OPERATORS)(a, b)
        return rng.choice(OPERATORS)(*rng.sample((first, c), 2))
    except ZeroDivisionError:
        return None
