"""The Sudoku world's reward: is the 4x4 grid solved, and how many of its empty cells are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.worlds.sudoku.grids import CELLS, DIGITS, EMPTY
from flowrl.worlds.sudoku.verifier import SEPARATORS, verify
from rewards._extraction import marked

RANGE = "[0, 1]"
NEEDS = ("puzzle", "solution")


def sudoku(
    completions: Sequence[str],
    prompts: Sequence[str],
    *,
    mode: Literal["mixed", "strict", "continuous"] = "mixed",
    **columns: Sequence[Any],
) -> Tensor:
    r"""Score per completion [N] float64 in [0, 1]: `strict` is 1 for a solved grid, `continuous` the share of the
    empty cells that are right, `mixed` the mean of the two.

    The grid is what stands in the last `<answer>...</answer>` or `\boxed{...}`, else the whole completion. `columns`
    holds the prompts' other fields, N values each: `puzzle` (16 cells, `.` or d1's `0` empty) and `solution` (16
    digits), or `Puzzle` and `Solution` as in d1's files, are needed; white space and `/ | ,` are ignored.
    Raises `UserError` for another mode, a missing or malformed column, or differing lengths.
    """
    if mode not in ("mixed", "strict", "continuous"):
        raise UserError(f"mode of the sudoku reward must be 'mixed', 'strict' or 'continuous', found {mode!r}")
    for name in NEEDS:
        if name not in columns and name.title() in columns:
            columns[name] = columns[name.title()]
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
        clues = _cells("puzzle", puzzle, DIGITS + EMPTY, zero=EMPTY)
        answer = marked(completion)
        verdict = verify(completion if answer is None else answer, clues, _cells("solution", solution, DIGITS))
        strict, continuous = float(verdict.strict), verdict.continuous
        scores.append({"strict": strict, "continuous": continuous, "mixed": 0.5 * (strict + continuous)}[mode])
    return torch.tensor(scores, dtype=torch.float64)


def _cells(name: str, cells: Any, allowed: str, zero: str = "0") -> str:
    plain = SEPARATORS.sub("", cells).replace("0", zero) if isinstance(cells, str) else ""
    if len(plain) != CELLS or not set(plain) <= set(allowed):
        raise UserError(
            f"the sudoku column {name!r} should hold 16 characters of {allowed!r} per prompt, found {cells!r}"
        )
    return plain
