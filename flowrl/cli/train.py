"""``flowrl train``: run a config, or show what it would do."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.cli.completion import resumable
from flowrl.cli.options import ConfigFile, Overrides
from flowrl.cli.printing import print_pairs, say
from flowrl.launcher import is_first

if TYPE_CHECKING:
    from flowrl.startup.preflight import CheckedRun


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(help="auto, a run, or a checkpoint to go on from.", autocompletion=resumable)
    ] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although prompts, rewards, model or libraries changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the plan; load and train nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the run on a local page meanwhile.")] = False,
) -> None:
    """Train. Example: `flowrl train configs/quickstart.yaml train.iterations=50`"""
    from flowrl.runtime.display import Display  # rich alone: it shows something while the rest is imported

    with Display(silent=not is_first()) as display:
        display.stage("starting", log=False)  # a mistake is one sentence in a log
        from flowrl.runtime.launch import joined

        with joined() as job:
            with job.in_turn():
                plan = _checked(config, overrides or [])
            lines = []
            if dry_run:
                from flowrl.commands.train import planned

                lines = planned(plan, config)
            else:
                import faulthandler

                from flowrl.train import train as run

                with suppress(OSError):  # an error stream without a file, as in a test or a notebook
                    faulthandler.enable()  # a crash in compiled code, such as a reward's, shows whose line it was
                from flowrl.report.watching import beside

                page = beside(plan.config.directory, display.note) if watch and job.rank == 0 else nullcontext()
                with page:
                    run(plan.config, resume=resume, allow_changed=allow_changed, display=display)
    if dry_run:
        print_pairs(lines)
    elif job.rank == 0:
        say(f"{plan.config.directory}  (open report.html in it)")


def _checked(config: Path, overrides: list[str]) -> CheckedRun:
    from flowrl.config import Config
    from flowrl.startup.preflight import check_run

    return check_run(Config.load(config, overrides))
