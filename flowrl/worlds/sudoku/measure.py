"""What a base knows of Sudoku: `python -m flowrl.worlds.sudoku.measure --family masked`."""

from __future__ import annotations

from typing import Any

from flowrl.worlds.sudoku import BASES
from flowrl.worlds.sudoku.prompts import LENGTH, prompts
from flowrl.worlds.sudoku.verifier import verify
from flowrl.worlds.text.commands import measure


def verdict(completion: str, row: dict[str, Any]) -> dict[str, float]:
    """Whether a completion solves its puzzle, and the share of empty cells that are right."""
    found = verify(completion, row["puzzle"], row["solution"])
    return {"strict": found.strict, "continuous": found.continuous}


if __name__ == "__main__":
    measure(BASES, prompts, LENGTH, verdict)
