"""What a base knows of Countdown: strict and well-formed shares overall and per tag, pass@16, by decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from flowrl.worlds.countdown import BASES
from flowrl.worlds.countdown.prompts import LENGTH, prompts
from flowrl.worlds.countdown.verifier import verify
from flowrl.worlds.sudoku.commands import measure


def report(completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of strict and formed, strict per tag, and the share of prompts solved by any of their completions
    (`pass`, also per tag; `rows` may repeat a prompt)."""
    values: dict[str, list[float]] = defaultdict(list)
    solved: dict[tuple[str, str], bool] = defaultdict(bool)
    for completion, row in zip(completions, rows, strict=True):
        verdict = verify(completion, row["numbers"], row["target"])
        values["strict"].append(verdict.strict)
        values["formed"].append(verdict.formed)
        values[f"strict/{row['tag']}"].append(verdict.strict)
        solved[row["tag"], row["prompt"]] |= verdict.strict
    for (tag, _), passed in solved.items():
        values["pass"].append(passed)
        values[f"pass/{tag}"].append(passed)
    return {name: sum(v) / len(v) for name, v in values.items()}


def main() -> None:
    """Print a report per decoder as JSON lines."""
    measure(BASES, prompts, LENGTH, report)


if __name__ == "__main__":
    main()
