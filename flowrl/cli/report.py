"""``flowrl report``: a run as one page."""

from __future__ import annotations

from flowrl.cli.options import RunFolder
from flowrl.cli.printing import say


def report(run: RunFolder) -> None:
    """Write RUN/report.html, one self-contained page. Example: `flowrl report runs/quickstart`"""
    from flowrl.report import write

    say(write(run))
