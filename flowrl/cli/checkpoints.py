"""``flowrl checkpoints``: what a run saved, and how good it was."""

from __future__ import annotations

import json

from flowrl.cli.options import Json, RunFolder
from flowrl.cli.printing import print_table


def checkpoints(run: RunFolder, as_json: Json = False) -> None:
    """List a run's checkpoints with their scores. Example: `flowrl checkpoints runs/quickstart`"""
    from flowrl.commands.checkpoints import checkpoint_rows

    rows = checkpoint_rows(run)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    cells = []
    for row in rows:
        scores = [f"{row['scores'][name]:.4g}" if name in row["scores"] else "-" for name in names]
        cells.append([row["name"], row["time"], *scores, ", ".join(row["notes"])])
    print_table(["checkpoint", "saved", *names, ""], cells)
