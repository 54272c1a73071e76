"""``flowrl report``: a run as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.printing import say


def report(run: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Write RUN/report.html, one self-contained page. Example: `flowrl report runs/quickstart`"""
    from flowrl.report import write

    say(write(run))
