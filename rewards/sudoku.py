"""The Sudoku world's reward: is the 4x4 grid solved, and how many of its empty cells are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.worlds.sudoku.grids import CELLS, DIGITS, EMPTY
from flowrl.worlds.sudoku.verifier import judge

RANGE = "[0, 1]"
NEEDS = ("puzzle", "solution")


def sudoku(
    completions: Sequence[str],
    prompts: Sequence[str],
    *,
    mode: Literal["mixed", "strict", "continuous"] = "mixed",
    **columns: Sequence[Any],
) -> Tensor:
    """Score per completion [N] float64 in [0, 1]: `strict` is 1 for a solved grid, `continuous` the share of the
    empty cells that are right, `mixed` the mean of the two.

    `columns` holds the prompts' other fields, N values each: `puzzle` (16 cells, `.` empty) and `solution` (16 digits)
    are needed. Raises `UserError` for another mode, a missing or malformed column, or differing lengths.
    """
    if mode not in ("mixed", "strict", "continuous"):
        raise UserError(f"mode of the sudoku reward must be 'mixed', 'strict' or 'continuous', found {mode!r}")
    for name in NEEDS:
        if name not in columns:
            raise UserError(
                f"the sudoku reward needs the column {name!r} (see flowrl.worlds.sudoku.prompts); "
                f"found the columns {sorted(columns) or 'none'}"
            )
        if not len(columns[name]) == len(completions) == len(prompts):
            counts = f"{len(completions)} completions, {len(prompts)} prompts, {len(columns[name])} {name}"
            raise UserError(f"the sudoku reward needs one prompt and one {name} per completion, found {counts}")
    scores = []
    for completion, puzzle, solution in zip(completions, columns["puzzle"], columns["solution"], strict=True):
        _check("puzzle", puzzle, DIGITS + EMPTY)
        _check("solution", solution, DIGITS)
        verdict = judge(completion, puzzle, solution)
        strict, continuous = float(verdict.strict), verdict.continuous
        scores.append({"strict": strict, "continuous": continuous, "mixed": 0.5 * (strict + continuous)}[mode])
    return torch.tensor(scores, dtype=torch.float64)


def _check(name: str, cells: Any, allowed: str) -> None:
    if not isinstance(cells, str) or len(cells) != CELLS or not set(cells) <= set(allowed):
        raise UserError(
            f"the sudoku column {name!r} should hold 16 characters of {allowed!r} per prompt, found {cells!r}"
        )
