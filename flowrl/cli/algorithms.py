"""``flowrl algorithms``: which there are, what one consists of, how two differ."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flowrl.cli.completion import preset_names
from flowrl.cli.options import Json
from flowrl.cli.printing import print_pairs, print_table
from flowrl.errors import UserError


def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", autocompletion=preset_names)] = None,
    diff: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Show only what OTHER does differently.", autocompletion=preset_names),
    ] = None,
    as_json: Json = False,
) -> None:
    """List algorithms, or show the parts of one. Example: `flowrl algorithms flow_grpo --diff dance_grpo`"""
    from flowrl.commands.algorithms import algorithm_rows, differences, part_text, without_paper

    if diff is not None:
        if name is None:
            raise UserError("--diff: name two algorithms, as in `flowrl algorithms flow_grpo --diff dance_grpo`")
        lines = differences(name, diff)
        print(json.dumps(lines, indent=1)) if as_json else print_table(["", name, diff], lines)
        return
    rows = algorithm_rows(name)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    cells = [[row["name"], row["paper"], without_paper(row["summary"], row["paper"])] for row in rows]
    if name is None:
        print_table(["name", "paper", "summary"], cells)
        return
    (_, paper, summary), parts = cells[0], rows[0]["parts"].items()
    print_pairs([("paper", paper), ("summary", summary), *((slot, part_text(part)) for slot, part in parts)])
