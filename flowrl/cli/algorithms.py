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
    family: Annotated[
        str | None, typer.Option(metavar="FAMILY", help="List those of a family: diffusion, masked or causal.")
    ] = None,
    slot: Annotated[
        str | None,
        typer.Option(
            metavar="SLOT[=PART]", help="List those that fill a slot, such as loss_masks or objective=Clipped."
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="TEXT", help="List those whose paper contains this.")] = None,
    as_json: Json = False,
) -> None:
    """List algorithms, or show the parts of one. Example: `flowrl algorithms flow_grpo --diff dance_grpo`"""
    from flowrl.commands.algorithms import algorithm_rows, chosen, differences, part_text, without_paper

    if diff is not None:
        if name is None:
            raise UserError("--diff: name two algorithms, as in `flowrl algorithms flow_grpo --diff dance_grpo`")
        lines = differences(name, diff)
        print(json.dumps(lines, indent=1)) if as_json else print_table(["", name, diff], lines)
        return
    if name is not None and (family or slot or source):
        raise UserError("--family, --slot and --source choose from the list; leave out NAME")
    rows = chosen(algorithm_rows(name), family, slot, source)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    cells = [[row["name"], row["paper"], without_paper(row["summary"], row["paper"])] for row in rows]
    if name is None:
        print_table(["name", "paper", "summary"], cells)
        return
    (_, paper, summary), parts = cells[0], rows[0]["parts"].items()
    print_pairs([("paper", paper), ("summary", summary), *((slot, part_text(part)) for slot, part in parts)])
