"""``flowrl doctor``: is this machine, and this config on it, fit for training?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.completion import config_files
from flowrl.cli.options import Overrides
from flowrl.cli.printing import print_findings


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="Also try this run's model and rewards.", autocompletion=config_files),
    ] = None,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain the self-check named instead of CONFIG, or list all of them.")
    ] = False,
) -> None:
    """Check the machine, and a config on it. Example: `flowrl doctor configs/quickstart.yaml`"""
    if explain:
        _explain(None if config is None else str(config))
        return
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


def _explain(name: str | None) -> None:
    from flowrl.checks import CHECKS, explain, find

    for check in CHECKS if name is None else [find(name)]:
        typer.echo(explain(check) if name else f"{check.name:<20} {check.what}")
