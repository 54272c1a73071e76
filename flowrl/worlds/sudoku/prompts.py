"""Puzzles split by solution: no grid that solves a test puzzle solves a train puzzle.

"Held out" means held out from RL training: pre-training draws from all 288 grids, so the test split measures whether
what RL improves carries over to grids it never rewarded.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any, Literal

from flowrl.worlds.sudoku.grids import CELLS, SIDE, grids, random_puzzle

TAGS = ("8", "9", "10")
"""Numbers of empty cells."""
TEST_GRIDS = 58
TRAIN_SIZE, TEST_SIZE = 200, 80  # puzzles per tag
PROMPT_LENGTH = CELLS + SIDE  # characters: 16 cells, three row separators and the final "="
LENGTH = CELLS
"""Characters of a completion."""


def prompts(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """The fixed prompt list of a split: `prompt`, `puzzle` (16 cells), `solution` (16 digits), `tag` (empty cells).

    Raises ValueError for another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', found {split!r}")
    return [
        {"prompt": text(puzzle), "puzzle": puzzle, "solution": grid, "tag": tag}
        for puzzle, (grid, tag) in _puzzles(split).items()
    ]


@cache
def _puzzles(split: str) -> dict[str, tuple[str, str]]:
    """(solution, tag) by puzzle, in the order drawn."""
    shuffled = random.Random("sudoku").sample(grids(), len(grids()))
    own, size = (shuffled[:TEST_GRIDS], TEST_SIZE) if split == "test" else (shuffled[TEST_GRIDS:], TRAIN_SIZE)
    rng = random.Random(f"sudoku-{split}")
    found: dict[str, tuple[str, str]] = {}
    for tag in TAGS:
        wanted = len(found) + size
        while len(found) < wanted:
            grid = rng.choice(own)
            found[random_puzzle(grid, CELLS - int(tag), rng)] = grid, tag
    return found


def text(puzzle: str) -> str:
    """The prompt of a puzzle: `1..4/.2../..3./4..1=`."""
    return "/".join(puzzle[i : i + SIDE] for i in range(0, CELLS, SIDE)) + "="
