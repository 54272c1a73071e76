"""``flowrl doctor``: is this machine, and this config on it, fit for training?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import Overrides
from flowrl.cli.printing import print_findings


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Also try this run's model and rewards.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check the machine, and a config on it. Example: `flowrl doctor configs/quickstart.yaml`"""
    from flowrl.commands.doctor import check_config, check_machine
    from flowrl.config import Config

    loaded = Config.load(config, overrides or []) if config else None
    findings = check_machine(loaded.directory if loaded else Path("runs"))
    print_findings([(s.name, s.state, s.detail) for s in findings])
    bad = any(finding.state == "bad" for finding in findings)
    for finding in check_config(loaded) if loaded else ():
        print_findings([(finding.name, finding.state, finding.detail)])
        bad |= finding.state == "bad"
    if bad:
        raise typer.Exit(2)
