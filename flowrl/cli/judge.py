"""``flowrl judge``: which of two models people prefer."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import Json
from flowrl.cli.printing import print_pairs, say


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or what `flowrl eval --out` wrote.")],
    other: Annotated[str, typer.Option(metavar="RUN|base", help="What it is compared with.")] = "base",
    name: Annotated[str, typer.Option(help="Whose votes these are.")] = "",
    seed: Annotated[int, typer.Option(help="Of the order of pairs and of their sides.")] = 0,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of this machine [default: 8421].")] = None,
    results: Annotated[bool, typer.Option("--results", help="Show what the votes say, and serve nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Judge pairs blindly on a local page, until Ctrl-C. Example: `flowrl judge runs/quickstart`

    Votes are kept in RUN/judgements.jsonl; the same command goes on, and `flowrl judge RUN --results` counts.
    """
    from flowrl.judging import find_pairs, votes_path

    if results or as_json:
        _tell(votes_path(run), as_json)
        return
    from flowrl.report.watching import serve_page

    pairs, path = find_pairs(run, other), votes_path(run)

    def build(token: str):
        from flowrl.judging.server import Judging, build_app

        return build_app(Judging(pairs, path, name, seed), token)

    say(f"{len(pairs.pairs)} pairs" + (f"; {pairs.equal} more have equal samples" if pairs.equal else ""))
    with suppress(KeyboardInterrupt):  # the way to end it
        serve_page(build, port, lambda text: print(text, flush=True))
    say(f"votes are in {path}; `flowrl judge {run} --results` counts them, and the same command goes on")


def _tell(path: Path, as_json: bool) -> None:
    from flowrl.errors import UserError
    from flowrl.judging import read_votes, summarise, table
    from flowrl.judging.results import NOTES

    votes, damaged = read_votes(path)
    if not votes:
        raise UserError(f"{path} has no votes; `flowrl judge {path.parent}` asks for them")
    found = summarise(votes)
    if as_json:
        print(json.dumps({"comparisons": found, "damaged_lines": damaged}, indent=1))
        return
    for each in found:
        print_pairs(table(each))
        say()
    for note in NOTES:
        say(note)
    if damaged:
        say(f"{damaged} lines of {path} are no votes, and were left out")
