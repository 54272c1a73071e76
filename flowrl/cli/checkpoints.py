"""``flowrl checkpoints``: what a run saved, and how good it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import Json
from flowrl.cli.printing import print_table


def checkpoints(run: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """List a run's checkpoints with their scores. Example: `flowrl checkpoints runs/quickstart`"""
    from flowrl.commands.checkpoints import checkpoint_rows

    rows = checkpoint_rows(run)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    cells = [
        [row["name"], row["time"], *(_score(row["scores"].get(name)) for name in scores), ", ".join(row["notes"])]
        for row in rows
    ]
    print_table(["checkpoint", "saved", *scores, ""], cells)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
