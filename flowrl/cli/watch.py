"""``flowrl watch``: runs while they train, as a page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.completion import run_folders
from flowrl.cli.printing import say


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]...", autocompletion=run_folders)],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of this machine [default: 8421].")] = None,
) -> None:
    """Follow runs on a local page, until Ctrl-C. Example: `flowrl watch runs/quickstart`"""
    from flowrl.records.directory import RunDirectory
    from flowrl.report.watching import serve

    with suppress(KeyboardInterrupt):  # the way to end it
        serve([RunDirectory.open(run).path for run in runs], port, lambda text: print(text, flush=True))
    say("the page has ended; the runs go on")
