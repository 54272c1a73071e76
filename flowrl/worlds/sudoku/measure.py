"""What a base knows of Sudoku: strict score overall and per tag, pass@16, by decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from flowrl.worlds.sudoku import BASES
from flowrl.worlds.sudoku.commands import measure
from flowrl.worlds.sudoku.prompts import LENGTH, prompts
from flowrl.worlds.sudoku.verifier import verify


def report(completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of strict and continuous, strict per tag, and the share of prompts solved by any of their completions
    (`pass`; `rows` may repeat a prompt)."""
    values: dict[str, list[float]] = defaultdict(list)
    solved: dict[str, bool] = defaultdict(bool)
    for completion, row in zip(completions, rows, strict=True):
        verdict = verify(completion, row["puzzle"], row["solution"])
        values["strict"].append(verdict.strict)
        values["continuous"].append(verdict.continuous)
        values[f"strict/{row['tag']}"].append(verdict.strict)
        solved[row["prompt"]] |= verdict.strict
    means = {name: sum(v) / len(v) for name, v in values.items()}
    return means | {"pass": sum(solved.values()) / len(solved)}


def main() -> None:
    """Print a report per decoder as JSON lines."""
    measure(BASES, prompts, LENGTH, report)


if __name__ == "__main__":
    main()
